"""One vector per picture, from whatever a backbone gives."""

import keras
from keras import ops

from keras_ssl.layers.image_converter import image_shape_of


def pool_features(backbone, features, pooling: str):
    """One vector per picture from whatever a backbone returns."""
    if isinstance(features, dict):
        for key in ("tokens", "sequence_output", "pooled_output"):
            if key in features:
                features = features[key]
                break
        else:
            raise ValueError(
                "The backbone returns a dict; give a backbone with one output. "
                f"Received: keys {sorted(features)}"
            )
    rank = len(features.shape)
    if rank == 2:
        return features
    if rank == 3:
        if hasattr(backbone, "pool"):
            return backbone.pool(features, pooling)
        return features[:, 0] if pooling == "token" else ops.mean(features, axis=1)
    if rank == 4:
        return ops.mean(features, axis=(1, 2))
    raise ValueError(
        "The backbone must return vectors (N, D), tokens (N, T, D) or a map (N, H, W, D). "
        f"Received: shape {tuple(features.shape)}"
    )


def feature_dim(backbone, pooling: str) -> int:
    """Width of the pooled features of a backbone."""
    if hasattr(backbone, "hidden_dim") and hasattr(backbone, "pool"):
        return backbone.hidden_dim
    height, width, channels = image_shape_of(backbone)
    images = keras.KerasTensor((1, height or 64, width or 64, channels or 3))
    if isinstance(getattr(backbone, "input", None), dict):  # keras-hub's CLIP
        images = {"images": images}
    features = backbone.compute_output_spec(images)
    return pool_features(backbone, features, pooling).shape[-1]
