"""The papers' own files: networks by their names, run in PyTorch or TensorFlow, and loaded here."""

import argparse
import json
import re

import keras
import keras_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from gradients import compiled
from keras import ops
from peers import timm, torchvision
from toy import vit

from keras_ssl import converters
from keras_ssl.backbones import resnet
from keras_ssl.models import BYOL, DINO, ImageClassifier, MoCo, MoCoV3, SimCLR, VICReg
from keras_ssl.models import BarlowTwins as Barlow

IMAGES = np.random.default_rng(0).normal(size=(2, 48, 40, 3)).astype("float32")
ALONE = dict(augmenter=None, preprocessor=None)


def disturb(module, seed=0):
    """Every parameter and statistic random, so that each matters."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point():
                value.add_(0.05 * torch.randn_like(value))
                if name.endswith("running_var"):
                    value.abs_().add_(0.5)
    return module.eval()


def arrays(module, prefix=""):
    return {prefix + name: value.numpy() for name, value in module.state_dict().items()}


def run(module, images=IMAGES):
    with torch.no_grad():
        return module(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy()


def ours(function, images=IMAGES):
    """Output of a model or function in inference; compiled, since eager JAX is slow."""
    output = compiled(lambda x: function(x))(ops.convert_to_tensor(images))
    return keras.ops.convert_to_numpy(output)


def pad_same(module, inputs):
    """TensorFlow's padding, in front of a strided layer of PyTorch."""
    (x,) = inputs
    size, stride = (int(np.max(v)) for v in (module.kernel_size, module.stride))
    pads = []
    for n in reversed(x.shape[2:]):
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads += [total // 2, total - total // 2]
    value = float("-inf") if isinstance(module, torch.nn.MaxPool2d) else 0.0
    return torch.nn.functional.pad(x, pads, value=value)


class TinyResNet(torch.nn.Module):
    """torchvision's bottleneck ResNet, narrow, with one block in three stages, two in one."""

    def __init__(self, filters=4):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, filters, 7, stride=2, padding=3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(filters)
        self.relu = torch.nn.ReLU()
        self.maxpool = torch.nn.MaxPool2d(3, stride=2, padding=1)
        width = filters
        for i, count in enumerate(BLOCKS):
            units, blocks = filters * 2**i, []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                shortcut = None
                if j == 0:
                    shortcut = torch.nn.Sequential(
                        torch.nn.Conv2d(width, 4 * units, 1, stride=stride, bias=False),
                        torch.nn.BatchNorm2d(4 * units),
                    )
                bottleneck = torchvision.models.resnet.Bottleneck
                blocks.append(bottleneck(width, units, stride, shortcut))
                width = 4 * units
            setattr(self, f"layer{i + 1}", torch.nn.Sequential(*blocks))
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(width, 5)

    def forward(self, x):
        x = torch.nn.Sequential(*list(self.children())[:-1])(x)
        return self.fc(torch.flatten(x, 1))


BLOCKS = (1, 2, 1, 1)
WIDTH = 4 * 8 * 4  # of the features


def torch_resnet(padding="torch"):
    model = TinyResNet()
    for module in model.modules():
        pool = isinstance(module, torch.nn.MaxPool2d)
        convolution = isinstance(module, torch.nn.Conv2d) and module.stride[0] > 1
        if padding == "same" and (pool or convolution) or padding == "simclr" and pool:
            module.padding = 0 if pool else (0, 0)
            module.register_forward_pre_hook(pad_same)
    return disturb(model)


def features(model):
    """Up to the map before pooling, as (N, H, W, C)."""
    body = torch.nn.Sequential(*list(model.children())[:-2])
    return run(body).transpose(0, 2, 3, 1)


def hub_resnet():
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=BLOCKS,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=(None, None, 3),
    )


def small(padding="torch"):
    return resnet(padding=padding, num_blocks=BLOCKS, filters=4, image_shape=(48, 40, 3))


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


# === ResNets ===


@pytest.fixture(scope="module")
def reference():
    return torch_resnet()


def test_torchvision_resnet_in_keras_hub(tmp_path):
    block = torchvision.models.resnet.Bottleneck
    reference = disturb(torchvision.models.resnet.ResNet(block, list(BLOCKS), num_classes=5))
    backbone = hub_resnet()
    torch.save(reference.state_dict(), tmp_path / "resnet50.pth")
    report = converters.load_official(
        backbone, tmp_path / "resnet50.pth", layout="torchvision_resnet"
    )
    assert {"fc.weight", "fc.bias"} <= set(report.ignored)
    assert_close(ours(backbone), features(reference))
    back = converters.to_official(backbone, "torchvision_resnet")
    for name, value in back.items():
        np.testing.assert_array_equal(value, reference.state_dict()[name].numpy())


