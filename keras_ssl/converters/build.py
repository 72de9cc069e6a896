"""Models from the papers' files: the layout is recognised by its names, the sizes by its shapes."""

import math
import re

import numpy as np

from keras_ssl.converters.convert import LoadReport, load_official, official_entries
from keras_ssl.converters.files import read_state_dict
from keras_ssl.converters.timm import present_names
from keras_ssl.presets import clear_errors
from keras_ssl.weight_files import within_state

# Heads are no tensor's size: those of the published widths.
_HEADS = {128: 4, 192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
_HEADS_MOCO_V3 = {**_HEADS, 384: 12}  # its ViT-Small is none of DeiT's

# As the sources evaluate: 224 of 256 pixels, by torchvision's default or by PIL's bicubic. The
# encoders of MAE and DINO have timm's names.
_BILINEAR = {"interpolation": "bilinear", "crop_fraction": 0.875}
_BICUBIC = {**_BILINEAR, "interpolation": "bicubic"}
_PREPROCESSING = {
    **dict.fromkeys(("mae", "dino", "dinov2", "timm_vit", "byol"), _BICUBIC),
    **dict.fromkeys(("moco", "moco_v3", "barlow_twins", "vicreg", "torchvision_resnet"), _BILINEAR),
    "simclr": {**_BICUBIC, "mean": (0.0,) * 3, "std": (1.0,) * 3},
    "clip": {  # the short side to the model's size, without a margin
        "interpolation": "bicubic",
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    },
}

# A name that only this layout has, first come first served.
_SIGNATURES = (
    ("clip", r"visual\.(class_embedding|attnpool\.positional_embedding)$"),
    ("moco", r"encoder_q\."),
    ("moco_v3", r"base_encoder\."),
    ("dinov2", r"(student|teacher)\.(dino_head|ibot_head)\."),
    ("dino", r"(student|teacher)\.(backbone|head)\."),
    ("simclr", r"base_model/conv2d/kernel$"),
    ("byol", r"online/.*conv"),
    ("mae", r"decoder_blocks\.0\."),
    ("vicreg", r"projector\.0\.bias$"),
    ("barlow_twins", r"projector\.0\.weight$"),
    ("torchvision_resnet", r"layer1\.0\.conv1\.weight$"),
    ("dinov2", r"blocks\.0\.ls1\.gamma$"),
    ("timm_vit", r"blocks\.0\.attn\.qkv\.weight$"),
)


def recognise(state: dict) -> str:
    """The layout of tensors, by their names.

    Args:
        state: a dict from official name to array.

    Returns:
        A key of `LAYOUTS`.

    Raises:
        ValueError: none that is known.

    Example:

    >>> keras_ssl.converters.recognise({"decoder_blocks.0.norm1.bias": np.zeros(8)})
    'mae'
    """
    for layout, pattern in _SIGNATURES:
        if any(re.match(pattern, name) for name in state):
            return layout
    first = ", ".join(sorted(state)[:8])
    raise ValueError(
        "The file has no known layout; build the model and call load_official(model, path, "
        f"layout=...). Received: tensors {first}, ..."
    )


def from_official(source, layout: str | None = None, key: str | None = None, **options) -> tuple:
    """Builds the model that a paper's file holds and loads its weights.

    Whole runs of MAE, MoCo, MoCo v3, DINO, Barlow Twins, VICReg, SimCLR and BYOL, and OpenAI's CLIP
    become the method, encoders alone (and DINOv2's) a `ViTBackbone` or a ResNet.

    Args:
        source: as for `read_state_dict`.
        layout: a key of `LAYOUTS`; recognised by the names when `None`.
        key: entry of a PyTorch file that holds the tensors.
        **options: of the backbone, where the shapes do not say: `num_heads`,
            `interpolation_offset`, ...

    Returns:
        `(model, report)`. `report.missing` names what the file did not have: these parts are new.

    Raises:
        ValueError: an unknown layout, or a file that lacks tensors of the encoder.
    """
    with clear_errors(source, "path"):
        return _built(present_names(read_state_dict(source, key)), layout, options)


def _built(state: dict, layout: str | None, options: dict) -> tuple:
    layout = layout or recognise(state)
    method = _METHODS.get(layout)
    if layout == "mae" and "decoder_embed.weight" not in state:
        method = None
    if layout == "dino" and not any(name.startswith("student.") for name in state):
        method = None
    with within_state(state, options, f"the layout {layout!r} of the file"):
        model = (method or _encoder)(_Tensors(state), layout, options)
    report = load_official(model, state, layout, strict=False)
    _check(model, report, layout)
    return model, report


def official_preprocessing(model, layout: str) -> dict | None:
    """How a layout's source makes pictures ready when it evaluates.

    Args:
        model: of `from_official`; it gives the image size.
        layout: a key of `LAYOUTS`.

    Returns:
        Arguments of `keras_ssl.layers.image_converter.preprocessor_for`; `None` where the source
        leaves that to other files, or the pictures are none of three channels.

    Example:

    >>> backbone = keras_ssl.backbones.ViTBackbone.from_size("vit_tiny")
    >>> keras_ssl.converters.official_preprocessing(backbone, "mae")["crop_fraction"]
    0.875
    """
    from keras_ssl.layers.image_converter import IMAGENET_MEAN, IMAGENET_STD, image_shape_of

    height, width, channels = image_shape_of(getattr(model, "backbone", model))
    if layout not in _PREPROCESSING or channels != 3:
        return None
    # DINOv2 ends its training at 518 pixels and is evaluated at 224.
    most = 224 if layout == "dinov2" else np.inf
    size = (min(height or 224, most), min(width or 224, most))
    return {
        "image_size": size,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        **_PREPROCESSING[layout],
    }


def _check(model, report: LoadReport, layout: str) -> None:
    backbone = getattr(model, "backbone", model)
    encoder = {id(v) for v in backbone.weights}
    needed = [
        entry.official
        for entry in official_entries(model, layout)
        if id(entry.variable) in encoder and entry.official in set(report.missing)
    ]
    if needed or report.unexpected:
        raise ValueError(
            f"The file does not fit the layout {layout!r}."
            + (f" Missing: {', '.join(needed[:24])}." if needed else "")
            + (f" Unexpected: {', '.join(report.unexpected[:24])}." if report.unexpected else "")
        )
    teacher = [name for name in report.missing if name.startswith(_TEACHERS)]
    if teacher and hasattr(model, "reset_teacher"):
        model.reset_teacher()


_TEACHERS = ("encoder_k.", "momentum_encoder.", "teacher.", "target/", "state/target/")


class _Tensors:
    """Tensors below a prefix, asked for by name or pattern."""

    def __init__(self, state: dict, prefix: str = ""):
        self.state, self.prefix = state, prefix

    def below(self, prefix: str) -> "_Tensors":
        return _Tensors(self.state, self.prefix + prefix)

    def __contains__(self, name) -> bool:
        return self.prefix + name in self.state

    def shape(self, name: str, axes: int = 2) -> tuple[int, ...]:
        if name not in self:
            raise ValueError(f"The file lacks {self.prefix + name!r}, which tells a size.")
        shape = tuple(self.state[self.prefix + name].shape)
        if not all(shape) or len(shape) != axes:
            raise ValueError(
                f"Tensor {self.prefix + name!r} tells a size, and is empty or does not have "
                f"{axes} axes. Received: shape={shape}"
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers `(\\d+)` a pattern of names finds."""
        pattern = re.compile(re.escape(self.prefix) + pattern)
        return len({m[1] for name in self.state if (m := pattern.match(name))})


# === Encoders ===


def _vit(tensors, layout: str, options: dict, **defaults):
    from keras_ssl.backbones import ViTBackbone

    dim, channels, patch, _ = tensors.shape("patch_embed.proj.weight", 4)
    class_token = "cls_token" in tensors
    registers = tensors.shape("register_tokens", 3)[1] if "register_tokens" in tensors else 0
    positions = tensors.shape("pos_embed", 3)[1] - int(class_token)
    side = round(positions**0.5)
    swiglu = "blocks.0.mlp.w12.weight" in tensors
    hidden = (
        tensors.shape("blocks.0.mlp.w12.weight")[0] // 2
        if swiglu
        else tensors.shape("blocks.0.mlp.fc1.weight")[0]
    )
    heads = (_HEADS_MOCO_V3 if layout == "moco_v3" else _HEADS).get(dim)
    if heads is None and "num_heads" not in options:
        raise ValueError(
            f"No published vision transformer has the width {dim}: pass num_heads=... to "
            "keras_ssl.converters.from_official."
        )
    found = dict(
        image_shape=(side * patch, side * patch, channels),
        patch_size=patch,
        hidden_dim=dim,
        num_layers=tensors.count(r"blocks\.(\d+)\."),
        num_heads=heads,
        mlp_dim=hidden,
        ffn="swiglu" if swiglu else "mlp",
        use_class_token=class_token,
        num_register_tokens=registers,
        use_mask_token=layout == "dinov2" and "mask_token" in tensors,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        layer_scale_init=1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        use_final_norm="norm.weight" in tensors,
    )
    if layout == "dino" or (layout == "dinov2" and not registers):
        defaults["interpolation_offset"] = 0.1
    defaults["interpolation_antialias"] = bool(registers)
    return ViTBackbone(**{**found, **defaults, **options})


def _resnet(tensors, options: dict):
    """torchvision's names; keras-hub's network wherever it can be that."""
    import keras_hub

    from keras_ssl.backbones import resnet

    filters = tensors.shape("conv1.weight", 4)[0]
    blocks = [tensors.count(rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    bottleneck = "layer1.0.conv3.weight" in tensors
    if filters != 64:
        return resnet(num_blocks=blocks, filters=filters, **options)
    return keras_hub.models.ResNetBackbone(
        **{
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 128, 256, 512],
            "stackwise_num_blocks": blocks,
            "stackwise_num_strides": [1, 2, 2, 2],
            "block_type": "bottleneck_block" if bottleneck else "basic_block",
            "image_shape": (224, 224, 3),
            **options,
        }
    )


def _backbone(tensors, layout, options, **defaults):
    if "patch_embed.proj.weight" in tensors:
        return _vit(tensors, layout, options, **defaults)
    return _resnet(tensors, options)


_ENCODERS = {"moco": "encoder_q.", "moco_v3": "base_encoder.", "dino": "teacher.backbone."}


def _encoder(tensors, layout: str, options: dict):
    for prefix in ("teacher.backbone.", "backbone.", _ENCODERS.get(layout, "")):
        inner = tensors.below(prefix)
        if "patch_embed.proj.weight" in inner or "conv1.weight" in inner:
            tensors = inner
            break
    sincos = dict(position_embedding="sincos", initializer="mae") if layout == "mae" else {}
    return _backbone(tensors, layout, options, **sincos)


# === Methods ===


def _mae(tensors, layout, options):
    from keras_ssl.models import MAE

    backbone = _vit(tensors, layout, options, position_embedding="sincos", initializer="mae")
    dim = tensors.shape("decoder_embed.weight")[0]
    return MAE(
        backbone,
        decoder_hidden_dim=dim,
        decoder_num_layers=tensors.count(r"decoder_blocks\.(\d+)\."),
        decoder_num_heads=max(1, dim // 32),  # 16 for the published 512
        decoder_mlp_ratio=tensors.shape("decoder_blocks.0.mlp.fc1.weight")[0] / dim,
    )


def _moco(tensors, layout, options):
    from keras_ssl.models import MoCo

    encoder = tensors.below("encoder_q.")
    version = 2 if "fc.2.weight" in encoder else 1
    queue = tensors.shape("queue")[1] if "queue" in tensors else 65536
    return MoCo(
        _backbone(encoder, layout, options),
        projection_dim=encoder.shape("fc.2.weight" if version == 2 else "fc.weight")[0],
        version=version,
        queue_size=queue,
    )


def _moco_v3(tensors, layout, options):
    from keras_ssl.models import MoCoV3

    encoder = tensors.below("base_encoder.")
    transformer = "patch_embed.proj.weight" in encoder
    defaults = {}
    if transformer:
        defaults = dict(
            position_embedding="sincos_moco_v3",
            initializer="moco_v3",
            freeze_patch_projection=True,
        )
    head = encoder.below("head." if transformer else "fc.")
    layers = tensors.count(re.escape(head.prefix) + r"(\d+)\.weight")
    layers = sum(f"{3 * i}.weight" in head for i in range(layers))
    return MoCoV3(
        _backbone(encoder, layout, options, **defaults),
        projection_dim=head.shape(f"{3 * (layers - 1)}.weight")[0],
        projection_hidden_dim=head.shape("0.weight")[0],
        num_projection_layers=layers,
        normalize_prediction="predictor.4.running_mean" in tensors,
    )


def _dino(tensors, layout, options):
    from keras_ssl.models import DINO

    head = tensors.below("student.head.")
    output_dim, bottleneck_dim = head.shape("last_layer.weight_v")
    gain = tensors.state.get(head.prefix + "last_layer.weight_g")
    return DINO(
        _backbone(tensors.below("student.backbone."), layout, options),
        output_dim=output_dim,
        bottleneck_dim=bottleneck_dim,
        hidden_dim=head.shape("mlp.0.weight")[0],
        normalize_last_layer=gain is None or bool(np.all(gain == 1)),
    )


def _redundancy(tensors, layout, options):
    from keras_ssl.models import BarlowTwins, VICReg

    cls = VICReg if layout == "vicreg" else BarlowTwins
    return cls(
        _backbone(tensors.below("backbone."), layout, options),
        projection_dim=tensors.shape("projector.6.weight")[0],
        projection_hidden_dim=[tensors.shape(f"projector.{i}.weight")[0] for i in (0, 3)],
    )


def _simclr(tensors, layout, options):
    from keras_ssl.backbones import resnet
    from keras_ssl.models import SimCLR

    # The stem, four shortcuts, and three convolutions to a block.
    blocks = (tensors.count(r"(base_model/conv2d[_0-9]*)/kernel$") - 5) // 3
    depth = {16: 50, 33: 101, 50: 152}.get(blocks)
    if depth is None:
        raise ValueError(
            "Of SimCLR's checkpoints ResNets without selective kernels are offered, 50, 101 or 152 "
            f"layers deep. Received: {blocks} blocks"
        )
    filters = tensors.shape("base_model/conv2d/kernel", 4)[-1]
    layers = tensors.count(r"head_contrastive/nl_(\d+)/")
    options_of_head = {}
    if layers:
        first, last = (f"head_contrastive/nl_{i}/dense/kernel" for i in (0, layers - 1))
        options_of_head = dict(
            projection_dim=tensors.shape(last)[1],
            projection_hidden_dim=tensors.shape(first)[1],
            num_projection_layers=layers,
        )
    encoder = resnet(depth, padding="simclr", filters=filters, **options)
    return SimCLR(encoder, **options_of_head)


def _byol(tensors, layout, options):
    from keras_ssl.backbones import resnet
    from keras_ssl.models import BYOL

    group = r"online/[^/]*/~/block_group_{}/~/block_(\d+)/"
    blocks = [tensors.count(group.format(i)) for i in range(4)]
    stem = next(n for n in tensors.state if re.match(r"online/.*initial_conv/w$", n))
    return BYOL(
        resnet(padding="same", num_blocks=blocks, filters=tensors.shape(stem, 4)[-1], **options),
        projection_dim=tensors.shape("online/projector/linear_1/w")[1],
        projection_hidden_dim=tensors.shape("online/projector/linear/w")[1],
        prediction_hidden_dim=tensors.shape("online/predictor/linear/w")[1],
    )


def _clip(tensors, layout, options):
    from keras_ssl.backbones import ModifiedResNet, TextTransformer, ViTBackbone
    from keras_ssl.models import CLIP

    visual = tensors.below("visual.")
    if "class_embedding" in visual:
        dim, channels, patch, _ = visual.shape("conv1.weight", 4)
        side = patch * math.isqrt(visual.shape("positional_embedding")[0] - 1)
        projection_dim = visual.shape("proj")[1]
        found = dict(
            image_shape=(side, side, channels),
            patch_size=patch,
            use_pre_norm=True,
            patch_bias=False,
            initializer="clip",
            **_clip_blocks(visual, dim),
        )
        backbone = ViTBackbone(**{**found, **options})
    else:
        side = 32 * math.isqrt(visual.shape("attnpool.positional_embedding")[0] - 1)
        projection_dim = visual.shape("attnpool.c_proj.weight")[0]
        found = dict(
            image_shape=(side, side, visual.shape("conv1.weight", 4)[1]),
            stackwise_num_blocks=[visual.count(rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)],
            width=visual.shape("layer1.0.conv1.weight", 4)[0],
            output_dim=projection_dim,
        )
        backbone = ModifiedResNet(**{**found, **options})
    length, dim = tensors.shape("positional_embedding")
    text_backbone = TextTransformer(
        vocabulary_size=tensors.shape("token_embedding.weight")[0],
        context_length=length,
        **_clip_blocks(tensors, dim),
    )
    return CLIP(backbone, text_backbone, projection_dim)


def _clip_blocks(tensors, dim: int) -> dict:
    """Heads of 64 channels in every released model."""
    return dict(
        hidden_dim=dim,
        num_layers=tensors.count(r"transformer\.resblocks\.(\d+)\."),
        num_heads=max(1, dim // 64),
        mlp_dim=tensors.shape("transformer.resblocks.0.mlp.c_fc.weight")[0],
        activation="quick_gelu",
        layer_norm_epsilon=1e-5,
    )


_METHODS = {
    "clip": _clip,
    "mae": _mae,
    "moco": _moco,
    "moco_v3": _moco_v3,
    "dino": _dino,
    "barlow_twins": _redundancy,
    "vicreg": _redundancy,
    "simclr": _simclr,
    "byol": _byol,
}
