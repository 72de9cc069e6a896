"""Official layouts in and out: names, shapes, kinds of files, and refusals."""

import json
import pickle
import shutil
import zipfile

import keras
import numpy as np
import pytest
import torch
from reference_vectors import TorchMAE

from keras_ssl import converters
from keras_ssl.backbones import ViTBackbone
from keras_ssl.models import MAE, ImageClassifier

SIZES = dict(image_shape=(8, 12, 3), patch_size=4, hidden_dim=8, num_layers=2, num_heads=2)
# The same sizes in the official words.
OFFICIAL = dict(
    img_size=[8, 12],
    patch_size=4,
    embed_dim=8,
    depth=2,
    num_heads=2,
    decoder_embed_dim=4,
    decoder_depth=1,
    decoder_num_heads=1,
    mlp_ratio=4.0,
    ln_eps=1e-6,
)


def make_mae():
    backbone = ViTBackbone(**SIZES, position_embedding="sincos", initializer="mae")
    return MAE(
        backbone,
        decoder_hidden_dim=4,
        decoder_num_layers=1,
        decoder_num_heads=1,
        augmenter=None,
        preprocessor=None,
    )


def make_classifier(pooling="token", **kwargs):
    return ImageClassifier(ViTBackbone(**SIZES, **kwargs), num_classes=3, pooling=pooling)


def random_state(model, layout, seed=0):
    rng = np.random.default_rng(seed)
    shapes = converters.to_official(model, layout)
    return {k: rng.normal(size=v.shape).astype("float32") for k, v in shapes.items()}


MODELS = {
    "mae": (make_mae, "mae"),
    "backbone": (lambda: ViTBackbone(**SIZES), "timm_vit"),
    "scaled": (
        lambda: ViTBackbone(**SIZES, layer_scale_init=1e-5, ffn="swiglu", qkv_bias=False),
        "timm_vit",
    ),
    "no class token": (lambda: ViTBackbone(**SIZES, use_class_token=False), "timm_vit"),
    "classifier": (make_classifier, "timm_vit"),
    "mean": (lambda: make_classifier("mean", use_final_norm=False), "timm_vit"),
    "mean, norm left": (lambda: make_classifier("mean"), "timm_vit"),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_goes_in_comes_out(name):
    make, layout = MODELS[name]
    model = make()
    state = random_state(model, layout)
    report = converters.load_official(model, state, layout=layout)
    assert set(report.loaded) == set(state)
    assert not (report.missing or report.unexpected or report.ignored)
    back = converters.to_official(model, layout)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)


def test_names_and_shapes_are_the_official_ones():
    config = {**OFFICIAL, "norm_pix_loss": False, "mask_ratio": 0.5}
    reference = TorchMAE(config, channels=3, generator=torch.Generator().manual_seed(0))
    theirs = {k: tuple(v.shape) for k, v in {**reference.tensors, **reference.fixed}.items()}
    model = make_mae()
    ours = converters.to_official(model, "mae")
    assert {k: v.shape for k, v in ours.items()} == theirs
    for name, table in reference.fixed.items():
        np.testing.assert_allclose(ours[name], table.numpy(), atol=1e-6)
    trainable = converters.to_official(model, "mae", trainable_only=True)
    assert set(trainable) == set(reference.tensors)


def test_patches_and_linears_are_turned_as_torch_means_them():
    rng = np.random.default_rng(0)
    model = ViTBackbone(**SIZES)
    state = random_state(model, "timm_vit")
    converters.load_official(model, state, "timm_vit")
    patch = rng.normal(size=(1, 3, 4, 4)).astype("float32")
    weight = state["patch_embed.proj.weight"]
    expected = np.einsum("nchw,dchw->nd", patch, weight)
    kernel = keras.ops.convert_to_numpy(model.patch_embedding.kernel)
    flat = np.moveaxis(patch, 1, -1).reshape(1, -1)  # row, column, channel
    np.testing.assert_allclose(flat @ kernel, expected, rtol=1e-5)
    qkv = keras.ops.convert_to_numpy(model.blocks[1].attention.qkv.kernel)
    np.testing.assert_array_equal(qkv, state["blocks.1.attn.qkv.weight"].T)


def test_values_can_be_something_else_than_the_weights():
    model = ViTBackbone(**SIZES)
    kernel = model.patch_embedding.kernel
    found = converters.to_official(
        model, "timm_vit", values=lambda v: np.ones(v.shape) if v is kernel else None
    )
    assert list(found) == ["patch_embed.proj.weight"]
    assert found["patch_embed.proj.weight"].shape == (8, 3, 4, 4)