def test_timm_resnet_has_the_same_names():
    model = disturb(timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, BLOCKS, num_classes=5))
    backbone = hub_resnet()
    converters.load_official(backbone, arrays(model), layout="torchvision_resnet")
    with torch.no_grad():
        x = torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy())
        expected = model.forward_features(x).numpy().transpose(0, 2, 3, 1)
    assert_close(ours(backbone), expected)


@pytest.mark.parametrize("padding", ["torch", "simclr", "same"])
def test_our_resnet_pads_as_each_framework(padding, reference):
    model = reference if padding == "torch" else torch_resnet(padding)
    backbone = small(padding)
    converters.load_official(backbone, arrays(model), layout="torchvision_resnet")
    assert_close(ours(backbone), features(model))


def simclr_arrays(model):
    """torchvision's tensors by SimCLR's names: its layers are counted as they are made."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    blocks = [(s, b) for s, count in enumerate(BLOCKS, start=1) for b in range(count)]
    order = [("conv1", "bn1")]
    for stage, block in blocks:
        where = f"layer{stage}.{block}"
        if f"{where}.downsample.0.weight" in state:
            order.append((f"{where}.downsample.0", f"{where}.downsample.1"))
        order += [(f"{where}.conv{i}", f"{where}.bn{i}") for i in (1, 2, 3)]
    found = {"global_step": np.int64(7)}
    for i, (convolution, norm) in enumerate(order):
        tail = f"_{i}" if i else ""
        kernel = state[f"{convolution}.weight"].transpose(2, 3, 1, 0)
        found[f"base_model/conv2d{tail}/kernel"] = kernel
        found[f"base_model/conv2d{tail}/kernel/Momentum"] = np.zeros_like(kernel)
        names = dict(gamma="weight", beta="bias", moving_mean="running_mean")
        for theirs, torchs in {**names, "moving_variance": "running_var"}.items():
            found[f"base_model/batch_normalization{tail}/{theirs}"] = state[f"{norm}.{torchs}"]
    rng = np.random.default_rng(0)
    for i, (rows, columns) in enumerate([(WIDTH, 6), (6, 4)]):
        found[f"head_contrastive/nl_{i}/dense/kernel"] = rng.normal(size=(rows, columns))
        for name in ("gamma", "moving_mean", "moving_variance", *(() if i else ("beta",))):
            found[f"head_contrastive/nl_{i}/batch_normalization/{name}"] = rng.random(columns) + 0.5
    return {
        n: np.asarray(v, v.dtype if v.dtype.kind == "i" else "float32") for n, v in found.items()
    }


def test_simclr_checkpoint_of_tensorflow(tmp_path):
    import tensorflow as tf

    model = torch_resnet("simclr")
    state = simclr_arrays(model)
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, value in state.items():
            v1.get_variable(name, initializer=value)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model.ckpt"), global_step=7)
    method = SimCLR(small("simclr"), projection_dim=4, projection_hidden_dim=6, **ALONE)
    report = converters.load_official(method, tmp_path / "model.ckpt-7", layout="simclr")
    assert not (report.missing or report.unexpected)
    expected = features(model)
    assert_close(ours(method.backbone), expected)
    z = expected.mean(axis=(1, 2))
    for i in range(2):
        head = f"head_contrastive/nl_{i}"
        norm = {k.rsplit("/", 1)[1]: v for k, v in state.items() if f"{head}/batch_norm" in k}
        z = z @ state[f"{head}/dense/kernel"] - norm["moving_mean"]
        z = z / np.sqrt(norm["moving_variance"] + 1e-5) * norm["gamma"] + norm.get("beta", 0)
        z = np.maximum(z, 0) if i == 0 else z
    assert_close(ours(lambda x: method.projection_head(method.encode(x))), z)
    (tmp_path / "model.ckpt-7.index").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        converters.read_state_dict(tmp_path / "model.ckpt-7")


def test_byol_arrays(tmp_path):
    """haiku's names from torchvision's, and its state, in an .npz."""
    model = torch_resnet("same")
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("fc") or name.endswith("tracked"):
            continue
        value, parts = value.numpy(), name.split(".")
        if parts[0].startswith("layer"):
            where = f"block_group_{int(parts[0][5:]) - 1}/~/block_{parts[1]}/~/"
            if parts[2] == "downsample":
                layer = "shortcut_conv" if parts[3] == "0" else "shortcut_batchnorm"
            else:
                kind = "conv" if parts[2].startswith("conv") else "batchnorm"
                layer = f"{kind}_{int(parts[2][-1]) - 1}"
        else:
            where, layer = "", "initial_conv" if parts[0] == "conv1" else "initial_batchnorm"
        path = f"online/res_net17/~/{where}{layer}"
        if value.ndim == 4:
            state[f"{path}/w"] = value.transpose(2, 3, 1, 0)
            continue
        value = value.reshape(1, 1, 1, -1)
        end = {"weight": "scale", "bias": "offset"}.get(parts[-1])
        if end is None:
            ema = "mean_ema" if parts[-1] == "running_mean" else "var_ema"
            state[f"state/{path}/~/{ema}/average"] = value
            state[f"state/{path}/~/{ema}/counter"] = np.int32(3)
            state[f"state/{path}/~/{ema}/hidden"] = value
        else:
            state[f"{path}/{end}"] = value
    np.savez(tmp_path / "byol.npz", **state)
    backbone = small("same")
    report = converters.load_official(backbone, tmp_path / "byol.npz", layout="byol")
    assert not (report.missing or report.unexpected)
    assert_close(ours(backbone), features(model))
    method = BYOL(
        backbone, projection_dim=4, projection_hidden_dim=6, prediction_hidden_dim=6, **ALONE
    )
    names = converters.to_official(method, "byol")
    assert names["online/projector/batch_norm/scale"].shape == (1, 6)
    assert names["target/res_net17/~/initial_batchnorm/offset"].shape == (1, 1, 1, 4)
    report = converters.load_official(method, state, layout="byol", strict=False)
    assert "target/projector/linear/w" in report.missing  # named, and left as it was


# === Methods ===


def sequential(*widths, norm=True, bias=False, last=False, final_norm=False):
    parts = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        end = i == len(widths) - 2
        parts.append(torch.nn.Linear(a, b, bias=last if end else bias))
        if norm and (final_norm or not end):
            parts.append(torch.nn.BatchNorm1d(b, affine=not end))
        if not end:
            parts.append(torch.nn.ReLU())
    return torch.nn.Sequential(*parts)


@pytest.mark.parametrize("version", [1, 2])
def test_moco(version, tmp_path):
    state, networks = {}, {}
    for seed, name in enumerate(("encoder_q", "encoder_k")):
        network = torch_resnet()
        head = {
            1: torch.nn.Linear(WIDTH, 4),
            2: sequential(WIDTH, WIDTH, 4, norm=False, bias=True, last=True),
        }
        network.fc = head[version]
        networks[name] = disturb(network, seed)
        state.update({f"module.{name}.{k}": v for k, v in network.state_dict().items()})
    queue = torch.randn(4, 10)
    state.update({"module.queue": queue, "module.queue_ptr": torch.tensor([6])})
    torch.save(
        {"state_dict": state, "epoch": 200, "arch": "resnet50", "optimizer": {"state": {}}},
        tmp_path / "moco.pth.tar",
    )
    method = MoCo(small(), projection_dim=4, version=version, queue_size=10, **ALONE)
    report = converters.load_official(method, tmp_path / "moco.pth.tar", layout="moco")
    assert not (report.missing or report.unexpected)
    for function, name in ((method.queries, "encoder_q"), (method.keys, "encoder_k")):
        expected = run(networks[name])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert_close(ours(function), expected)
    np.testing.assert_array_equal(ops.convert_to_numpy(method.queue.rows), queue.numpy().T)
    assert int(method.queue.pointer) == 6
    backbone = small()
    report = converters.load_official(backbone, tmp_path / "moco.pth.tar", layout="moco")
    assert "queue" in report.ignored
    assert_close(ours(backbone), features(networks["encoder_q"]))


def timm_vit(**kwargs):
    options = dict(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return timm.models.vision_transformer.VisionTransformer(**{**options, **kwargs})


SQUARE = IMAGES[:, :16, :16]


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_timm_vit(pooling):
    model = disturb(timm_vit(global_pool={"token": "token", "mean": "avg"}[pooling]))
    backbone = vit(use_final_norm=pooling == "token")
    classifier = ImageClassifier(backbone, num_classes=3, pooling=pooling)
    report = converters.load_official(classifier, arrays(model), layout="timm_vit")
    assert not (report.missing or report.unexpected or report.ignored)
    assert_close(ours(classifier, SQUARE), run(model, SQUARE))


OF_DINOV2 = {
    "registers": dict(reg_tokens=4, no_embed_class=True, init_values=1.0),
    "giant": dict(
        mlp_ratio=2.5 * 2,
        mlp_layer=timm.layers.SwiGLUPacked,
        act_layer=torch.nn.SiLU,
        init_values=1.0,
    ),
    "registers_without_class": dict(
        reg_tokens=4, no_embed_class=True, class_token=False, global_pool="avg", fc_norm=False
    ),
}


@pytest.mark.parametrize("name", OF_DINOV2)
def test_timm_vits_that_have_names_of_their_own(name):
    """Options as in timm's vit_*_reg4_dinov2, vit_giant_patch14_dinov2 and vit_*_reg4_gap."""
    model = disturb(timm_vit(num_classes=0, **OF_DINOV2[name]))
    found, report = converters.from_official(arrays(model), num_heads=2)
    assert not (report.missing or report.ignored)
    with torch.no_grad():
        x = torch.tensor(SQUARE.transpose(0, 3, 1, 2).copy())
        expected = model.forward_features(x).numpy()
    assert_close(ours(found, SQUARE), expected)
    again = found.from_config(found.get_config())
    converters.load_official(again, arrays(model), report.layout)
    assert_close(ours(again, SQUARE), expected)


