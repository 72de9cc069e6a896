"""VICReg: variance, invariance and covariance."""

import keras
from keras import ops

from keras_ssl.training.cross_device import all_reduce_mean, all_reduce_sum, replica_count


@keras.saving.register_keras_serializable(package="keras_ssl")
class VICRegLoss:
    """Agree, keep every feature's variance above one, decorrelate features.

    ```
    s(x, y) = mean((x - y)^2)
    v(x)    = mean_j max(0, 1 - sqrt(var(x_j) + epsilon))          unbiased variance
    c(x)    = sum_{i != j} cov(x)_ij^2 / D                          divided by N - 1
    loss    = similarity * s(x, y) + variance * (v(x) + v(y)) / 2 + covariance * (c(x) + c(y))
    ```

    as in the published code, which halves the variance term. Computed in float32 at least.

    Args:
        similarity: weight of the invariance term.
        variance: weight of the variance term.
        covariance: weight of the covariance term.
        epsilon: added to the variance.
        name: name of the loss.

    Call arguments:
        x: `(N, D)`, first views, `N > 1`; or `(N, ..., D)`: statistics over `N` for every place
            between, then averaged.
        y: the same of the second views.
        return_terms: return a dict with the three terms, before their weights.

    Example:

    >>> z = keras.random.normal((8, 16), seed=0)
    >>> loss = VICRegLoss()(z, z + 0.1)

    Reference:
        Bardes, Ponce and LeCun, VICReg, 2022, equations 1 to 6.
    """

    def __init__(
        self,
        similarity: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        epsilon: float = 1e-4,
        name: str = "vicreg",
    ):
        weights = (similarity, variance, covariance)
        if min(weights) < 0 or not epsilon > 0:
            raise ValueError(
                "The weights must be numbers >= 0 and `epsilon` greater than 0. "
                f"Received: similarity, variance, covariance={weights}, epsilon={epsilon}"
            )
        self.similarity, self.variance, self.covariance = (float(w) for w in weights)
        self.epsilon = float(epsilon)
        self.name = name

    def __call__(self, x, y, return_terms: bool = False):
        x, y = (self._places(z) for z in (x, y))  # N x places x D
        terms = {
            "similarity": ops.mean(ops.square(x - y)),
            "variance": (self._hinge(x) + self._hinge(y)) / 2,
            "covariance": self._covariance(x) + self._covariance(y),
        }
        if return_terms:
            return terms
        return sum(getattr(self, name) * term for name, term in terms.items())

    def _places(self, z):
        z = ops.convert_to_tensor(z)
        if len(z.shape) < 2:
            raise ValueError(
                f"Embeddings must be (batch, ..., dim). Received: shape {tuple(z.shape)}"
            )
        if keras.backend.standardize_dtype(z.dtype) != "float64":
            z = ops.cast(z, "float32")
        places = 1
        for size in z.shape[1:-1]:
            places *= size
        return ops.reshape(z, (-1, places, z.shape[-1]))

    def _hinge(self, x):
        centered = x - all_reduce_mean(ops.mean(x, axis=0, keepdims=True))
        variance = all_reduce_sum(ops.sum(ops.square(centered), axis=0)) / _freedom(x)
        return ops.mean(ops.relu(1.0 - ops.sqrt(variance + self.epsilon)))

    def _covariance(self, x):
        centered = x - all_reduce_mean(ops.mean(x, axis=0, keepdims=True))
        centered = ops.transpose(centered, (1, 2, 0))
        covariance = ops.matmul(centered, ops.transpose(centered, (0, 2, 1)))
        covariance = all_reduce_sum(covariance) / _freedom(x)
        others = 1.0 - ops.eye(x.shape[-1], dtype=covariance.dtype)
        off_diagonal = ops.sum(ops.square(covariance * others), axis=(1, 2))
        return ops.mean(off_diagonal) / x.shape[-1]

    def get_config(self):
        return {
            "similarity": self.similarity,
            "variance": self.variance,
            "covariance": self.covariance,
            "epsilon": self.epsilon,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _freedom(x):
    return ops.cast(ops.shape(x)[0] * replica_count(), x.dtype) - 1.0
