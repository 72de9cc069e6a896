"""The transformers layout against transformers itself: random tiny models in, ours back out."""

import json

import keras
import numpy as np
import peers  # noqa: F401  (declares what torchvision needs)
import pytest
import torch
import transformers
from gradients import compiled
from keras import ops

import keras_ssl
from keras_ssl.backbones import ViTBackbone
from keras_ssl.converters import from_transformers, to_transformers
from keras_ssl.layers.image_converter import preprocessor_for
from keras_ssl.models import ALIGN, MAE
from keras_ssl.presets import resolve_preset

SIZES = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=4,
)
MLP = dict(intermediate_size=24)
MODELS = {
    "vit": ("ViTConfig", "ViTModel", {**SIZES, **MLP}, dict(add_pooling_layer=False)),
    "ijepa": ("IJepaConfig", "IJepaModel", {**SIZES, **MLP}, dict(add_pooling_layer=False)),
    "dinov2": ("Dinov2Config", "Dinov2Model", {**SIZES, "use_swiglu_ffn": True}, {}),
    "registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {**SIZES, "num_register_tokens": 3},
        {},
    ),
    "dinov3": (
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        {**SIZES, **MLP, "num_register_tokens": 2},
        {},
    ),
    "mae": (
        "ViTMAEConfig",
        "ViTMAEForPreTraining",
        {
            **SIZES,
            **MLP,
            "decoder_hidden_size": 8,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 16,
        },
        {},
    ),
}
# Settings that no released model has, but configurations do.
MODELS["no registers"] = (*MODELS["registers"][:2], {**SIZES, "num_register_tokens": 0}, {})
MODELS["dinov3 without registers"] = (*MODELS["dinov3"][:2], {**SIZES, **MLP, "key_bias": True}, {})
MODELS["relu"] = (*MODELS["vit"][:2], {**SIZES, **MLP, "hidden_act": "relu"}, MODELS["vit"][3])
MODELS["dinov3 with silu"] = (*MODELS["dinov3"][:2], {**SIZES, **MLP, "hidden_act": "silu"}, {})
MODELS["mae without biases"] = (
    *MODELS["mae"][:2],
    {
        **MODELS["mae"][2],
        **{"qkv_bias": False, "hidden_act": "gelu_new"},
        # 28 * (61 / 28) < 61, as floats go.
        **{"decoder_hidden_size": 28, "decoder_intermediate_size": 61},
    },
    {},
)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 16, 16, 3)).astype("float32")
WIDE = RNG.normal(size=(2, 24, 20, 3)).astype("float32")
NOISE = RNG.random((2, 16)).astype("float32")


def official(name, folder):
    """A random model of transformers, saved; every parameter is disturbed so that all matter."""
    config_class, model_class, options, init = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**options)
    model = getattr(transformers, model_class)(config, **init).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # MAE's positions are fixed
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def theirs(model, images, name):
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        if name.startswith("mae"):
            return model(x, noise=torch.tensor(NOISE)).logits.numpy()
        resizes = name in ("vit", "ijepa", "relu")
        options = {"interpolate_pos_encoding": True} if resizes else {}
        return model(x, **options).last_hidden_state.numpy()


def ours(model, images):
    def forward(images, noise):
        if isinstance(model, MAE):
            visible, _, restore = model.mask_patches(noise)
            return model.decode(model.encode_visible(images, visible), restore)
        return model(images)

    output = compiled(forward)(ops.convert_to_tensor(images), ops.convert_to_tensor(NOISE))
    return keras.ops.convert_to_numpy(output)