def test_a_folder_of_timm(tmp_path, monkeypatch):
    """As on the hub: an architecture, how its pictures are prepared, and weights."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    options = dict(embed_dim=128, num_heads=4, num_classes=0)
    model = disturb(timm_vit(**options, **OF_DINOV2["registers"]))
    folder = tmp_path / "vit_small_patch14_reg4_dinov2.lvd142m"
    folder.mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    pictures = {
        "input_size": [3, 16, 16],
        "interpolation": "bilinear",
        "crop_pct": 0.5,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
    }
    config = {"architecture": "vit_small_patch14_reg4_dinov2", "pretrained_cfg": pictures}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = ImageClassifier.from_preset(str(folder), num_classes=2)
    with torch.no_grad():
        x = torch.tensor(SQUARE.transpose(0, 3, 1, 2).copy())
        assert_close(ours(loaded.backbone, SQUARE), model.forward_features(x).numpy())
    converter = loaded.preprocessor.image_converter
    assert converter.crop_fraction == 0.5 and converter.interpolation == "bilinear"
    np.testing.assert_allclose(converter.offset, [-2.5, -2.0, -1.5])
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "swin_tiny"}))
    safetensors.torch.save_file({"layers.0.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="no known layout.*architecture='swin_tiny'"):
        ImageClassifier.from_preset(str(folder), num_classes=2)


@pytest.mark.parametrize("chunks", [False, True])
def test_the_teacher_of_dinov2s_training_code(chunks, tmp_path):
    """`teacher_checkpoint.pth`: the names of DINOv2's own networks, blocks maybe in chunks."""
    model = disturb(timm_vit(num_classes=0, init_values=1.0))
    state = {f"backbone.{k}": torch.tensor(v) for k, v in arrays(model).items()}
    if chunks:
        state = {re.sub(r"blocks\.(\d+)", r"blocks.\1.\1", k): v for k, v in state.items()}
    state["backbone.mask_token"] = torch.zeros(1, 16)
    for head in ("dino_head", "ibot_head"):
        state[f"{head}.mlp.0.weight"] = torch.zeros(8, 16)
    torch.save({"teacher": state}, tmp_path / "teacher_checkpoint.pth")
    backbone, report = converters.from_official(tmp_path / "teacher_checkpoint.pth", num_heads=2)
    assert report.layout == "dinov2" and backbone.use_mask_token
    assert "teacher.dino_head.mlp.0.weight" in report.ignored
    with torch.no_grad():
        x = torch.tensor(SQUARE.transpose(0, 3, 1, 2).copy())
        assert_close(ours(backbone, SQUARE), model.forward_features(x).numpy())