def test_pretraining_weights_go_into_a_backbone_and_a_classifier():
    state = random_state(make_mae(), "mae")
    model = ViTBackbone(**SIZES)
    report = converters.load_official(model, state, "mae")
    assert "decoder_pred.weight" in report.ignored and "mask_token" in report.ignored
    assert not report.left
    classifier = make_classifier("mean")
    head = keras.ops.convert_to_numpy(classifier.output_dense.kernel)
    report = converters.load_official(classifier, state, "mae")
    # Mean pooling has a norm of its own, new like the head: the pretrained one has no place.
    assert "norm.weight" in report.ignored
    assert any("predictions" in path for path in report.left)
    assert any("head_norm" in path for path in report.left)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(classifier.output_dense.kernel), head)
    assert "ignored" in str(report) and "left" in str(report)


# === Errors ==================================================================================


def test_missing_and_unexpected_tensors_are_named_and_nothing_is_loaded():
    model = make_mae()
    before = converters.to_official(model, "mae")
    state = random_state(model, "mae")
    del state["blocks.1.attn.qkv.bias"]
    state["head.weight"] = np.zeros((2, 8), "float32")
    with pytest.raises(ValueError) as error:
        converters.load_official(model, state, "mae")
    assert "missing: blocks.1.attn.qkv.bias" in str(error.value)
    assert "unexpected: head.weight" in str(error.value)
    for key, value in converters.to_official(model, "mae").items():
        np.testing.assert_array_equal(value, before[key])
    report = converters.load_official(model, state, "mae", strict=False)
    assert report.missing == ["blocks.1.attn.qkv.bias"]
    assert report.unexpected == ["head.weight"]
    np.testing.assert_array_equal(
        converters.to_official(model, "mae")["cls_token"], state["cls_token"]
    )


@pytest.mark.parametrize("strict", [True, False])
def test_a_tensor_of_the_wrong_shape_is_named(strict):
    model = make_mae()
    state = random_state(model, "mae")
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].T
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][..., :2]
    with pytest.raises(ValueError) as error:
        converters.load_official(model, state, "mae", strict=strict)
    message = str(error.value)
    assert "'blocks.0.mlp.fc1.weight' has shape (8, 32), the model needs (32, 8)" in message
    assert "'patch_embed.proj.weight' has shape (8, 3, 4, 2)" in message


def test_positions_of_another_size_get_a_hint():
    model = ViTBackbone(**SIZES)
    state = random_state(model, "timm_vit")
    state["pos_embed"] = np.zeros((1, 17, 8), "float32")
    with pytest.raises(ValueError, match="positions of 4 x 4 patches"):
        converters.load_official(model, state, "timm_vit")


def test_unknown_layouts_and_classes():
    model = ViTBackbone(**SIZES)
    with pytest.raises(ValueError, match="`layout` must be one of .*Received: layout='dall_e'"):
        converters.load_official(model, {}, "dall_e")
    with pytest.raises(ValueError, match="Received: model of class Sequential"):
        converters.to_official(keras.Sequential(), "mae")


def test_a_mistyped_path_in_a_map_cannot_hide(monkeypatch):
    table = converters.LAYOUTS["timm_vit"]["ViTBackbone"]
    entries = tuple(
        (official, ours.replace("fc1", "fc_1"), transform)
        for official, ours, transform in table.entries
    )
    broken = {"ViTBackbone": type(table)(entries, table.ignored, table.left)}
    monkeypatch.setitem(converters.LAYOUTS, "timm_vit", broken)
    with pytest.raises(ValueError, match="has no place for these variables.*fc1"):
        converters.official_entries(ViTBackbone(**SIZES), "timm_vit")


# === Files ===================================================================================


@pytest.fixture
def backbone_and_state():
    model = ViTBackbone(**SIZES)
    return model, random_state(model, "timm_vit")


def assert_loaded(model, state):
    for key, value in converters.to_official(model, "timm_vit").items():
        np.testing.assert_allclose(value, state[key], rtol=1e-2)


def test_safetensors_and_npz(tmp_path, backbone_and_state):
    from safetensors.numpy import save_file

    model, state = backbone_and_state
    save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt"})
    np.savez(tmp_path / "a.npz", **state)
    for name in ("a.safetensors", "a.npz"):
        read = converters.read_state_dict(tmp_path / name)
        assert read.keys() == state.keys()
        for key in state:
            np.testing.assert_array_equal(read[key], state[key])
        converters.load_official(model, str(tmp_path / name), "timm_vit")
        assert_loaded(model, state)