@pytest.mark.parametrize("name", MODELS)
def test_in_and_out_again(name, tmp_path):
    reference = official(name, tmp_path / "theirs")
    model, preprocessor, report = from_transformers(tmp_path / "theirs")
    assert not (report.missing or report.unexpected) and preprocessor is None
    expected = theirs(reference, IMAGES, name)
    np.testing.assert_allclose(ours(model, IMAGES), expected, atol=1e-5)
    if not name.startswith("mae"):
        np.testing.assert_allclose(ours(model, WIDE), theirs(reference, WIDE, name), atol=1e-5)
    to_transformers(model, tmp_path / "ours")
    cls = getattr(transformers, MODELS[name][1])
    again, info = cls.from_pretrained(
        tmp_path / "ours", **MODELS[name][3], output_loading_info=True
    )
    empty = {key for key, value in again.state_dict().items() if not value.numel()}
    assert not set(info["missing_keys"]) - empty
    assert not any(info[key] for key in ("unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(theirs(again.eval(), IMAGES, name), expected, atol=1e-6)
    auto = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert auto.model_type == reference.config.model_type


def test_sharded_files_and_prefixed_names(tmp_path):
    """A classifier's file has its encoder under a prefix; large files come in shards."""
    config = transformers.ViTConfig(**SIZES, **MLP)
    reference = transformers.ViTForImageClassification(config).eval()
    reference.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model, _, report = from_transformers(tmp_path)
    assert "classifier.weight" in report.ignored and not report.missing
    np.testing.assert_allclose(ours(model, IMAGES), theirs(reference.vit, IMAGES, "vit"), atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_image_and_text(kind, tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    text = dict(**sizes, vocab_size=30, max_position_embeddings=6, bos_token_id=28, eos_token_id=29)
    vision = dict(**sizes, image_size=16, patch_size=8)
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        cls = transformers.CLIPModel
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        cls = transformers.SiglipModel
    reference = cls(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reference.save_pretrained(tmp_path / "theirs")
    model, _, report = from_transformers(tmp_path / "theirs")
    assert not (report.missing or report.unexpected)
    ids = np.array([[28, 3, 9, 29, 29, 29], [28, 1, 2, 4, 5, 29]])

    def logits(reference):
        pixels = torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            return reference(input_ids=torch.tensor(ids), pixel_values=pixels).logits_per_image

    features = compiled(lambda images, ids: (model.encode(images), model.encode_ids(ids)))(
        ops.convert_to_tensor(IMAGES), ops.convert_to_tensor(ids.astype("int32"))
    )
    x, y = (keras.ops.convert_to_numpy(f) for f in features)
    x, y = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (x, y))
    found = np.exp(float(model.logit_scale)) * x @ y.T
    if model.logit_bias is not None:
        found += float(model.logit_bias)
    np.testing.assert_allclose(found, logits(reference), atol=2e-5)
    to_transformers(model, tmp_path / "ours")
    again = cls.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(logits(again), logits(reference), atol=1e-5)


def random_align(folder):
    """A random ALIGN of transformers, saved, whose every parameter and statistic matters."""
    vision = dict(
        image_size=32,
        width_coefficient=0.25,
        depth_coefficient=1.2,
        depthwise_padding=[4],
        kernel_sizes=[3, 5, 3],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        strides=[1, 2, 2],
        num_block_repeats=[1, 1, 2],
        expand_ratios=[1, 6, 4],
        hidden_dim=16,
    )
    text = dict(
        **dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2),
        **dict(vocab_size=30, max_position_embeddings=6, pad_token_id=0),
    )
    torch.manual_seed(0)
    width = transformers.models.align.modeling_align.round_filters(
        transformers.AlignVisionConfig(**vision), vision["out_channels"][-1]
    )
    config = transformers.AlignConfig(
        text_config=text, vision_config=vision, projection_dim=width, temperature_init_value=0.3
    )
    model = transformers.AlignModel(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn_like(tensor)
            if tensor.ndim > 1:  # large enough that the last layers see a difference
                tensor.copy_(1.5 * noise * (tensor.numel() / len(tensor)) ** -0.5)
            elif "running_var" in name:
                tensor.copy_(0.5 + torch.rand_like(tensor))
            elif name != "temperature":
                tensor.add_(0.1 * noise)
    model.save_pretrained(folder)
    return model


def test_align(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    reference = random_align(tmp_path / "theirs")
    settings = dict(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32})
    transformers.EfficientNetImageProcessor(
        **settings, do_center_crop=True, rescale_factor=1 / 127.5, rescale_offset=True
    ).save_pretrained(tmp_path / "theirs")
    edited = json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
    edited["do_normalize"] = False
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(edited))
    model, preprocessor, report = from_transformers(tmp_path / "theirs")
    assert isinstance(model, ALIGN) and not (report.missing or report.unexpected)
    grey = keras.ops.convert_to_numpy(preprocessor(np.full((1, 64, 64, 3), 51, "uint8")))
    np.testing.assert_allclose(grey, 51 / 127.5 - 1, atol=1e-5)
    images = RNG.normal(size=(3, 32, 32, 3)).astype("float32")
    ids = np.array([[28, 3, 9, 29, 0, 0], [28, 1, 2, 4, 5, 29], [28, 7, 0, 0, 0, 0]], "int32")

    def outputs(reference):
        with torch.no_grad():
            found = reference(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(ids != 0).long(),
                pixel_values=torch.tensor(images.transpose(0, 3, 1, 2).copy()),
            )
        names = ("image_embeds", "text_embeds", "logits_per_image")
        return [getattr(found, name).numpy() for name in names]

    def mine(model):
        features = compiled(lambda images, ids: (model.encode(images), model.encode_ids(ids)))(
            ops.convert_to_tensor(images), ops.convert_to_tensor(ids)
        )
        x, y = (keras.ops.convert_to_numpy(f) for f in features)
        x, y = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (x, y))
        return [x, y, np.exp(float(model.logit_scale.numpy())) * x @ y.T]

    expected = outputs(reference)
    assert np.ptp(expected[2]) > 0.1  # pictures and texts that differ
    for found, value in zip(mine(model), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5)
    to_transformers(model, tmp_path / "ours")
    again, info = transformers.AlignModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not (info["unexpected_keys"] or info["mismatched_keys"])
    unread = ("pooler", "num_batches_tracked")
    assert all(any(part in key for part in unread) for key in info["missing_keys"])
    for found, value in zip(outputs(again.eval()), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5)
    folder = resolve_preset(str(tmp_path / "theirs"))  # a preset, with its preprocessing
    loaded = ALIGN.from_preset(folder)
    for found, value in zip(loaded.get_weights(), model.get_weights(), strict=True):
        if value.dtype == "float32":  # and not the state of random streams
            np.testing.assert_array_equal(found, value)
    model = ALIGN(keras_ssl.backbones.small_resnet((16, 16, 3), 4), model.text_backbone)
    with pytest.raises(ValueError, match="needs an EfficientNet and a BertEncoder"):
        to_transformers(model, tmp_path / "refused")


@pytest.mark.parametrize("name", ["../model-1.safetensors", "/etc/passwd", "a/../../b", 3, ""])
def test_shards_outside_the_folder_are_refused(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **SIZES, **MLP}))
    index = {"weight_map": {"a": "model-0.safetensors", "b": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((ValueError, TypeError), match="inside its own folder|not supported"):
        from_transformers(tmp_path)


def test_preprocessing_is_that_of_the_processor(tmp_path):
    """Resize the short side, crop, rescale, normalise: as ViTImageProcessor does on a large
    smooth picture, up to where the windows of the two resizings end."""
    image_size, short = 28, 32
    settings = dict(
        do_resize=True,
        size={"shortest_edge": short},
        do_center_crop=True,
        crop_size={"height": image_size, "width": image_size},
        resample=3,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.25],
    )
    processor = transformers.BitImageProcessor(**settings)
    grid = np.linspace(0, 3, 64)[:, None] + np.linspace(0, 2, 64)[None]
    picture = (127 + 100 * np.sin(grid[..., None] + np.arange(3))).astype("uint8")
    expected = np.asarray(processor(picture)["pixel_values"][0]).transpose(1, 2, 0)
    official("vit", tmp_path)
    processor.save_pretrained(tmp_path)
    _, preprocessor, _ = from_transformers(tmp_path)
    assert preprocessor.image_converter.crop_fraction == 28 / 32
    found = keras.ops.convert_to_numpy(preprocessor(picture[None]))[0]
    np.testing.assert_allclose(found, expected, atol=0.06)
    model, _, _ = from_transformers(tmp_path)
    to_transformers(model, tmp_path / "ours", preprocessor=preprocessor)
    again = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    assert again["size"] == settings["size"] and again["crop_size"] == settings["crop_size"]
    np.testing.assert_allclose(again["image_mean"], settings["image_mean"], atol=1e-6)
    np.testing.assert_allclose(again["image_std"], settings["image_std"], atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "bert"}, "Received: model_type='bert'"),
        ({"hidden_act": "mish"}, "hidden_act must be one of"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"patch_size": [4, 8]}, "square"),
        ({"hidden_size": 32}, "'embeddings.cls_token' has shape"),
    ],
)
def test_wrong_configurations_are_named(tmp_path, change, message):
    official("vit", tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        from_transformers(tmp_path)


def test_folders_that_lack_files(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        from_transformers(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        from_transformers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **SIZES, **MLP}))
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        from_transformers(tmp_path)


def test_what_transformers_cannot_say_is_refused(tmp_path):
    sizes = dict(image_shape=(8, 8, 3), patch_size=4, hidden_dim=8, num_layers=1, num_heads=1)
    with pytest.raises(ValueError, match="num_register_tokens=0"):
        to_transformers(ViTBackbone(**sizes, num_register_tokens=2), tmp_path / "a")
    with pytest.raises(ValueError, match="Received: model of class Sequential"):
        to_transformers(keras.Sequential(), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_export_with_a_preprocessor(tmp_path):
    sizes = dict(image_shape=(8, 8, 3), patch_size=4, hidden_dim=8, num_layers=1, num_heads=1)
    preprocessor = preprocessor_for((8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.5)
    to_transformers(ViTBackbone(**sizes), tmp_path / "a", preprocessor=preprocessor)
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "a")
    assert processor.size["shortest_edge"] == 16
    assert list(processor.image_mean) == [0.5] * 3
