"""Evaluation protocols: objects that carry every choice, so that figures can be compared."""

from keras_ssl.evaluation.collapse import (
    alignment,
    feature_std,
    mean_cosine,
    rankme,
    uniformity,
)
from keras_ssl.evaluation.few_labels import label_fraction
from keras_ssl.evaluation.knn import KNNProtocol
from keras_ssl.evaluation.linear_probe import LinearProbeProtocol
from keras_ssl.evaluation.protocol import (
    EvaluationResult,
    Protocol,
    extract_features,
    pixel_features,
)

__all__ = [
    "EvaluationResult",
    "KNNProtocol",
    "LinearProbeProtocol",
    "Protocol",
    "alignment",
    "extract_features",
    "feature_std",
    "label_fraction",
    "mean_cosine",
    "pixel_features",
    "rankme",
    "uniformity",
]
