"""ResNets: torchvision's names, which timm, MoCo, Barlow Twins and VICReg share.

Our side is `keras_hub.models.ResNetBackbone` or `keras_ssl.backbones.resnet`, whose layers have the
same names: `stack<stage>_block<block>_<convolution>_conv` and `_bn`, where convolution 0 is that of
the shortcut.
"""

import re

from keras_ssl.converters.layouts import Map, batch_norm, prefixed
from keras_ssl.converters.timm import encoder

_NAME = re.compile(r"stack(\d+)_block(\d+)_(\d+)_(conv|bn)$")
# Every backbone whose layers these names are found in.
CLASSES = ("ResNetBackbone", "ResNet", "Functional")
COUNTERS = "*num_batches_tracked"


def convolutions(backbone) -> list[tuple]:
    """`(layer's name, stage, block, convolution, kind)` of a ResNet; the stem's stage is None."""
    found = []
    for layer in backbone.layers:
        match = _NAME.match(layer.name)
        if match:
            stage, block, convolution = map(int, match.groups()[:3])
            found.append((layer.name, stage, block, convolution, match[4]))
        elif layer.name in ("conv1_conv", "conv1_bn"):
            found.append((layer.name, None, None, 1, layer.name[6:]))
    return found


def _official(stage, block, convolution, kind) -> str:
    if stage is None:
        return "conv1" if kind == "conv" else "bn1"
    where = f"layer{stage + 1}.{block}"
    if convolution == 0:
        return f"{where}.downsample.{0 if kind == 'conv' else 1}"
    return f"{where}.{kind}{convolution}"


def resnet_rows(backbone, ours: str = "") -> tuple:
    """torchvision's names of a ResNet's layers."""
    rows = []
    for name, *place, kind in convolutions(backbone):
        official = _official(*place, kind)
        if kind == "conv":
            rows.append((f"{official}.weight", f"{ours}@{name}.kernel", "conv"))
        else:
            rows.extend(batch_norm(official, f"{ours}@{name}"))
    return tuple(rows)


def encoder_rows(backbone, official: str = "", ours: str = "backbone.") -> tuple:
    """The names of a backbone below a prefix: a vision transformer's or a ResNet's."""
    transformer = hasattr(backbone, "patch_embedding")
    rows = encoder(ours) if transformer else resnet_rows(backbone, ours)
    return prefixed(rows, official)


def backbone_maps(official: str = "", ignored: tuple = ()) -> dict[str, Map]:
    """Maps of a method's file onto its encoder alone."""
    ignored = (*ignored, COUNTERS)

    def rows(backbone):
        return encoder_rows(backbone, official, "")

    maps = dict.fromkeys(CLASSES, Map(rows, ignored=ignored))
    left = ("register_tokens", "mask_token")
    return {**maps, "ViTBackbone": Map(rows, ignored=ignored, left=left)}


LAYOUTS = {
    # Also timm's ResNets, and what Barlow Twins and VICReg released as resnet50.pth.
    "torchvision_resnet": {
        name: table for name, table in backbone_maps(ignored=("fc.*",)).items() if name in CLASSES
    },
}
