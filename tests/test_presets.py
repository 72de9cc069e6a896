"""Released weights by name, path and handle; a hub on the loopback interface; refusals."""

import json
import os
import re
import shutil
import sys
import warnings

import h5py
import keras
import keras_hub
import numpy as np
import pytest
import torch
from hub_server import serve
from keras import ops
from toy import crops, images, mae, vit
from toy import moco as moco_toy

import keras_ssl
from keras_ssl import converters, downloads, presets
from keras_ssl.backbones import ViTBackbone
from keras_ssl.layers.image_converter import preprocessor_for
from keras_ssl.models import DINO, MAE, ImageClassifier, MoCo, MoCoV3

PICTURES = images(8)


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def values(model):
    return [ops.convert_to_numpy(w) for w in model.weights]


def assert_same(a, b):
    for x, y in zip(values(a), values(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """What a hub holds: MAE and DINO's encoder in the transformers layout."""
    root = tmp_path_factory.mktemp("hub")
    preprocessor = preprocessor_for((16, 16), (0.4,) * 3, (0.2,) * 3, "bilinear", 0.5)
    model = mae(vit(position_embedding="sincos", initializer="mae"))
    converters.to_transformers(model, root / "mae", preprocessor)
    encoder = vit()
    converters.to_transformers(encoder, root / "dino", preprocessor)
    return {"us/mae": root / "mae", "us/dino": root / "dino"}, model, encoder


# === The registry ===


def test_registry():
    entries = keras_ssl.list_presets(shipped=False, released=True)
    assert len(entries) >= 40
    fields = {
        *("method", "source", "architecture", "parameters", "image_size", "normalization"),
        *("licence", "figure", "figure_source"),
    }
    for name, entry in entries.items():
        assert re.fullmatch(r"[a-z0-9_]+", name) and fields <= entry.keys()
        assert re.match(r"hf://[\w.-]+/[\w.-]+$|https://", entry["source"])
        if not entry["source"].startswith("hf://"):
            assert "how" in entry or entry["layout"] in converters.LAYOUTS
        assert hasattr(keras_ssl.models, entry["method"]) or entry["method"] in (
            "ConvNeXtBackbone",
            "ResNetBackbone",
            "ViTBackbone",
        )
    assert entries["mae_vit_base_imagenet"]["parameters"] == 111_907_840
    assert keras_ssl.list_presets().keys() <= keras_ssl.list_presets(released=True).keys()
    assert not keras_ssl.list_presets().keys() & entries.keys()


def test_parameters_are_those_of_our_models():
    """The registry's counts, of an encoder small enough to build."""
    entry = keras_ssl.list_presets(released=True)["dino_vit_small_16"]
    backbone = ViTBackbone.from_size("vit_small", patch_size=16)
    assert backbone.count_params() == entry["parameters"]


# === The hub ===


def test_method_by_name_backbone_and_classifier(released, monkeypatch):
    folders, model, encoder = released
    registry = {
        "tiny_mae": {"source": "hf://us/mae", "method": "MAE"},
        "tiny_dino": {"source": "hf://us/dino", "method": "DINO"},
    }
    monkeypatch.setattr(presets, "_released", lambda: registry)
    with serve(folders) as (hub, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        loaded = MAE.from_preset("tiny_mae")
        assert_same(loaded.backbone, model.backbone)
        # Decoder and mask token are there too.
        for name, value in converters.to_official(model, "mae").items():
            np.testing.assert_array_equal(converters.to_official(loaded, "mae")[name], value)
        asked = len(hub.requests)
        assert not any(path.endswith((".py", ".bin")) for _, path, _ in hub.requests)
        MAE.from_preset("tiny_mae", mask_ratio=0.5)
        downloads = [r for r in hub.requests[asked:] if r[0] == "GET" and "/resolve/" in r[1]]
        assert not downloads  # cached
        assert_same(ViTBackbone.from_preset("tiny_dino"), encoder)
        assert_same(ViTBackbone.from_preset("hf://us/dino"), encoder)
    # Without the hub the cache serves; preprocessing came along.
    converter = loaded.preprocessor.image_converter
    assert converter.crop_fraction == 0.5 and converter.interpolation == "bilinear"
    classifier = ImageClassifier.from_preset("tiny_dino", num_classes=3)
    assert_same(classifier.backbone, encoder)
    assert classifier.preprocessor.image_converter.image_size == (16, 16)
    folder = presets.resolve_preset("tiny_dino")
    hubs = keras_hub.models.ImageClassifier.from_preset(folder, num_classes=3)
    assert type(hubs) is ImageClassifier
    assert_same(hubs.backbone, encoder)
    prepared = ops.convert_to_numpy(loaded.preprocess(np.full((1, 32, 32, 3), 51, "uint8")))
    np.testing.assert_allclose(prepared, (0.2 - 0.4) / 0.2, atol=1e-5)


def test_broken_download_resumes(released, monkeypatch):
    folders, model, _ = released
    with serve(folders) as (hub, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        # It writes what has arrived in chunks of this size.
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
        hub.cut = 4000
        for _ in range(8):  # huggingface_hub may try again by itself
            try:
                loaded = MAE.from_preset("hf://us/mae")
                break
            except ValueError as error:
                assert "broke off" in str(error) and "resumes" in str(error)
        ranges = [r[2] for r in hub.requests if r[1].endswith("model.safetensors") and r[2]]
        assert any(int(r.split("=")[1].split("-")[0]) > 0 for r in ranges if r)
    assert_same(loaded.backbone, model.backbone)


def test_hub_errors_are_clear(released, monkeypatch):
    folders, _, _ = released
    with serve(folders) as (_, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ValueError, match="no such repository"):
            MAE.from_preset("hf://us/nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="is not in the cache.*pass its path"):
        MAE.from_preset("hf://us/mae")
    with pytest.raises(ValueError, match="the form hf://user/name"):
        MAE.from_preset("hf://a/b/c/d")


def test_kaggle_errors_are_clear(monkeypatch):
    import kagglehub

    def fails(handle):
        raise ConnectionError("Max retries exceeded\nand more")

    with pytest.raises(ValueError, match="the form kaggle://user/model.*preset='kaggle://bad'"):
        MAE.from_preset("kaggle://bad")
    monkeypatch.setattr(kagglehub, "model_download", fails)
    with pytest.raises(ValueError, match=r"or cannot be reached.*\(Max retries exceeded\)"):
        MAE.from_preset("kaggle://us/mae/keras/tiny")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ValueError, match="pip install kagglehub"):
        MAE.from_preset("kaggle://us/mae/keras/tiny")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    official_file(tmp_path / "files")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be written to .*file/keras_ssl/.*KERAS_HOME"):
        ViTBackbone.from_preset(str(tmp_path / "files" / "vit.npz"))


def test_keras_presets_come_from_the_hub_too(released, monkeypatch, tmp_path):
    model = mae()
    model.save_to_preset(tmp_path / "native")
    with serve({"us/native": tmp_path / "native"}) as (_, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert_same(MAE.from_preset("hf://us/native"), model)


def test_files_to_be_fetched_by_hand_say_so():
    with pytest.raises(ValueError, match="is a pickle, which can run any code"):
        keras_ssl.models.BYOL.from_preset("byol_resnet50")


def official_file(folder):
    """Weights as a plain download: an `.npz` of a width whose heads are known."""
    folder.mkdir()
    encoder = vit(hidden_dim=128, num_layers=1, num_heads=4)
    np.savez(folder / "vit.npz", **converters.to_official(encoder, "timm_vit"))
    return encoder


def test_a_plain_download_goes_on_where_it_broke_off(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_CHUNK", 5000)
    encoder = official_file(tmp_path / "files")
    with serve({"us/files": tmp_path / "files"}) as (hub, address):
        entry = {"source": f"{address}/us/files/resolve/main/vit.npz", "layout": "timm_vit"}
        monkeypatch.setattr(presets, "_released", lambda: {"tiny": entry})
        hub.cut = 20000
        monkeypatch.setattr(downloads.download, "__defaults__", (1,))  # no second try by itself
        with pytest.raises(ValueError, match="broke off.*20,000 of .* arrived"):
            ViTBackbone.from_preset("tiny")
        assert_same(ViTBackbone.from_preset("tiny"), encoder)
        assert [r[2] for r in hub.requests] == [None, "bytes=20000-"]
        ViTBackbone.from_preset("tiny")
        assert len(hub.requests) == 2  # cached
    folder = tmp_path / "keras" / "keras_ssl" / "files" / "tiny"
    assert sorted(os.listdir(folder)) == ["vit.npz", "vit.npz.lock"]
    assert (folder / "vit.npz").read_bytes() == (tmp_path / "files" / "vit.npz").read_bytes()


def test_a_plain_download_of_a_file_that_changed_begins_again(tmp_path):
    (tmp_path / "served").mkdir()
    served = tmp_path / "served" / "a.bin"
    served.write_bytes(b"1" * 9000)
    with serve({"us/files": tmp_path / "served"}) as (hub, address):
        url = f"{address}/us/files/resolve/main/a.bin"
        hub.cut = 4000
        with pytest.raises(ConnectionError, match="4,000 of 9,000"):
            downloads.download(url, str(tmp_path / "got" / "a.bin"), attempts=1)
        served.write_bytes(b"2" * 8000)
        downloads.download(url, str(tmp_path / "got" / "a.bin"))
        assert (tmp_path / "got" / "a.bin").read_bytes() == b"2" * 8000
        # A connection that breaks once is made again, and goes on.
        hub.broken.clear()
        downloads.download(url, str(tmp_path / "got" / "b.bin"))
        assert (tmp_path / "got" / "b.bin").read_bytes() == b"2" * 8000
        assert hub.requests[-1][2] == "bytes=4000-"
        # Killed between the last byte and the name: nothing is left to ask for.
        (tmp_path / "got" / "b.bin").rename(tmp_path / "got" / "c.bin.part")
        (tmp_path / "got" / "c.bin.version").write_text(hub.tag(served))
        downloads.download(url, str(tmp_path / "got" / "c.bin"))
        assert (tmp_path / "got" / "c.bin").read_bytes() == b"2" * 8000
        assert [r[2] for r in hub.requests[-2:]] == ["bytes=8000-", None]
        with pytest.raises(OSError, match="404"):
            downloads.download(url + "x", str(tmp_path / "got" / "d.bin"))
    left = {name for name in os.listdir(tmp_path / "got") if not name.endswith(".lock")}
    assert left == {"a.bin", "c.bin"}


def test_a_plain_download_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
        ViTBackbone.from_preset("mae_vit_base_imagenet_encoder")


def test_a_damaged_file_is_removed(monkeypatch, tmp_path):
    entry = {"source": "http://127.0.0.1:1/a.npz", "layout": "timm_vit", "md5_prefix": "00"}
    monkeypatch.setattr(presets, "_released", lambda: {"tiny": entry})
    with pytest.raises(ValueError, match="cannot be reached"):
        ViTBackbone.from_preset("tiny")
    folder = tmp_path / "keras" / "keras_ssl" / "files" / "tiny"
    os.makedirs(folder, exist_ok=True)
    np.savez(folder / "a.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="its MD5 does not begin with '00'"):
        ViTBackbone.from_preset("tiny")
    assert not (folder / "a.npz").exists()


# === Official files ===


def wide(**kwargs):
    """A width whose heads are known, as a file does not tell them."""
    return vit(**{**dict(hidden_dim=128, num_layers=1, num_heads=4), **kwargs})


def test_mae_from_the_path_of_its_file(tmp_path):
    model = MAE(
        wide(position_embedding="sincos", initializer="mae"),
        decoder_hidden_dim=32,
        decoder_num_layers=1,
        decoder_num_heads=1,
    )
    state = converters.to_official(model, "mae")
    torch.save({"model": {k: torch.tensor(v) for k, v in state.items()}}, tmp_path / "mae.pth")
    path = str(tmp_path / "mae.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = MAE.from_preset(path)
    for name, value in converters.to_official(loaded, "mae").items():
        np.testing.assert_array_equal(value, state[name])
    assert_same(ViTBackbone.from_preset(path), model.backbone)
    classifier = ImageClassifier.from_preset(path, num_classes=2, pooling="mean")
    assert_same(classifier.backbone, model.backbone)


def test_moco_v3_and_what_its_file_lacks(tmp_path):
    options = dict(projection_dim=8, projection_hidden_dim=12, augmenter=None)
    backbone = wide(position_embedding="sincos_moco_v3", initializer="moco_v3")
    model = MoCoV3(backbone, **options)
    state = converters.to_official(model, "moco_v3")
    np.savez(tmp_path / "whole.npz", **state)
    loaded = MoCoV3.from_preset(str(tmp_path / "whole.npz"))
    for name, value in converters.to_official(loaded, "moco_v3").items():
        np.testing.assert_array_equal(value, state[name])
    part = {k: v for k, v in state.items() if not k.startswith("momentum_encoder.")}
    np.savez(tmp_path / "part.npz", **part)
    with pytest.warns(UserWarning, match="new: momentum_encoder.cls_token"):
        loaded = MoCoV3.from_preset(str(tmp_path / "part.npz"))
    assert_same(loaded.teacher_backbone, loaded.backbone)  # and not random
    del part["base_encoder.blocks.0.norm1.weight"]
    np.savez(tmp_path / "less.npz", **part)
    with pytest.raises(ValueError, match="Missing: base_encoder.blocks.0.norm1.weight"):
        MoCoV3.from_preset(str(tmp_path / "less.npz"))


def test_moco_of_a_resnet_is_recognised(tmp_path):
    encoder = keras_ssl.backbones.resnet(
        num_blocks=(1, 1, 1, 1), filters=4, image_shape=(32, 32, 3)
    )
    model = MoCo(encoder, projection_dim=4, queue_size=6, augmenter=crops())
    np.savez(tmp_path / "moco.npz", **converters.to_official(model, "moco"))
    found, report = converters.from_official(tmp_path / "moco.npz", image_shape=(32, 32, 3))
    assert isinstance(found, MoCo) and found.queue_size == 6 and not report.missing
    assert_same(found.backbone, encoder)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_clip_from_the_path_of_its_file(tmp_path, kind):
    options = dict(activation="quick_gelu", layer_norm_epsilon=1e-5, mlp_dim=24)
    backbone = wide(use_pre_norm=True, patch_bias=False, **{**options, "num_heads": 2})
    if kind == "resnet":
        backbone = keras_ssl.backbones.ModifiedResNet((64, 64, 3), (1, 2, 1, 1), 8, output_dim=12)
    text = keras_ssl.backbones.TextTransformer(49408, 7, 64, 1, 1, mlp_dim=24)
    model = keras_ssl.models.CLIP(backbone, text, projection_dim=12)
    for i, weight in enumerate(model.weights):
        if keras.backend.is_float_dtype(weight.dtype):
            draws = np.random.default_rng(i).normal(size=weight.shape)
            weight.assign(draws.astype("float16").astype("float32"))
    state = {k: v.astype("float16") for k, v in converters.to_official(model, "clip").items()}
    np.savez(tmp_path / "clip.npz", **state, context_length=np.int64(7))
    path = str(tmp_path / "clip.npz")
    loaded = keras_ssl.models.CLIP.from_preset(path)
    assert_same(loaded.backbone, backbone)
    assert_same(loaded.text_backbone, text)
    pictures, captions = PICTURES[:2], ["a cat", "a dog"]
    model.preprocessor = loaded.preprocessor
    np.testing.assert_allclose(
        loaded.classify(pictures, captions), model.classify(pictures, captions), atol=1e-6
    )
    converter = loaded.preprocessor.image_converter
    assert converter.crop_fraction == 1 and converter.image_size == backbone.image_shape[:2]
    np.testing.assert_allclose(converter.offset[0], -0.48145466 / 0.26862954)
    assert_same(type(backbone).from_preset(path), backbone)


def test_files_that_are_nothing_known(tmp_path):
    np.savez(tmp_path / "a.npz", weight=np.ones(3))
    with pytest.raises(ValueError, match="no known layout.*Received: tensors weight"):
        ViTBackbone.from_preset(str(tmp_path / "a.npz"))
    state = converters.to_official(vit(), "timm_vit")
    np.savez(tmp_path / "b.npz", **state)
    with pytest.raises(ValueError, match="has the width 16: pass num_heads"):
        ViTBackbone.from_preset(str(tmp_path / "b.npz"))
    model, _ = converters.from_official(tmp_path / "b.npz", num_heads=2)
    assert_same(model, model) and model.hidden_dim == 16


def test_preprocessing_by_path_is_that_by_name(tmp_path, monkeypatch):
    """A file says nothing of its pictures; its source does, and the registry says the same."""
    entries = keras_ssl.list_presets(shipped=False, released=True)
    bilinear_or_not = {"torchvision_resnet"}  # DINO's ResNet is bicubic, the others are not
    for name, entry in entries.items():
        if "preprocessing" in entry and entry["layout"] not in bilinear_or_not:
            model = vit(image_shape=(224, 224, 3), patch_size=112)
            found = converters.official_preprocessing(model, entry["layout"])
            assert {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()} == (
                entry["preprocessing"]
            ), name
    state = converters.to_official(wide(), "timm_vit")
    np.savez(tmp_path / "vit.npz", **state)
    folder = keras_ssl.resolve_preset(str(tmp_path / "vit.npz"))
    preprocessor = keras_hub.models.ImageClassifierPreprocessor.from_preset(folder)
    converter = preprocessor.image_converter
    assert converter.image_size == (16, 16) and converter.crop_fraction == 0.875
    # DINOv2's files are of 518 pixels and evaluated at 224.
    large = vit(image_shape=(518, 518, 3), patch_size=259, layer_scale_init=1.0)
    assert converters.official_preprocessing(large, "dinov2")["image_size"] == (224, 224)


def test_a_conversion_is_made_again_where_it_would_be_another(tmp_path, monkeypatch):
    np.savez(tmp_path / "vit.npz", **converters.to_official(wide(), "timm_vit"))
    entry = {"layout": "timm_vit", "licence": "free"}
    first = presets._converted(str(tmp_path / "vit.npz"), entry)
    assert presets._converted(str(tmp_path / "vit.npz"), {**entry, "licence": "none"}) == first
    other = {"image_size": (8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    second = presets._converted(str(tmp_path / "vit.npz"), {**entry, "preprocessing": other})
    converter = keras_hub.models.ImageClassifierPreprocessor.from_preset(second).image_converter
    assert converter.image_size == (8, 8)
    monkeypatch.setattr(presets, "CONVERSION", presets.CONVERSION + 1)
    third = presets._converted(str(tmp_path / "vit.npz"), entry)
    assert len({first, second, third}) == 3


def test_a_resnet_keeps_its_crop(tmp_path):
    """In keras-hub's own classes, in ours, and where a preset is evaluated by its name."""
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )
    np.savez(tmp_path / "r.npz", **converters.to_official(encoder, "torchvision_resnet"))
    folder = keras_ssl.resolve_preset(str(tmp_path / "r.npz"))
    classifier = keras_hub.models.ImageClassifier.from_preset(folder, num_classes=2)
    assert type(classifier).__name__ == "ResNetImageClassifier"
    model = keras_ssl.runs.load_model(tmp_path / "r.npz")
    assert_same(model.backbone, encoder)
    picture = np.zeros((1, 256, 256, 3), "uint8")
    picture[:, 16:-16, 16:-16] = 255  # what 224 of 256 pixels see
    expected = (1 - 0.485) / 0.229
    for preprocessor in (classifier.preprocessor, model.preprocessor):
        assert isinstance(preprocessor, keras_hub.models.ResNetImageClassifierPreprocessor)
        assert preprocessor.image_converter.crop_fraction == 0.875
        seen = ops.convert_to_numpy(preprocessor(picture))
        assert seen.shape == (1, 224, 224, 3)
        np.testing.assert_allclose(seen[..., 0], expected, rtol=1e-5)
    # keras-hub's own converter is still what it finds for its own presets.
    found = keras_hub.layers.ImageConverter.from_preset(folder)
    assert found.crop_fraction == 0.875
    plain = keras_hub.models.ResNetImageClassifierPreprocessor.image_converter_cls
    assert plain is keras_hub.layers.ResNetImageConverter


# === Going on ===


def test_a_method_over_a_released_encoder(released):
    """DINO over weights without heads: what is new is named, the teacher is the encoder, and the
    head is warmed up while the encoder rests."""
    folders, _, encoder = released
    options = dict(output_dim=12, hidden_dim=8, bottleneck_dim=4, augmenter=crops(), seed=1)
    with pytest.warns(UserWarning, match="are new: .*head") as caught:
        model = DINO.from_preset(str(folders["us/dino"]), **options)
    assert "qkv" not in str(caught[0].message)
    assert_same(model.backbone, encoder)
    assert_same(model.teacher_backbone, encoder)
    assert model.preprocessor.image_converter.crop_fraction == 0.5
    head = ops.convert_to_numpy(model.head.linears[0].kernel)
    model.backbone.trainable = False
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(PICTURES, batch_size=8, verbose=0)
    assert_same(model.backbone, encoder)
    assert np.abs(ops.convert_to_numpy(model.head.linears[0].kernel) - head).max() > 0
    model.backbone.trainable = True
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(PICTURES, batch_size=8, verbose=0)
    moved = [
        np.abs(a - b).max() for a, b in zip(values(model.backbone), values(encoder), strict=True)
    ]
    assert max(moved) > 0
    with pytest.raises(ValueError, match="an encoder alone"):
        keras_ssl.models.SSLTask.from_preset(str(folders["us/dino"]))


# === Small files ===


def test_stored_in_half_the_bytes(tmp_path):
    """float16 on the disk, the model's own dtype in memory; what float16 cannot hold stays."""
    model = moco_toy(encoder := vit(num_layers=1))
    large = encoder.class_token
    large.assign(ops.full(large.shape, 1e6))
    model.seen_batches.assign(70_001)
    model.save_to_preset(tmp_path / "whole")
    model.save_to_preset(tmp_path / "half", storage_dtype="float16")
    loaded = MoCo.from_preset(str(tmp_path / "half"))
    assert {w.dtype for w in loaded.weights} == {w.dtype for w in model.weights}
    for found, expected in zip(values(loaded), values(model), strict=True):
        if expected.dtype == "float32" and np.abs(expected).max() < 65504:
            expected = expected.astype("float16").astype("float32")
        np.testing.assert_array_equal(found, expected)
    for name in ("model.weights.h5", "task.weights.h5"):
        kinds = {"whole": set(), "half": set()}
        for folder, found in kinds.items():
            with h5py.File(tmp_path / folder / name) as file:
                file.visititems(
                    lambda _, item, found=found: (
                        found.add(str(item.dtype)) if isinstance(item, h5py.Dataset) else None
                    )
                )
        assert kinds["half"] >= {"float16"} and "float16" not in kinds["whole"]
    backbone = ViTBackbone.from_preset(str(tmp_path / "half"))
    assert_same(backbone, loaded.backbone)
    model.save_to_preset(tmp_path / "half")  # whole again
    assert_same(MoCo.from_preset(str(tmp_path / "half")), model)
    with pytest.raises(ValueError, match="storage_dtype='int8'"):
        model.save_to_preset(tmp_path / "half", storage_dtype="int8")


def test_going_on_with_other_pictures(tmp_path):
    """From a preset with the full state: teacher, queue and random streams are there, and the next
    steps are those of the model that was saved. From rounded weights they are nearly so."""
    model = moco_toy()
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(PICTURES, batch_size=8, epochs=2, verbose=0)
    tolerances = {None: 1e-6, "float16": 2e-3}
    for storage in tolerances:
        model.save_to_preset(tmp_path / str(storage), storage_dtype=storage)
    others = images(8, seed=5)
    expected = model.fit(others, batch_size=8, epochs=2, verbose=0).history["loss"]
    for storage, tolerance in tolerances.items():
        loaded = MoCo.from_preset(str(tmp_path / str(storage)))
        assert int(loaded.seen_batches) == 2 and int(loaded.queue.pointer) == 16
        loaded.compile(keras.optimizers.SGD(0.1))
        losses = loaded.fit(others, batch_size=8, epochs=2, verbose=0).history["loss"]
        np.testing.assert_allclose(losses, expected, atol=10 * tolerance)


# === Safety ===


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "preset"
    mae(vit(num_layers=1, position_embedding="sincos", initializer="mae")).save_to_preset(path)
    return path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def foreign(content):
    content["config"]["augmenter"] = {
        "module": "os",
        "class_name": "system",
        "config": "touch broken-in",
        "registered_name": None,
    }


def code(content):
    content["config"]["augmenter"] = {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"function": {"class_name": "__lambda__", "config": {"code": "4wA="}}},
        "registered_name": None,
    }


@pytest.mark.parametrize("change, name", [(foreign, "'system'"), (code, "'Lambda'")])
def test_presets_cannot_name_code(preset, change, name):
    edit(preset / "task.json", change)
    with pytest.raises(ValueError, match=f"task.json names the class {name}"):
        MAE.from_preset(str(preset))


@pytest.mark.parametrize("name", ["../secret.weights.h5", "/etc/passwd", "a/../../b", 3])
def test_presets_cannot_name_files_outside(preset, name):
    os.remove(preset / "model.weights.h5")
    index = {"metadata": {"total_size": 1}, "weight_map": {"/layers/dense": [name]}}
    (preset / "model.weights.json").write_text(json.dumps(index))
    for load in (MAE.from_preset, ViTBackbone.from_preset):
        with pytest.raises(ValueError, match="only name files inside its own folder"):
            load(str(preset))


def test_other_files_named_outside(preset):
    edit(preset / "preprocessor.json", lambda c: c["config"].update(config_file="../a.json"))
    with pytest.raises(ValueError, match="inside its own folder"):
        MAE.from_preset(str(preset))


def test_weights_cannot_lead_out_of_their_file(preset, tmp_path):
    """HDF5 has links to other files; a preset's may have none."""
    path = preset / "model.weights.h5"
    shutil.copy(path, tmp_path / "other.h5")
    with h5py.File(path, "a") as file:
        name = []
        file.visititems(lambda n, item: name.append(n) if isinstance(item, h5py.Dataset) else None)
        del file[name[0]]
        file[name[0]] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/" + name[0])
    with pytest.raises(ValueError, match="model.weights.h5"):
        MAE.from_preset(str(preset))


def test_a_tensor_of_another_size_is_named(preset):
    path = preset / "model.weights.h5"
    with h5py.File(path, "a") as file:
        names = []
        file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
        name = next(n for n in names if file[n].shape == (16, 48))
        del file[name]
        file[name] = np.zeros((2000, 2000), "float32")
    with pytest.raises(ValueError, match="does not fit this architecture") as error:
        MAE.from_preset(str(preset))
    assert "qkv" in str(error.value)
