"""facebookresearch/moco (v1 and v2) and facebookresearch/moco-v3: whole runs and encoders."""

from keras_ssl.converters.layouts import Map, dense, head
from keras_ssl.converters.resnet import COUNTERS, backbone_maps, encoder_rows


def _moco(model):
    rows = []
    for official, prefix in (("encoder_q.", ""), ("encoder_k.", "teacher_")):
        backbone = getattr(model, f"{prefix}backbone")
        projection = f"{prefix}projection_head"
        rows += encoder_rows(backbone, official, f"{prefix}backbone.")
        if model.version == 1:
            rows += dense(f"{official}fc", f"{projection}.linears.0")
        else:
            rows += head(f"{official}fc", projection, (0, 2))
    # Keys stand in columns there and in rows here.
    return (
        *rows,
        ("queue", "queue.rows", "linear"),
        ("queue_ptr", "queue.pointer", "scalar"),
    )


def _moco_v3(model):
    transformer = hasattr(model.backbone, "patch_embedding")
    name = "head" if transformer else "fc"
    last = model.num_projection_layers
    rows = []
    for official, prefix in (("base_encoder.", ""), ("momentum_encoder.", "teacher_")):
        backbone = getattr(model, f"{prefix}backbone")
        rows += encoder_rows(backbone, official, f"{prefix}backbone.")
        # Linear, BatchNorm, ReLU, ..., Linear, BatchNorm.
        linears, norms = (tuple(3 * i + step for i in range(last)) for step in (0, 1))
        rows += head(f"{official}{name}", f"{prefix}projection_head", linears, norms)
    norms = (1, 4) if model.normalize_prediction else (1,)
    return (*rows, *head("predictor", "prediction_head", (0, 3), norms))


_LEFT = ("backbone.mask_token", "teacher_backbone.mask_token")
LAYOUTS = {
    "moco": {
        "MoCo": Map(_moco, ignored=(COUNTERS,), left=_LEFT),
        **backbone_maps("encoder_q.", ("encoder_q.fc.*", "encoder_k.*", "queue", "queue_ptr")),
    },
    "moco_v3": {
        "MoCoV3": Map(_moco_v3, ignored=(COUNTERS,), left=_LEFT),
        **backbone_maps(
            "base_encoder.",
            ("base_encoder.head.*", "base_encoder.fc.*", "momentum_encoder.*", "predictor.*"),
        ),
    },
}