def test_moco_v3(tmp_path):
    networks = {}
    for seed, name in enumerate(("base_encoder", "momentum_encoder")):
        networks[name] = timm_vit()
        networks[name].head = sequential(16, 12, 12, 8, final_norm=True)
        disturb(networks[name], seed)
    predictor = disturb(sequential(8, 12, 8, final_norm=True))
    state = arrays(predictor, "module.predictor.")
    for name, network in networks.items():
        state.update(arrays(network, f"module.{name}."))
    torch.save(
        {"state_dict": {k: torch.tensor(v) for k, v in state.items()}, "epoch": 300},
        tmp_path / "vit.pth.tar",
    )
    method = MoCoV3(vit(), projection_dim=8, projection_hidden_dim=12, **ALONE)
    report = converters.load_official(method, tmp_path / "vit.pth.tar", layout="moco_v3")
    assert not (report.missing or report.unexpected)
    with torch.no_grad():
        x = torch.tensor(SQUARE.transpose(0, 3, 1, 2).copy())
        assert_close(ours(method.queries, SQUARE), predictor(networks["base_encoder"](x)).numpy())
    assert_close(ours(method.keys, SQUARE), run(networks["momentum_encoder"], SQUARE))
    backbone = vit()
    converters.load_official(backbone, tmp_path / "vit.pth.tar", layout="moco_v3")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(backbone.class_token), state["module.base_encoder.cls_token"]
    )


