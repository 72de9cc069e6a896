"""Self-supervised vision for Keras 3, equal on JAX, TensorFlow and PyTorch."""

from keras_ssl import (
    augmentation,
    backbones,
    callbacks,
    converters,
    datasets,
    distribution,
    evaluation,
    layers,
    losses,
    models,
    optimizers,
    reports,
    runs,
    schedules,
    tokenizers,
    visualization,
)
from keras_ssl.presets import list_presets, resolve_preset

__version__ = "0.1.0"

__all__ = [
    "augmentation",
    "backbones",
    "callbacks",
    "converters",
    "datasets",
    "distribution",
    "evaluation",
    "layers",
    "list_presets",
    "losses",
    "models",
    "optimizers",
    "resolve_preset",
    "reports",
    "runs",
    "schedules",
    "tokenizers",
    "visualization",
]
