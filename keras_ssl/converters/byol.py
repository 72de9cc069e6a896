"""deepmind-research/byol: haiku's arrays by their paths.

The released files are pickles with Python objects, which are refused; an `.npz` of their arrays
named `online/<module>/<parameter>`, `target/...` and, for the averages of batch normalisation,
`state/online/<module>/~/mean_ema/average` is read. docs/presets.md shows how to write one. The
network is `keras_ssl.backbones.resnet(padding="same")`.
"""

from keras_ssl.converters.layouts import Map
from keras_ssl.converters.resnet import CLASSES, convolutions


def _norm(owner: str, path: str, ours: str, axes: int):
    """A BatchNorm's arrays, which have the axes of what they scale."""
    lead = f"lead{axes}"
    return (
        (f"{owner}/{path}/scale", f"{ours}.gamma", lead),
        (f"{owner}/{path}/offset", f"{ours}.beta", lead),
        (f"state/{owner}/{path}/~/mean_ema/average", f"{ours}.moving_mean", lead),
        (f"state/{owner}/{path}/~/var_ema/average", f"{ours}.moving_variance", lead),
    )


def _encoder(backbone, owner: str = "online", ours: str = ""):
    layers = convolutions(backbone)
    root = f"res_net{1 + sum(kind == 'conv' and c > 0 for *_, c, kind in layers)}/~/"
    rows = []
    for name, stage, block, convolution, kind in layers:
        where, number = root, convolution - 1
        if stage is None:
            official = {"conv": "initial_conv", "bn": "initial_batchnorm"}[kind]
        else:
            where = f"{root}block_group_{stage}/~/block_{block}/~/"
            official = {"conv": f"conv_{number}", "bn": f"batchnorm_{number}"}[kind]
            if convolution == 0:
                official = {"conv": "shortcut_conv", "bn": "shortcut_batchnorm"}[kind]
        if kind == "conv":
            rows.append((f"{owner}/{where}{official}/w", f"{ours}@{name}.kernel", "same"))
        else:
            rows += _norm(owner, where + official, f"{ours}@{name}", axes=3)
    return tuple(rows)


def _head(owner: str, official: str, ours: str):
    return (
        (f"{owner}/{official}/linear/w", f"{ours}.linears.0.kernel", "same"),
        (f"{owner}/{official}/linear/b", f"{ours}.linears.0.bias", "same"),
        *_norm(owner, f"{official}/batch_norm", f"{ours}.norms.0", axes=1),
        (f"{owner}/{official}/linear_1/w", f"{ours}.linears.1.kernel", "same"),
    )


def _run(model):
    return (
        *_encoder(model.backbone, "online", "backbone."),
        *_head("online", "projector", "projection_head"),
        *_head("online", "predictor", "prediction_head"),
        *_encoder(model.teacher_backbone, "target", "teacher_backbone."),
        *_head("target", "projector", "teacher_projection_head"),
    )


# The probe that was trained beside it, the target's predictor that nothing reads, and the averages'
# counters and running sums.
_IGNORED = (
    "*/classifier/*",
    "target/predictor/*",
    "state/target/predictor/*",
    "*/counter",
    "*/hidden",
)
LAYOUTS = {
    "byol": {
        "BYOL": Map(_run, ignored=_IGNORED),
        **dict.fromkeys(
            CLASSES,
            Map(
                _encoder,
                ignored=(*_IGNORED, "target/*", "state/target/*", "*/projector/*", "*/predictor/*"),
            ),
        ),
    },
}
