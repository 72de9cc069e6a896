"""Models from folders in the layouts of transformers and timm, and back to transformers."""

import json
import os

from keras_ssl.converters import transformers as hf
from keras_ssl.converters import (
    transformers_align,
    transformers_clip,
    transformers_dinov2,
    transformers_dinov3,
    transformers_dinov3_convnext,
    transformers_vit,
    transformers_vit_mae,
)
from keras_ssl.converters.build import from_official
from keras_ssl.converters.convert import load_official, to_official
from keras_ssl.converters.files import read_state_dict
from keras_ssl.layers.image_converter import preprocessor_for
from keras_ssl.presets import clear_errors
from keras_ssl.safe_files import check_links, replacing
from keras_ssl.weight_files import within_state

_SOURCES = (
    transformers_align,
    transformers_clip,
    transformers_dinov2,
    transformers_dinov3,
    transformers_dinov3_convnext,
    transformers_vit,
    transformers_vit_mae,
)
MODEL_TYPES = {name: source for source in _SOURCES for name in source.TYPES}


def from_transformers(folder) -> tuple:
    """Builds the model of a folder in the transformers layout and loads its weights.

    Args:
        folder: with `config.json` and `model.safetensors` (or its shards, or
            `pytorch_model.bin`, read as weights only).

    Returns:
        `(model, preprocessor, report)`: an `MAE` for `vit_mae`, a `CLIP`, `SigLIP` or `ALIGN` for
        theirs, a `ViTBackbone` (`ConvNeXtBackbone` for `dinov3_convnext`) for encoders alone; an
        `ImagePreprocessor`, or `None` where the folder has none; and the `LoadReport`.

    Raises:
        ValueError: an architecture or a setting that is not offered, files that are missing or
            damaged, tensors that do not fit; the message names them.
    """
    folder = os.fspath(folder)
    check_links(folder)
    with clear_errors(folder, "folder"):
        return _built(folder)


def _built(folder: str) -> tuple:
    values = hf.read_json(folder, "config.json")
    if values is None:
        raise ValueError(f"The folder has no config.json. Received: {folder!r}")
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise ValueError(
            f"Architectures that are offered: {', '.join(sorted(MODEL_TYPES))}. "
            f"Received: model_type={model_type!r}"
        )
    source = MODEL_TYPES[model_type]
    layout, prefix = source.TYPES[model_type]
    state = {}
    for path in hf.weight_files(folder):
        state.update(read_state_dict(path))
    with within_state(state, values, os.path.join(folder, "config.json")):
        model = source.build(hf.Config(values))
    if prefix and any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    for theirs, ours in getattr(source, "RENAMED", ()):
        state = {
            ours + name[len(theirs) :] if name.startswith(theirs) else name: array
            for name, array in state.items()
        }
    # No registers are a tensor of no rows there, and none here.
    empty = sorted(name for name, array in state.items() if not array.size)
    state = {name: array for name, array in state.items() if array.size}
    # An encoder without its decoder is what fine-tuned checkpoints hold: named in the report.
    report = load_official(model, state, layout)
    report.ignored.extend(empty)
    described = hf.preprocessing(folder)
    return model, described and preprocessor_for(**described), report


def from_timm(folder) -> tuple:
    """Builds the encoder of a folder in timm's layout on the hub and loads its weights.

    Args:
        folder: with `config.json` (`"architecture"`, and `"pretrained_cfg"` for the pictures) and
            `model.safetensors` or `pytorch_model.bin`, of a vision transformer or a ResNet.

    Returns:
        `(model, preprocessor, report)`, as `from_transformers`.

    Raises:
        ValueError: an architecture that is not offered, files that are missing or damaged, tensors
            that do not fit; the message names them.
    """
    folder = os.fspath(folder)
    check_links(folder)
    with clear_errors(folder, "folder"):
        return _built_of_timm(folder)


def _built_of_timm(folder: str) -> tuple:
    config = hf.Config(hf.read_json(folder, "config.json") or {})
    state = {}
    for path in hf.weight_files(folder):
        state.update(read_state_dict(path))
    try:
        model, report = from_official(state)
    except ValueError as error:
        raise ValueError(
            "Of timm's models vision transformers and ResNets are offered whose tensors have the "
            f"papers' names ({error}) Received: architecture={config['architecture']!r} in "
            f"{folder!r}"
        ) from error
    pictures = config.sub("pretrained_cfg")
    if "mean" not in pictures.values or "std" not in pictures.values:
        return model, None, report
    pictures.must_be(interpolation=("nearest", "bilinear", "bicubic"))
    _, height, width = pictures.get("input_size", (3, None, None))
    preprocessor = preprocessor_for(
        None if height is None else (height, width),
        pictures["mean"],
        pictures["std"],
        interpolation=pictures.get("interpolation", "bilinear"),
        crop_fraction=pictures.get("crop_pct", 0.875),
        crop_to_aspect_ratio=pictures.get("crop_mode", "center") != "squash",
    )
    return model, preprocessor, report


def to_transformers(model, folder, preprocessor=None) -> None:
    """Writes a model to a folder that `transformers` loads, with equal outputs.

    `config.json` and `model.safetensors`, and `preprocessor_config.json` where there is a
    preprocessor. The files are written beside the folder, which then takes its place.

    Args:
        model: an `MAE`, `CLIP`, `SigLIP` or `ALIGN`, or a `ViTBackbone` that one of the
            architectures can express: DINO's and plain encoders (`vit`, `ijepa` without class
            token), DINOv2's with layer scale (`dinov2`, `dinov2_with_registers`), rotary ones
            (`dinov3_vit`); or a `ConvNeXtBackbone` (`dinov3_convnext`).
        folder: where to write.
        preprocessor: an `ImagePreprocessor`; the model's own when `None`.

    Raises:
        ValueError: a model that no architecture of transformers expresses; it says why.
    """
    source = _source_of(model)
    config = source.config_of(model)
    layout, _ = source.TYPES[config["model_type"]]
    tensors = {name: array.astype("float32") for name, array in to_official(model, layout).items()}
    preprocessor = preprocessor or getattr(model, "preprocessor", None)
    with replacing(folder, stale=(".safetensors", ".bin", ".index.json")) as new:
        _write_json(new, "config.json", {**config, "dtype": "float32"})
        hf.write_safetensors(os.path.join(new, "model.safetensors"), tensors)
        if preprocessor is not None and preprocessor.image_converter.image_size is not None:
            described = hf.preprocessor_config(preprocessor.image_converter)
            _write_json(new, "preprocessor_config.json", described)


def _source_of(model):
    if hasattr(model, "decoder_blocks"):
        return transformers_vit_mae
    if type(model).__name__ == "ALIGN":
        return transformers_align
    if type(model).__name__ in ("CLIP", "SigLIP"):
        return transformers_clip
    if hasattr(model, "downsamplings"):
        return transformers_dinov3_convnext
    if not hasattr(model, "patch_embedding"):
        raise ValueError(
            "The transformers layout is written for MAE, CLIP, SigLIP, ALIGN, ViTBackbone and "
            "ConvNeXtBackbone; else pass `model.backbone`. "
            f"Received: model of class {type(model).__name__}"
        )
    if model.position_embedding_type == "rotary":
        return transformers_dinov3
    return transformers_vit if model.layer_scale_init is None else transformers_dinov2


def _write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
