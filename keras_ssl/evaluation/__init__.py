"""Evaluation protocols: objects that carry every choice, so that figures can be compared."""

from keras_ssl.evaluation.attention_segmentation import (
    AttentionSegmentationProtocol,
    attention_mask,
    attention_segmentation,
    jaccard_index,
)
from keras_ssl.evaluation.collapse import (
    alignment,
    feature_std,
    mean_cosine,
    rankme,
    uniformity,
)
from keras_ssl.evaluation.dense_probe import LinearDepthProtocol, LinearSegmentationProtocol
from keras_ssl.evaluation.few_labels import label_fraction
from keras_ssl.evaluation.knn import KNNProtocol
from keras_ssl.evaluation.linear_probe import LinearProbeProtocol
from keras_ssl.evaluation.neighbours import nearest_neighbours
from keras_ssl.evaluation.patches import attention_maps, patch_features
from keras_ssl.evaluation.protocol import (
    EvaluationResult,
    Protocol,
    extract_features,
    pixel_features,
)
from keras_ssl.evaluation.reidentification import mean_average_precision
from keras_ssl.evaluation.retrieval import retrieval_recall
from keras_ssl.evaluation.segmentation_baselines import (
    centred_box,
    otsu_threshold,
    segmentation_baselines,
    threshold_masks,
)
from keras_ssl.evaluation.similarity_index import (
    SimilarityIndex,
    Whitening,
    threshold_for_precision,
)
from keras_ssl.evaluation.templates import TEMPLATES
from keras_ssl.evaluation.zero_shot import ZeroShotClassifier, zero_shot_classifier

__all__ = [
    "AttentionSegmentationProtocol",
    "EvaluationResult",
    "KNNProtocol",
    "LinearDepthProtocol",
    "LinearProbeProtocol",
    "LinearSegmentationProtocol",
    "Protocol",
    "SimilarityIndex",
    "TEMPLATES",
    "Whitening",
    "ZeroShotClassifier",
    "alignment",
    "attention_maps",
    "attention_mask",
    "attention_segmentation",
    "centred_box",
    "extract_features",
    "feature_std",
    "jaccard_index",
    "label_fraction",
    "mean_cosine",
    "mean_average_precision",
    "nearest_neighbours",
    "otsu_threshold",
    "patch_features",
    "pixel_features",
    "rankme",
    "retrieval_recall",
    "segmentation_baselines",
    "threshold_masks",
    "threshold_for_precision",
    "uniformity",
    "zero_shot_classifier",
]