@pytest.mark.parametrize("layout, cls", [("barlow_twins", Barlow), ("vicreg", VICReg)])
def test_barlow_twins_and_vicreg(layout, cls, tmp_path):
    encoder = disturb(timm_vit(num_classes=0))
    projector = disturb(sequential(16, 8, 8, 6, bias=layout == "vicreg"))
    state = {**arrays(encoder, "backbone."), **arrays(projector, "projector.")}
    if layout == "barlow_twins":
        state.update(arrays(torch.nn.BatchNorm1d(6, affine=False), "bn."))
    torch.save(
        {"model": {f"module.{k}": torch.tensor(v) for k, v in state.items()}, "epoch": 1000},
        tmp_path / "checkpoint.pth",
    )
    method = cls(vit(), projection_dim=6, projection_hidden_dim=8, **ALONE)
    report = converters.load_official(method, tmp_path / "checkpoint.pth", layout=layout)
    assert not (report.missing or report.unexpected)
    with torch.no_grad():
        expected = projector(torch.tensor(run(encoder, SQUARE))).numpy()
    assert_close(ours(method.project, SQUARE), expected)


def test_dino_run_with_its_arguments(tmp_path):
    """A whole run holds an argparse.Namespace beside student, teacher and centre."""
    method = DINO(vit(), output_dim=12, hidden_dim=8, bottleneck_dim=4, **ALONE)
    method.center.center.assign(np.ones(method.center.center.shape))  # zeros are left out
    names = converters.to_official(method, "dino")
    rng = np.random.default_rng(0)
    state = {k: torch.tensor(rng.normal(size=v.shape).astype("float32")) for k, v in names.items()}

    def below(prefix, inner=""):
        return {inner + k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    torch.save(
        {
            "student": below("student.", "module."),
            "teacher": below("teacher."),
            "dino_loss": {"center": state["center"]},
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_small", lr=0.1),
        },
        tmp_path / "run.pth",
    )
    report = converters.load_official(method, tmp_path / "run.pth", layout="dino")
    assert set(report.loaded) == set(state) and not report.unexpected
    for name, value in converters.to_official(method, "dino").items():
        np.testing.assert_array_equal(value, state[name].numpy())
    backbone = vit()
    report = converters.load_official(backbone, tmp_path / "run.pth", layout="dino")
    assert "student.head.mlp.0.weight" in report.ignored
    np.testing.assert_array_equal(
        ops.convert_to_numpy(backbone.class_token), state["teacher.backbone.cls_token"].numpy()
    )


# === What does not fit ===


def test_what_is_missing_is_named(reference):
    state = arrays(reference)
    del state["layer2.1.bn3.running_var"]
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"][..., :2]
    state["conv1.weight"] = np.full_like(state["conv1.weight"], np.nan)
    with pytest.raises(ValueError) as error:
        converters.load_official(small(), state, layout="torchvision_resnet")
    for text in (
        "missing: layer2.1.bn3.running_var",
        "'layer1.0.conv2.weight' has shape (4, 4, 3, 2)",
        "'conv1.weight' holds NaN",
    ):
        assert text in str(error.value)


def test_resnet_options_are_checked():
    with pytest.raises(ValueError, match="`padding` must be"):
        resnet(padding="valid")
    with pytest.raises(ValueError, match="`depth` must be"):
        resnet(18)
