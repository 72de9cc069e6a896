"""facebookresearch/barlowtwins and facebookresearch/vicreg: whole runs.

What they released as resnet50.pth has torchvision's names: layout "torchvision_resnet".
"""

from keras_ssl.converters.layouts import Map, head
from keras_ssl.converters.resnet import COUNTERS, backbone_maps, encoder_rows


def _run(model):
    return (
        *encoder_rows(model.backbone, "backbone."),
        *head("projector", "projection_head", (0, 3, 6), (1, 4)),
    )


# `bn` standardises inside Barlow Twins' loss: its moving statistics are never read.
_IGNORED = ("bn.*", "backbone.fc.*", COUNTERS)
LAYOUTS = {
    "barlow_twins": {
        "BarlowTwins": Map(_run, ignored=_IGNORED, left=("backbone.mask_token",)),
        **backbone_maps("backbone.", ("projector.*", *_IGNORED)),
    },
    "vicreg": {
        "VICReg": Map(_run, ignored=_IGNORED, left=("backbone.mask_token",)),
        **backbone_maps("backbone.", ("projector.*", *_IGNORED)),
    },
}
