"""BYOL's regression of the target's projection."""

import keras
from keras import ops

from keras_ssl.losses.negative_cosine import NegativeCosineLoss
from keras_ssl.losses.nt_xent import l2_normalize
from keras_ssl.losses.precision import at_least_float32


@keras.saving.register_keras_serializable(package="keras_ssl")
class BYOLLoss(NegativeCosineLoss):
    """Squared distance of unit vectors: `|p / |p| - z / |z||^2 = 2 - 2 cos(p, z)`, batch mean.

    BYOL's loss is the *sum* of the two directions, `L(p1, z2) + L(p2, z1)`; with their mean the
    learning rate of the paper is half of what it was tuned for.

    Args:
        name: name of the loss.

    Call arguments:
        predictions: `(N, D)`, of the online network.
        targets: `(N, D)`, of the target network, without gradient.
        reduction: `"mean"` over the batch, or `None` for `(N,)`.

    Example:

    >>> p, z = keras.random.normal((4, 8), seed=0), keras.random.normal((4, 8), seed=1)
    >>> loss = BYOLLoss()(p, keras.ops.stop_gradient(z))

    Reference:
        Grill et al., Bootstrap your own latent, 2020, equation 2.
    """

    def __init__(self, name: str = "byol"):
        super().__init__(name)

    def __call__(self, predictions, targets, reduction: str | None = "mean"):
        # As differences: near agreement 2 - 2 cos would be what is left of cancelling ones.
        p, z = (l2_normalize(at_least_float32(x)) for x in (predictions, targets))
        distances = ops.sum(ops.square(p - z), axis=-1)
        return distances if reduction is None else ops.mean(distances)
