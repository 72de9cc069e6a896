"""facebookresearch/dinov2: released backbones, and the training code's student and teacher."""

from keras_ssl.converters.dino import dino_head
from keras_ssl.converters.layouts import Map, prefixed
from keras_ssl.converters.timm import encoder, present_names, registers


def backbone(prefix: str = ""):
    return (
        *encoder(prefix),
        *registers(prefix),
        ("mask_token", f"{prefix}mask_token", "same"),
    )


def _networks(model):
    rows = []
    for official, ours in (("student.", ""), ("teacher.", "teacher_")):
        rows += prefixed(backbone(f"{ours}backbone."), official=f"{official}backbone.")
        for name in ("dino_head", "ibot_head"):
            head = getattr(model, name)
            if head is not None:
                rows += dino_head(f"{official}{name}", f"{ours}{name}", head)
    return rows


_IGNORED = ("mask_token", "head.*")
LAYOUTS = {
    "dinov2": {
        "DINOv2": Map(_networks, left=("dino_center", "ibot_center"), renamed=present_names),
        "ViTBackbone": Map(
            backbone(),
            ignored=_IGNORED,
            inside=("teacher.backbone.", "backbone."),
            renamed=present_names,
        ),
        "ImageClassifier": Map(
            backbone("backbone."),
            ignored=_IGNORED,
            left=("head_norm", "output_dense"),
            renamed=present_names,
        ),
    },
}
