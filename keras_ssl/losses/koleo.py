"""KoLeo: spread the features of a batch."""

import keras
from keras import ops

from keras_ssl.losses.nt_xent import MASKED, l2_normalize
from keras_ssl.losses.precision import at_least_float32
from keras_ssl.training.cross_device import all_gather


@keras.saving.register_keras_serializable(package="keras_ssl")
class KoLeoLoss:
    """Minus the log distance of every unit vector to its nearest neighbour in the batch.

    With `z = x / |x|` and `n(i)` the nearest other vector, chosen without gradient:

    `loss = -mean_i log(|z_i - z_n(i) + epsilon| + epsilon)`

    It is the Kozachenko-Leonenko estimate of the differential entropy, but for constants; two
    equal vectors are infinitely bad. DINOv2 adds 0.1 times it, taken over the class tokens of one
    view at a time, so that no two vectors are of one picture. Computed in float32 at least.

    Args:
        epsilon: added to every coordinate's difference and to the distance.
        name: name of the loss.

    Call arguments:
        x: `(N, D)`, `N > 1`.

    Returns:
        The loss, a scalar.

    Example:

    >>> loss = KoLeoLoss()(keras.random.normal((8, 16), seed=0))

    Reference:
        Sablayrolles et al., Spreading vectors for similarity search, 2019, equation 2; Oquab et
        al., DINOv2, 2023, section 4.
    """

    def __init__(self, epsilon: float = 1e-8, name: str = "koleo"):
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be greater than 0. Received: epsilon={epsilon}")
        self.epsilon = float(epsilon)
        self.name = name

    def __call__(self, x):
        x = at_least_float32(x)
        if len(x.shape) != 2:
            raise ValueError(f"Features must be (N, D). Received: shape {tuple(x.shape)}")
        z = all_gather(l2_normalize(x, epsilon=self.epsilon**2))
        fixed = ops.stop_gradient(z)
        similarity = ops.matmul(fixed, ops.transpose(fixed))  # N x N
        own = ops.eye(ops.shape(z)[0], dtype="bool")
        nearest = ops.argmax(ops.where(own, MASKED, similarity), axis=1)
        difference = z - ops.take(z, nearest, axis=0) + self.epsilon
        distance = ops.sqrt(ops.sum(ops.square(difference), axis=1))
        return -ops.mean(ops.log(distance + self.epsilon))

    def get_config(self):
        return {"epsilon": self.epsilon, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
