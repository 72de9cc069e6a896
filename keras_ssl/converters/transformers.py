"""The transformers layout: a folder with `config.json`, safetensors and `preprocessor_config.json`.

Each architecture has a file beside this one with its name map, `build` (from a configuration to a
model) and `config_of` (back). Here is what they share.
"""

import json
import math
import os
import re

import numpy as np

from keras_ssl.converters.layouts import dense, norm, split_dense
from keras_ssl.safe_files import inside

# Of several names for one function, the first is the one that is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# What a value is, by its name.
_SIZES = re.compile(r"num_.*|.*_(sizes?|dim|channels|repeats|embeddings|ratios)|depths|strides")
_RATES = re.compile(r".*_(eps|epsilon|rate|ratio|prob|coefficient|theta|value)")
_FLAGS = re.compile(r"use_.*|.*_bias|norm_pix_loss")
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}


# === Configurations ===


class Config:
    """A `config.json` whose values are asked for by name, with clear refusals."""

    def __init__(self, values: dict, where: str = "config.json"):
        self.values = values
        self.where = where

    def __getitem__(self, name):
        if self.values.get(name) is None:
            raise ValueError(
                f"{self.where} has no {name!r}. Received: model_type="
                f"{self.values.get('model_type')!r} with {sorted(self.values)}"
            )
        return self.get(name)

    def get(self, name, default=None):
        value = self.values.get(name)
        if value is None:
            return default
        least = 0 if name == "num_register_tokens" else 1
        if _SIZES.fullmatch(name):
            values, wanted = value if isinstance(value, list) else [value], "a positive integer"
            good = values and all(type(v) is int and v >= least for v in values)
        elif _RATES.fullmatch(name):
            good, wanted = is_number(value) and value >= 0, "a number"
        elif _FLAGS.fullmatch(name):
            good, wanted = isinstance(value, bool), "true or false"
        elif name.endswith(("_config", "_cfg")):
            good, wanted = isinstance(value, dict), "an object"
        else:
            return value
        if not good:
            raise ValueError(f"{self.where}: {name} must be {wanted}. Received: {name}={value!r}")
        return value

    def sub(self, name) -> "Config":
        return Config(self.get(name, {}), f"{self.where}, {name}")

    def must_be(self, **expected) -> None:
        """Refuses settings that the model here cannot have."""
        for name, allowed in expected.items():
            if name in self.values and self.values[name] not in allowed:
                raise ValueError(
                    f"{self.where}: {name} must be one of {list(allowed)}; nothing else is offered "
                    f"here. Received: {name}={self.values[name]!r}"
                )

    def pair(self, name) -> tuple[int, int]:
        value = self[name]
        pair = (value, value) if isinstance(value, int) else tuple(value)
        if len(pair) != 2:
            raise ValueError(
                f"{self.where}: {name} must be one size or two. Received: {name}={value!r}"
            )
        return pair

    def activation(self, name: str = "hidden_act") -> str:
        self.must_be(**{name: tuple(ACTIVATIONS)})
        return ACTIVATIONS[self.get(name, "gelu")]


def is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def vit_arguments(config: Config, epsilon: float) -> dict:
    """Arguments of `ViTBackbone` that every vision configuration names alike."""
    patch = config.pair("patch_size")
    if patch[0] != patch[1]:
        raise ValueError(f"Patches must be square. Received: patch_size={list(patch)}")
    return dict(
        image_shape=(*config.pair("image_size"), config.get("num_channels", 3)),
        patch_size=patch[0],
        hidden_dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        layer_norm_epsilon=config.get("layer_norm_eps", epsilon),
    )


def vit_config(backbone) -> dict:
    """The converse of `vit_arguments`."""
    height, width, channels = backbone.image_shape
    return {
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "patch_size": backbone.patch_size,
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "layer_norm_eps": backbone.layer_norm_epsilon,
        "qkv_bias": backbone.qkv_bias,
        "hidden_act": activation_name(backbone.activation),
    }


def activation_name(activation: str) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)


def mlp_width(backbone) -> int:
    """Hidden width of the blocks' MLP."""
    return backbone.blocks[0].mlp.hidden_dim


def require(backbone, layout: str, **expected) -> None:
    """Refuses to export what a layout cannot say."""
    for name, value in expected.items():
        if getattr(backbone, name) != value:
            raise ValueError(
                f"The layout {layout!r} needs {name}={value!r}. "
                f"Received: a backbone with {name}={getattr(backbone, name)!r}"
            )


# === Names ===


def vit_layer(official: str, ours: str):
    """A layer of ViTModel, ViTMAE and I-JEPA."""
    attention = f"{official}.attention.attention"
    return (
        *norm(f"{official}.layernorm_before", f"{ours}.norm1"),
        *split_dense(
            (f"{attention}.query", f"{attention}.key", f"{attention}.value"),
            f"{ours}.attention.qkv",
        ),
        *dense(f"{official}.attention.output.dense", f"{ours}.attention.projection"),
        *norm(f"{official}.layernorm_after", f"{ours}.norm2"),
        *dense(f"{official}.intermediate.dense", f"{ours}.mlp.fc1"),
        *dense(f"{official}.output.dense", f"{ours}.mlp.fc2"),
    )


