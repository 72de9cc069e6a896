"""InfoNCE: find the key of a query among other keys."""

import keras
from keras import ops

from keras_ssl.losses.negatives import check_negatives, harden
from keras_ssl.losses.nt_xent import MASKED, l2_normalize
from keras_ssl.training.cross_device import all_gather


@keras.saving.register_keras_serializable(package="keras_ssl")
class InfoNCELoss:
    """Cross entropy of finding a query's own key among all keys.

    With unit vectors `q[i]`, their keys `k[i]`, and negatives `n[j]` (a queue, or the keys of the
    other queries):

    `l[i] = -log( exp(q[i] . k[i] / T) / (exp(q[i] . k[i] / T) + sum_j exp(q[i] . n[j] / T)) )`

    and the loss is `scale` times the mean of `l`. MoCo v3 takes `scale = 2 T`, which makes the
    gradient's size independent of the temperature. Computed in float32 at least.

    `decoupled`, `class_prior` and `hardness` change the sum over negatives as in `NTXentLoss`.

    Args:
        temperature: `T > 0`.
        normalize: make all vectors unit vectors first.
        scale: factor of the loss.
        decoupled: leave the positive out of the denominator.
        class_prior: in [0, 1), how likely a negative is of the query's own class.
        hardness: >= 0, concentration on hard negatives.
        name: name of the loss.

    Call arguments:
        queries: `(N, D)`.
        keys: `(N, D)`; give them without gradient where they come from a teacher.
        negatives: `(K, D)`, or `None`: the keys of the other queries.
        return_logits: also return the similarities over `T`: `(N, 1 + K)` with the own key first,
            or `(N, N)` with it on the diagonal.

    Returns:
        The loss, a scalar; or `(loss, logits)`.

    Raises:
        ValueError: for options out of range.

    Example:

    >>> q, k = keras.random.normal((4, 8), seed=0), keras.random.normal((4, 8), seed=1)
    >>> loss = InfoNCELoss(0.2)(q, k, negatives=keras.random.normal((16, 8), seed=2))

    Reference:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018,
        equation 4; He et al., Momentum Contrast for Unsupervised Visual Representation Learning,
        2020, equation 1; Chen et al., An Empirical Study of Training Self-Supervised Vision
        Transformers, 2021, algorithm 1.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        normalize: bool = True,
        scale: float = 1.0,
        decoupled: bool = False,
        class_prior: float = 0.0,
        hardness: float = 0.0,
        name: str = "info_nce",
    ):
        check_negatives(temperature, class_prior, hardness)
        self.temperature = float(temperature)
        self.normalize = bool(normalize)
        self.scale = float(scale)
        self.decoupled = bool(decoupled)
        self.class_prior = float(class_prior)
        self.hardness = float(hardness)
        self.name = name

    def __call__(self, queries, keys, negatives=None, return_logits: bool = False):
        q, k = self._vectors(queries), self._vectors(keys)
        if negatives is None:
            q, k = all_gather(q), all_gather(k)
        positive = ops.sum(q * k, axis=-1) / self.temperature  # N
        if negatives is None:
            logits = ops.matmul(q, ops.transpose(k)) / self.temperature  # N x N
            own = ops.eye(ops.shape(logits)[0], dtype="bool")
            others = ops.where(own, MASKED, logits)
            count = ops.cast(ops.shape(logits)[1] - 1, q.dtype)
        else:
            others = ops.matmul(q, ops.transpose(self._vectors(negatives))) / self.temperature
            logits = ops.concatenate([positive[:, None], others], axis=-1)  # N x (1 + K)
            count = ops.cast(ops.shape(others)[1], q.dtype)
        negative = harden(
            lambda factor: ops.logsumexp(factor * others, axis=-1),
            positive,
            count,
            self.temperature,
            self.class_prior,
            self.hardness,
        )
        margin = negative - positive
        loss = self.scale * ops.mean(margin if self.decoupled else ops.softplus(margin))
        return (loss, logits) if return_logits else loss

    def _vectors(self, x):
        x = ops.convert_to_tensor(x)
        if keras.backend.standardize_dtype(x.dtype) != "float64":
            x = ops.cast(x, "float32")
        return l2_normalize(x) if self.normalize else x

    def get_config(self):
        return {
            "temperature": self.temperature,
            "normalize": self.normalize,
            "scale": self.scale,
            "decoupled": self.decoupled,
            "class_prior": self.class_prior,
            "hardness": self.hardness,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
