"""Models by name: a method, a backbone, a few numbers."""

import difflib
import inspect

import keras
import keras_hub

from keras_ssl import models, presets
from keras_ssl.augmentation import Views
from keras_ssl.backbones import (
    CONVNEXT_SIZES,
    VIT_SIZES,
    ConvNeXtBackbone,
    ViTBackbone,
    small_resnet,
)
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.weight_files import load_preset

# He et al. 2016, table 1.
_RESNETS = {
    "resnet18": ("basic_block", [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet50": ("bottleneck_block", [3, 4, 6, 3], [64, 128, 256, 512]),
}
# What a method's paper asks of its vision transformer.
_VIT_OPTIONS = {
    "mae": {"position_embedding": "sincos", "initializer": "mae"},
    "moco_v3": {
        "position_embedding": "sincos_moco_v3",
        "initializer": "moco_v3",
        "freeze_patch_projection": True,
    },
}
# Two views that differ by a strong blur, which leaves little of a picture of 32 pixels.
_TWO_VIEWS = ("simclr", "moco", "moco_v3", "byol", "simsiam", "barlow_twins", "vicreg")
SMALL = 64


def list_methods() -> dict[str, type]:
    """Methods that pretrain on images alone: name to class.

    Example:

    >>> "simclr" in keras_ssl.runs.list_methods()
    True
    """
    methods = {}
    for cls in vars(models).values():
        if isinstance(cls, type) and issubclass(cls, SSLTask) and cls is not SSLTask:
            on_images = not hasattr(cls, "encode_text")
            if on_images and "backbone" in inspect.signature(cls.__init__).parameters:
                methods[cls.__module__.rsplit(".", 1)[-1]] = cls
    return dict(sorted(methods.items()))


def list_backbones() -> list[str]:
    """Names that `build_backbone` knows, besides presets."""
    return ["small_resnet", *_RESNETS, *CONVNEXT_SIZES, *VIT_SIZES]


def build_backbone(
    name: str,
    image_size: int,
    patch_size: int | None = None,
    method: str | None = None,
    **options,
) -> keras.Model:
    """An image backbone by name.

    Args:
        name: one of `list_backbones()`; or a preset (a shipped name, a folder, `hf://...`,
            `kaggle://...`), whose weights are loaded.
        image_size: side in pixels.
        patch_size: of a vision transformer; None for 4 up to 48 pixels, 8 up to 96, else 16.
        method: the method it is for: its paper's positions and initial weights are taken.
        **options: of the backbone's class.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: for an unknown name or option.

    Example:

    >>> backbone = keras_ssl.runs.build_backbone("vit_nano", 32, method="mae")
    >>> backbone.patch_size
    4
    """
    shape = (image_size, image_size, 3)
    if name in VIT_SIZES:
        patch_size = patch_size or default_patch_size(image_size)
        if image_size % patch_size:
            raise ValueError(
                "The image size must be a multiple of the patch size. "
                f"Received: image_size={image_size}, patch_size={patch_size}"
            )
        options = {"patch_size": patch_size, **_VIT_OPTIONS.get(method, {}), **options}
        return ViTBackbone.from_size(name, image_shape=shape, **options)
    if patch_size is not None and name in ("small_resnet", *_RESNETS, *CONVNEXT_SIZES):
        raise ValueError(
            f"`patch_size` is for vision transformers. Received: patch_size={patch_size} "
            f"with backbone={name!r}"
        )
    if name == "small_resnet":
        return small_resnet(shape, **options)
    if name in CONVNEXT_SIZES:
        return ConvNeXtBackbone.from_size(name, image_shape=shape, **options)
    if name in _RESNETS:
        block, blocks, filters = _RESNETS[name]
        return keras_hub.models.ResNetBackbone(
            **{
                "input_conv_filters": [64],
                "input_conv_kernel_sizes": [7],
                "stackwise_num_filters": filters,
                "stackwise_num_blocks": blocks,
                "stackwise_num_strides": [1, 2, 2, 2],
                "block_type": block,
                "image_shape": shape,
                **options,
            }
        )
    try:
        folder = presets.resolve_preset(name)
    except ValueError:
        raise ValueError(
            f"`backbone` must be one of {list_backbones()} or a preset: one of "
            f"{sorted(presets.list_presets())}, a folder made by save_to_preset(), hf://... or "
            f"kaggle://... Received: backbone={name!r}"
        ) from None
    return load_preset(keras_hub.models.Backbone.from_preset, folder, **options)


def default_patch_size(image_size: int) -> int:
    """4 up to 48 pixels, 8 up to 96, else 16: between 16 and 200 patches."""
    return 4 if image_size <= 48 else 8 if image_size <= 96 else 16


def build_model(
    method: str,
    backbone: str | keras.Model = "vit_nano",
    image_size: int = 224,
    patch_size: int | None = None,
    views: str = "auto",
    seed: int | None = None,
    backbone_options: dict | None = None,
    **options,
) -> SSLTask:
    """A method over a backbone, both by name.

    Args:
        method: one of `list_methods()`; hyphens and case do not matter.
        backbone: as for `build_backbone`, or a model.
        image_size: side in pixels.
        patch_size: of a vision transformer.
        views: a recipe of `keras_ssl.augmentation.RECIPES`; `"auto"` for the paper's, for two-view
            methods `"simclr_cifar"` (without blur) up to 64 pixels.
        seed: of the model's random streams.
        backbone_options: of the backbone's class.
        **options: of the method's class.

    Returns:
        A task of `keras_ssl.models`, ready for `fit`. DINO and the like take their `small`
        variant up to 64 pixels.

    Raises:
        ValueError: for an unknown method, backbone or option.

    Example:

    >>> model = keras_ssl.runs.build_model("byol", "small_resnet", 32, seed=0)
    """
    method = method_name(method)
    cls = list_methods()[method]
    if isinstance(backbone, str):
        backbone = build_backbone(
            backbone, image_size, patch_size, method, **(backbone_options or {})
        )
    small = image_size <= SMALL
    if views == "auto" and small and method in _TWO_VIEWS:
        views = "simclr_cifar"
    make = getattr(cls, "small", cls) if small else cls
    accepted = {**_parameters(cls.__init__), **_parameters(make)}
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        names = sorted(set(accepted) - {"self", "backbone", "seed", "name", "kwargs", "options"})
        raise ValueError(
            f"{cls.__name__} has no option {unknown[0]!r}. {suggestion(unknown[0], names)}"
            f"It has {names}. Received: {unknown}"
        )
    if views != "auto":
        options["augmenter"] = Views(views, size=image_size, seed=seed)
    return make(backbone, seed=seed, **options)


def method_name(name: str) -> str:
    """The name of a method as `list_methods` writes it."""
    plain = name.lower().replace("-", "").replace("_", "")
    for known in list_methods():
        if known.replace("_", "") == plain:
            return known
    known = list(list_methods())
    raise ValueError(
        f"`method` must be one of {known}. {suggestion(name, known)}Received: method={name!r}"
    )


def suggestion(name: str, known) -> str:
    """`"Did you mean ...? "`, or nothing where no known name is close."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def _parameters(function) -> dict:
    return dict(inspect.signature(function).parameters)