def vit_embeddings(ours: str = ""):
    return (
        ("embeddings.cls_token", f"{ours}class_token", "same"),
        ("embeddings.position_embeddings", f"{ours}position_embedding", "same"),
        *dense("embeddings.patch_embeddings.projection", f"{ours}patch_embedding", "patch_conv"),
    )


def vit_encoder(ours: str = ""):
    """ViTModel without its pooler."""
    return (
        *vit_embeddings(ours),
        *vit_layer("encoder.layer.{i}", f"{ours}blocks.{{i}}"),
        *norm("layernorm", f"{ours}norm"),
    )


# === Folders ===


def read_json(folder: str, name: str) -> dict | None:
    """A JSON object of a folder, or None where there is no such file."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({error}). Received: {path!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object. Received: {path!r}")
    return value


def weight_files(folder: str) -> list[str]:
    """The safetensors (else PyTorch) files of a folder, also where they are sharded."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if os.path.isfile(os.path.join(folder, name)):
            return [os.path.join(folder, name)]
        index = read_json(folder, name + ".index.json")
        if index is not None:
            shards = index.get("weight_map")
            if not isinstance(shards, dict):
                raise ValueError(f"{name}.index.json has no weight_map. Received: {folder!r}")
            return sorted({inside(folder, shard) for shard in shards.values()})
    raise ValueError(
        "The folder holds neither model.safetensors nor pytorch_model.bin. "
        f"Received: {folder!r} with {sorted(os.listdir(folder))}"
    )


def preprocessing(folder: str) -> dict | None:
    """What `preprocessor_config.json` says, in the words of `preprocessor_for`."""
    config = read_json(folder, "preprocessor_config.json")
    if config is None:
        return None
    size, crop = config.get("size"), config.get("crop_size")

    def sides(value):
        if isinstance(value, dict) and "shortest_edge" in value:
            found = value["shortest_edge"], None
        elif isinstance(value, dict):
            found = value.get("height"), value.get("width")
        else:
            found = value, value
        if not all(side is None or (type(side) is int and 0 < side <= 2**14) for side in found):
            raise ValueError(
                "preprocessor_config.json: sizes must be positive integers, no larger than "
                f"{2**14}. Received: {value!r}"
            )
        return found

    height, width = sides(size)
    fraction = 1.0
    if config.get("do_center_crop") and crop is not None:
        cropped = sides(crop)
        if height is not None:
            fraction = min(1.0, cropped[0] / height)
        height, width = cropped
    squash = not config.get("do_center_crop") and width is not None
    scaled = config.get("do_rescale", True)
    normalised = config.get("do_normalize", True)
    zero = 1.0 if scaled and config.get("rescale_offset") else 0.0  # to [-1, 1] by the rescaling
    mean = config.get("image_mean", [0.5] * 3) if normalised else [zero] * 3
    std = config.get("image_std", [0.5] * 3) if normalised else [1.0] * 3
    factor = config.get("rescale_factor", 1 / 255) if scaled else 1.0
    for name, value, good in (
        ("image_mean", mean, isinstance(mean, list) and all(map(is_number, mean))),
        ("image_std", std, isinstance(std, list) and all(is_number(s) and s > 0 for s in std)),
        ("rescale_factor", factor, is_number(factor) and factor > 0),
    ):
        if not good:
            raise ValueError(
                f"preprocessor_config.json: {name} is no such number. Received: {name}={value!r}"
            )
    return {
        "image_size": None if height is None else (height, width or height),
        "crop_fraction": fraction,
        "crop_to_aspect_ratio": not squash,
        "interpolation": _RESAMPLE.get(config.get("resample", 3), "bicubic"),
        "mean": tuple(mean),
        "std": tuple(std),
        "factor": factor,
    }


def preprocessor_config(converter) -> dict:
    """The converse of `preprocessing`, of an `ImageConverter`."""
    height, width = converter.image_size
    std = [1 / (255 * s) for s in np.broadcast_to(converter.scale, 3)]
    mean = [-o * s for o, s in zip(np.broadcast_to(converter.offset, 3), std, strict=True)]
    fraction = getattr(converter, "crop_fraction", 1.0)
    crops = converter.crop_to_aspect_ratio
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(min(height, width) / fraction)}
        if crops
        else {"height": height, "width": width},
        "do_center_crop": crops,
        **({"crop_size": {"height": height, "width": width}} if crops else {}),
        "resample": next(k for k, v in _RESAMPLE.items() if v == converter.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [float(m) for m in mean],
        "image_std": [float(s) for s in std],
    }


def write_safetensors(path: str, tensors: dict[str, np.ndarray]) -> None:
    """A .safetensors file: the header's length, the header as JSON, the bytes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    names = sorted(tensors)
    for name in names:
        array = tensors[name]
        kind = {"float32": "F32", "float16": "F16", "int64": "I64"}[array.dtype.name]
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
