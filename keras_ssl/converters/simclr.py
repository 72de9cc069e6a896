"""google-research/simclr: TensorFlow checkpoints of SimCLR and SimCLR v2 without selective kernels.

Its layers are numbered in the order in which they were made: the stem, then of every block the
shortcut's convolution, where there is one, and the others. The network is
`keras_ssl.backbones.resnet(padding="simclr")`.
"""

from keras_ssl.converters.layouts import Map
from keras_ssl.converters.resnet import CLASSES, convolutions

_STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


def _order(item):
    _, stage, block, convolution, _ = item
    return (-1, 0, 0) if stage is None else (stage, block, convolution)


def _encoder(backbone, ours: str = ""):
    rows = []
    for kind, official in (("conv", "conv2d"), ("bn", "batch_normalization")):
        layers = sorted((c for c in convolutions(backbone) if c[-1] == kind), key=_order)
        for i, (name, *_) in enumerate(layers):
            path = f"base_model/{official}" + (f"_{i}" if i else "")
            if kind == "conv":
                rows.append((f"{path}/kernel", f"{ours}@{name}.kernel", "same"))
            else:
                rows += ((f"{path}/{s}", f"{ours}@{name}.{s}", "same") for s in _STATISTICS)
    return tuple(rows)


def _run(model):
    rows = list(_encoder(model.backbone, "backbone."))
    for i in range(model.num_projection_layers):
        official, norm = f"head_contrastive/nl_{i}", f"projection_head.norms.{i}"
        rows.append((f"{official}/dense/kernel", f"projection_head.linears.{i}.kernel", "same"))
        rows += (
            (f"{official}/batch_normalization/{s}", f"{norm}.{s}", "same") for s in _STATISTICS
        )
    return tuple(rows)


_IGNORED = (
    "head_supervised/*",
    "ema_model/*",
    "global_step",
    "*/Momentum",
    "*/ExponentialMovingAverage",
)
LAYOUTS = {
    "simclr": {
        "SimCLR": Map(_run, ignored=_IGNORED, left=("memory_bank",)),
        **dict.fromkeys(CLASSES, Map(_encoder, ignored=(*_IGNORED, "head_contrastive/*"))),
    },
}
