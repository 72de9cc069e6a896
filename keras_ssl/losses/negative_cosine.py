"""Losses between predictions and targets, without negatives: BYOL's and SimSiam's."""

import keras
from keras import ops

from keras_ssl.losses.nt_xent import l2_normalize


def cosine_of_rows(predictions, targets, epsilon: float = 1e-12):
    """Cosines `(N,)` between the rows of two `(N, D)` tensors, in float32 at least."""
    vectors = []
    for x in (predictions, targets):
        x = ops.convert_to_tensor(x)
        if keras.backend.standardize_dtype(x.dtype) != "float64":
            x = ops.cast(x, "float32")
        vectors.append(l2_normalize(x, epsilon))
    if len(vectors[0].shape) != 2 or len(vectors[1].shape) != 2:
        raise ValueError(
            "Predictions and targets must have the shape (batch, dim). Received: shapes "
            f"{tuple(vectors[0].shape)} and {tuple(vectors[1].shape)}"
        )
    return ops.sum(vectors[0] * vectors[1], axis=-1)


@keras.saving.register_keras_serializable(package="keras_ssl")
class NegativeCosineLoss:
    """`-cos(p, z)`, averaged over the batch: SimSiam's distance.

    SimSiam's loss is the mean of both directions, `D(p1, z2) / 2 + D(p2, z1) / 2`, with no gradient
    through `z`: call it once for each and give `z` through `keras.ops.stop_gradient`.

    Args:
        name: name of the loss.

    Call arguments:
        predictions: `(N, D)`.
        targets: `(N, D)`.

    Example:

    >>> p, z = keras.random.normal((4, 8), seed=0), keras.random.normal((4, 8), seed=1)
    >>> loss = NegativeCosineLoss()(p, keras.ops.stop_gradient(z))

    Reference:
        Chen and He, Exploring Simple Siamese Representation Learning, 2021, equations 1 and 2.
    """

    def __init__(self, name: str = "negative_cosine"):
        self.name = name

    def __call__(self, predictions, targets):
        return -ops.mean(cosine_of_rows(predictions, targets))

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
