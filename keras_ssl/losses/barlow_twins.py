"""Barlow Twins: the cross-correlation of two views should be the identity."""

import keras
from keras import ops

from keras_ssl.training.cross_device import all_reduce_mean


@keras.saving.register_keras_serializable(package="keras_ssl")
class BarlowTwinsLoss:
    """Redundancy reduction: each feature agrees with itself and with no other.

    With both embeddings standardised over the batch (no learned gain or offset),

    `C = z1^T z2 / N`, `loss = sum_i (1 - C_ii)^2 + off_diagonal_weight * sum_{i != j} C_ij^2`.

    Computed in float32 at least. A batch needs two rows or more.

    Args:
        off_diagonal_weight: lambda >= 0; 0.0051 in the published code.
        epsilon: added to the variance.
        name: name of the loss.

    Call arguments:
        z1: `(N, D)`, first views.
        z2: `(N, D)`, second views.

    Example:

    >>> z = keras.random.normal((8, 16), seed=0)
    >>> loss = BarlowTwinsLoss()(z, z + 0.1)

    Reference:
        Zbontar et al., Barlow Twins, 2021, equations 1 and 2, algorithm 1.
    """

    def __init__(
        self,
        off_diagonal_weight: float = 0.0051,
        epsilon: float = 1e-5,
        name: str = "barlow_twins",
    ):
        if not off_diagonal_weight >= 0:
            raise ValueError(
                "`off_diagonal_weight` must be a number >= 0. "
                f"Received: off_diagonal_weight={off_diagonal_weight}"
            )
        self.off_diagonal_weight = float(off_diagonal_weight)
        self.epsilon = float(epsilon)
        self.name = name

    def __call__(self, z1, z2):
        c = self.cross_correlation(z1, z2)  # D x D
        diagonal = ops.diagonal(c)
        agreement = ops.sum(ops.square(diagonal - 1.0))
        redundancy = ops.sum(ops.square(c)) - ops.sum(ops.square(diagonal))
        return agreement + self.off_diagonal_weight * redundancy

    def cross_correlation(self, z1, z2):
        """`C`, `(D, D)`."""
        z1, z2 = (self.standardize(z) for z in (z1, z2))
        c = ops.matmul(ops.transpose(z1), z2) / ops.cast(ops.shape(z1)[0], z1.dtype)
        return all_reduce_mean(c)

    def standardize(self, z):
        """Embeddings with mean 0 and variance 1 over the batch."""
        z = ops.convert_to_tensor(z)
        if len(z.shape) != 2:
            raise ValueError(f"Embeddings must be (batch, dim). Received: shape {tuple(z.shape)}")
        if keras.backend.standardize_dtype(z.dtype) != "float64":
            z = ops.cast(z, "float32")
        z = z - all_reduce_mean(ops.mean(z, axis=0, keepdims=True))
        variance = all_reduce_mean(ops.mean(ops.square(z), axis=0, keepdims=True))
        return z * ops.rsqrt(variance + self.epsilon)

    def get_config(self):
        return {
            "off_diagonal_weight": self.off_diagonal_weight,
            "epsilon": self.epsilon,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
