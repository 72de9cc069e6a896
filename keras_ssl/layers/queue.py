"""A queue of features from earlier batches, kept as saved state."""

import random

import keras
import numpy as np
from keras import ops

from keras_ssl.training.cross_device import all_gather
from keras_ssl.training.kernels import write_rows


@keras.saving.register_keras_serializable(package="keras_ssl")
class FeatureQueue(keras.layers.Layer):
    """The last `size` features, to be negatives of the next batches.

    `enqueue` writes a batch of any size over the oldest features. Rows and pointer are
    non-trainable variables: they are saved with the model, and a loaded model goes on with the
    negatives it had. It starts with random unit vectors, the same on every backend.

    Args:
        size: number of features, any positive integer.
        dim: width of a feature.
        overflow: `"wrap"`: a batch that reaches the end goes on at the start (MoCo, for any size).
            `"restart"`: what does not fit is dropped and the next batch starts at the first row
            (lightly's memory bank).
        seed: int, of the random start.

    Example:

    >>> queue = FeatureQueue(size=6, dim=4)
    >>> queue.enqueue(keras.ops.ones((4, 4)))
    >>> int(queue.pointer)
    4

    Reference:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020,
        section 3.2.
    """

    def __init__(
        self, size: int, dim: int, overflow: str = "wrap", seed: int | None = None, **kwargs
    ):
        super().__init__(trainable=False, **kwargs)
        if not (isinstance(size, int) and size > 0):
            raise ValueError(f"A queue's size must be a positive integer. Received: size={size!r}")
        if overflow not in ("wrap", "restart"):
            raise ValueError(
                f'`overflow` must be "wrap" or "restart". Received: overflow={overflow!r}'
            )
        self.size = size
        self.dim = dim
        self.overflow = overflow
        self.seed = seed
        # `keras.utils.set_random_seed` seeds this generator too.
        draw = np.random.default_rng(random.getrandbits(63) if seed is None else seed)

        def start(shape, dtype=None):
            rows = draw.normal(size=shape)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            return ops.convert_to_tensor(rows, dtype)

        self.rows = self.add_weight(
            shape=(size, dim),
            # Precision is not for saving here: the keys are compared with float32 ones.
            dtype="float32",
            initializer=start,
            trainable=False,
            name="rows",
        )
        self.pointer = self.add_weight(
            shape=(), dtype="int", initializer="zeros", trainable=False, name="pointer"
        )
        self.built = True

    def features(self):
        """All rows `(size, dim)`, float32, as they are now, whatever is enqueued afterwards."""
        return ops.stop_gradient(ops.copy(ops.convert_to_tensor(self.rows)))

    def enqueue(self, features) -> None:
        """Writes a batch `(N, dim)`, all devices', over the oldest rows; without gradient."""
        features = all_gather(ops.cast(ops.stop_gradient(features), "float32"))
        known = features.shape[0] is not None
        count = features.shape[0] if known else ops.shape(features)[0]
        pointer = ops.cast(self.pointer, "int32")
        place = pointer + ops.arange(count, dtype="int32")
        if self.overflow == "wrap":
            # Of a batch longer than the queue only the last keys stay, each in a row of its own.
            kept, place = features[-self.size :], place[-self.size :] % self.size
            moved = (pointer + count) % self.size
        else:
            # Rows past the end write what the last rows hold already.
            kept = features[: self.size]
            place = place[: self.size]
            inside = place < self.size
            place = ops.where(inside, place, place - self.size)
            kept = ops.where(inside[:, None], kept, ops.take(self.features(), place, axis=0))
            moved = ops.where(pointer + count >= self.size, 0, pointer + count)
        write_rows(self.rows, place, kept)
        self.pointer.assign(ops.cast(moved, self.pointer.dtype))

    def get_config(self):
        config = super().get_config()
        del config["trainable"]
        return {
            **config,
            "size": self.size,
            "dim": self.dim,
            "overflow": self.overflow,
            "seed": self.seed,
        }
