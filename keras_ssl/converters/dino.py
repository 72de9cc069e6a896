"""facebookresearch/dino: the hub's backbones, and whole runs (student, teacher and centre)."""

from keras_ssl.converters.layouts import Map, dense, head, prefixed
from keras_ssl.converters.timm import encoder


def dino_head(official: str, ours: str, layer) -> tuple:
    """Its DINOHead: a Sequential of Linear, [BatchNorm], GELU, and a weight-normalised Linear."""
    last = (
        (f"{official}.last_layer.weight_g", f"{ours}.weight_g", "linear"),
        (f"{official}.last_layer.weight_v", f"{ours}.weight_v", "linear"),
    )
    if layer.num_layers == 1:
        return (*dense(f"{official}.mlp", f"{ours}.linears.0"), *last)
    step = 3 if layer.use_batch_norm else 2
    places = [step * i for i in range(layer.num_layers)]
    norms = [place + 1 for place in places[:-1]] if layer.use_batch_norm else []
    return (*head(f"{official}.mlp", ours, tuple(places), tuple(norms)), *last)


def _run(model):
    """The entries "student" and "teacher" of a checkpoint, and `center` of its "dino_loss"."""
    return (
        *prefixed(encoder("backbone."), "student.backbone."),
        *dino_head("student.head", "head", model.head),
        *prefixed(encoder("teacher_backbone."), "teacher.backbone."),
        *dino_head("teacher.head", "teacher_head", model.teacher_head),
        ("center", "center.center", "same"),
    )


LAYOUTS = {
    "dino": {
        # The hub's files hold the teacher's backbone alone, by timm's names.
        "ViTBackbone": Map(
            encoder(),
            ignored=("head.*",),
            left=("register_tokens", "mask_token"),
            inside=("teacher.backbone.", "backbone."),
        ),
        "DINO": Map(
            _run,
            ignored=("*.num_batches_tracked",),
            left=("backbone.mask_token", "teacher_backbone.mask_token"),
            zeros=("center",),
        ),
    },
}
