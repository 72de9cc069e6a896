"""Schedules of learning rate, weight decay and teacher momentum."""

from keras_ssl.training.schedules import (
    CosineMomentum,
    LinearWarmup,
    Schedule,
    WarmupCosine,
    WarmupLinear,
    scale_learning_rate,
)

__all__ = [
    "CosineMomentum",
    "LinearWarmup",
    "Schedule",
    "WarmupCosine",
    "WarmupLinear",
    "scale_learning_rate",
]