def test_bfloat16_and_integers_in_safetensors(tmp_path):
    from safetensors.torch import save_file

    tensors = {
        "a": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        "b": torch.tensor([1, -2], dtype=torch.int64),
        "c": torch.tensor(3.0, dtype=torch.float16),
        "d": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    read = converters.read_state_dict(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read["a"], np.array([[1.5, -2.0]], "float32"))
    np.testing.assert_array_equal(read["b"], [1, -2])
    assert read["c"].shape == () and read["c"] == 3.0
    np.testing.assert_array_equal(read["d"], [True, False])


def test_torch_files(tmp_path, backbone_and_state):
    model, state = backbone_and_state
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    contents = {
        "plain": tensors,
        "wrapped": {"model": tensors, "epoch": 3, "optimizer": {"state": {}}},
        "parallel": {"state_dict": {f"module.{k}": v for k, v in tensors.items()}},
        "half": {key: value.bfloat16() for key, value in tensors.items()},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        converters.load_official(model, tmp_path / f"{name}.pth", "timm_vit")
        assert_loaded(model, state)
    torch.save({"mean": tensors, "last": {}}, tmp_path / "two.pth")
    converters.load_official(model, tmp_path / "two.pth", "timm_vit", key="mean")
    with pytest.raises(ValueError, match="no entry 'ema'; it has .*last"):
        converters.read_state_dict(tmp_path / "two.pth", key="ema")
    with pytest.raises(ValueError, match="name that entry with `key`"):
        converters.read_state_dict(tmp_path / "two.pth")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.ckpt", "a.pkl", "a.pickle", "a.npz"])
def test_pickles_are_refused_and_not_executed(tmp_path, name):
    mark = tmp_path / "executed"
    if name.endswith(".npz"):
        np.savez(tmp_path / name, a=np.array([Bomb(mark)], dtype=object))
    elif name.endswith((".pkl", ".pickle")):
        (tmp_path / name).write_bytes(pickle.dumps({"a": Bomb(mark)}))
    else:
        torch.save({"a": Bomb(mark)}, tmp_path / name)
    with pytest.raises(ValueError, match="refused"):
        converters.read_state_dict(tmp_path / name)
    assert not mark.exists()


class Scripted(torch.nn.Module):
    """What scripted modules hold: submodules, halves, strided tensors, plain attributes."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Linear(3, 4).half(), torch.nn.BatchNorm1d(4))
        self.proj = torch.nn.Parameter(torch.randn(4, 6).t())
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6).bfloat16())
        self.register_buffer("context_length", torch.tensor(77))
        self.sizes = [1, 2]

    def forward(self, x):
        return self.visual(x) * self.sizes[0]


def rewritten(path, name, change):
    """An archive with one of its files changed."""
    with zipfile.ZipFile(path) as archive:
        files = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in files.items():
            archive.writestr(info, change(data) if info.filename.endswith(name) else data)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_archives_are_read_and_not_run(tmp_path):
    module = Scripted()
    torch.jit.script(module).save(tmp_path / "a.pt")
    found = converters.read_state_dict(tmp_path / "a.pt")
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.float().numpy())
    # A pickle that names anything else is refused; so is a tensor that reaches out of its bytes.
    mark = tmp_path / "executed"
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    rewritten(tmp_path / "b.pt", "/data.pkl", lambda data: pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match="refused .it names (io|_io).open"):
        converters.read_state_dict(tmp_path / "b.pt")
    assert not mark.exists()
    shutil.copy(tmp_path / "a.pt", tmp_path / "c.pt")
    for number in range(len(expected)):
        rewritten(tmp_path / "c.pt", f"/data/{number}", lambda data: data[: len(data) // 2])
    with pytest.raises(ValueError, match="does not fit its storage"):
        converters.read_state_dict(tmp_path / "c.pt")


def test_nobody_is_told_to_open_a_pickle(tmp_path):
    torch.save({"a": Bomb(tmp_path / "executed")}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"refused.*\(it names (io|_io)\.open\)") as error:
        converters.read_state_dict(tmp_path / "a.pth")
    assert "weights_only" not in str(error.value)


def _damaged(header, data=b"", cut=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text).to_bytes(8, "little") + text + data)[:cut]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x01", "shorter than its header"),
        (b"\xff" * 16, "header is cut off"),
        (_damaged(b"not json"), "not a JSON object"),
        (_damaged([1, 2]), "not a JSON object"),
        (_damaged({"a": {"dtype": "F32", "shape": [2]}}), "'a' is malformed"),
        (_damaged({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "'a' is cut off"),
        (
            _damaged({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"x" * 8),
            "does not fit its bytes",
        ),
        (
            _damaged({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"x" * 8),
            "does not fit its bytes",
        ),
        (
            _damaged({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x"),
            "not supported",
        ),
    ],
)
def test_damaged_safetensors(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        converters.read_state_dict(tmp_path / "a.safetensors")


def test_truncated_npz_and_pth_and_absent_files(tmp_path, backbone_and_state):
    _, state = backbone_and_state
    np.savez(tmp_path / "a.npz", **state)
    torch.save({k: torch.tensor(v) for k, v in state.items()}, tmp_path / "a.pth")
    for name in ("a.npz", "a.pth"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="damaged"):
            converters.read_state_dict(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        converters.read_state_dict(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="is a folder"):
        converters.read_state_dict(tmp_path)
    with pytest.raises(ValueError, match="type list"):
        converters.read_state_dict([1, 2])
    with pytest.raises(ValueError, match="not an array of numbers"):
        converters.read_state_dict({"a": "text"})
