"""Random numbers that are the same on every backend.

`keras.random` draws different numbers on JAX, TensorFlow and PyTorch from one seed. Here the
counter-based generator Threefry-2x32-20 (the one that JAX uses) is written in int32
`keras.ops`, so that a seed means the same views, masks and noise everywhere, eager or compiled,
and a run saved on one backend can be continued on another.
"""

import math
import random as python_random
from typing import Any

import keras
from keras import ops

from keras_ssl.training.cross_device import own_rows, whole_batch

# Rotation distances of Threefry-2x32 (table 2 of the paper), four rounds each, alternating.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # constant of Skein's key schedule, 32 bits of it
_UNIT = 2.0**-24  # spacing of the uniform numbers: 24 bits fit a float32 exactly


def _rotate_left(x: Any, distance: int) -> Any:
    # int32 right shifts copy the sign bit, so the bits that come in are masked away. The left
    # shift is a wrapping product, because TensorFlow tensors have no `<<` operator and the
    # plain operators are several times cheaper than `keras.ops` in eager PyTorch.
    low = ops.right_shift(x, 32 - distance) & ((1 << distance) - 1)
    return (x * (1 << distance)) | low


def threefry2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """The Threefry-2x32 block function with 20 rounds, on int32 tensors.

    A keyed bijection of pairs of 32-bit words. The words are carried in int32 (two's
    complement), which every backend has and wraps around on overflow.

    Args:
        key: Two int32 tensors `(k0, k1)`, scalars or of a shape that broadcasts.
        counter: Two int32 tensors `(c0, c1)`, the block to encrypt.

    Returns:
        Two int32 tensors of the broadcast shape: the random words.

    Example:

    >>> words = threefry2x32((0, 0), (0, 0))
    >>> [hex(int(word) & 0xFFFFFFFF) for word in words]
    ['0x6b200159', '0x99ba4efe']

    Reference: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011,
    section 4.2.
    """
    k0, k1 = (ops.cast(word, "int32") for word in key)
    x0, x1 = (ops.cast(word, "int32") for word in counter)
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, distance) ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + (schedule[(group + 2) % 3] + (group + 1))
    return x0, x1


def _signed(word: int) -> int:
    """A 32-bit word as the int32 that holds its bits."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _unsigned_to_unit(words: Any) -> Any:
    """int32 words as float32 in [0, 1), from the upper 24 bits."""
    bits = ops.right_shift(words, 8) & 0xFFFFFF
    return ops.cast(bits, "float32") * _UNIT


@keras.saving.register_keras_serializable(package="keras_ssl")
class RandomStream(keras.layers.Layer):
    """A stream of random numbers whose position is a saved variable.

    The stream holds one non-trainable variable `state` of three integers: the two words of the
    key, made from the seed, and the number of draws so far. Draw `n` of shape `(B, ...)` is
    word `j` of `threefry2x32(key, (j // 2, n))` at flat position `j`, so it depends on the seed,
    on `n` and on the position only: not on the backend, on compilation, or on the batch size
    (a larger batch begins with the same rows as a smaller one).

    The variable is saved with every model that has the stream as an attribute (`.keras`,
    `.weights.h5`, presets), so a resumed run draws what the uninterrupted one would have drawn.

    Draw many numbers with one call: a call costs about the same for 1 and for 10,000 numbers.

    Args:
        seed: Integer in [0, 2^64), or `None` to take one from Python's generator (which
            `keras.utils.set_random_seed` seeds).
        name: Name of the layer.

    Raises:
        ValueError: If the seed is not an integer in [0, 2^64).

    Example:

    >>> stream = RandomStream(seed=7)
    >>> noise = stream.uniform((4, 196))  # float32 in [0, 1)
    >>> later = stream.uniform((4, 196))  # other numbers
    >>> same = stream.uniform((4, 196), advance=False)  # fixed numbers, nothing is written
    """

    def __init__(self, seed: int | None = None, name: str | None = None, **kwargs: Any):
        super().__init__(name=name, trainable=False, **kwargs)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"`seed` must be an integer or None. Received: seed={seed!r}")
        if seed is not None and not 0 <= seed < 1 << 64:
            raise ValueError(f"`seed` must lie in [0, 2**64). Received: seed={seed}")
        self.seed = seed
        words = python_random.getrandbits(63) if seed is None else seed
        initial = [_signed(words >> 32), _signed(words), 0]
        self.state = self.add_weight(
            shape=(3,),
            # Keras' "int" is what each backend can keep on its accelerator.
            dtype="int",
            initializer=lambda shape, dtype: ops.convert_to_tensor(initial, dtype=dtype),
            trainable=False,
            name="state",
        )
        self.built = True

    def bits(
        self,
        shape: tuple,
        advance: bool = True,
        stream: int = 0,
        batch_axis: int | None = 0,
    ) -> Any:
        """Random 32-bit words.

        Args:
            shape: Tuple of integers; entries may be scalar integer tensors (a dynamic batch).
            advance: Whether to count the draw. With `False` the numbers come from a fixed place
                of the stream that counted draws never reach, and no state is written: what
                `evaluate` needs.
            stream: Static integer >= 0 that separates several `advance=False` draws of one
                step, which would be equal otherwise.
            batch_axis: which axis is the batch: where several replicas each have a share of it,
                each gets the numbers that its rows have on one device. `None`: none is.

        Returns:
            int32 tensor of the given shape.
        """
        if batch_axis is not None:
            shape = tuple(whole_batch(n) if i == batch_axis else n for i, n in enumerate(shape))
        total: Any = 1
        # Tensors last: a JAX dimension that is not known yet is neither integer nor tensor.
        for size in sorted(shape, key=lambda size: hasattr(size, "dtype")):
            total = total * (ops.cast(size, "int32") if hasattr(size, "dtype") else size)
        state = ops.cast(ops.convert_to_tensor(self.state), "int32")
        count = state[2] if advance else ops.full((), -1 - stream, dtype="int32")
        blocks = ops.arange((total + 1) // 2, dtype="int32")
        words = ops.stack(threefry2x32((state[0], state[1]), (blocks, count)), axis=-1)
        if advance:
            # Only now: in PyTorch `count` is a view of the variable, which `assign` overwrites.
            one = ops.convert_to_tensor([0, 0, 1], dtype="int32")
            self.state.assign(ops.cast(state + one, self.state.dtype))
        words = ops.reshape(ops.reshape(words, (-1,))[:total], shape)
        return words if batch_axis is None else own_rows(words, batch_axis)

    def uniform(
        self,
        shape: tuple,
        advance: bool = True,
        stream: int = 0,
        batch_axis: int | None = 0,
    ) -> Any:
        """Uniform float32 numbers in [0, 1), multiples of 2^-24. Arguments as `bits`."""
        return _unsigned_to_unit(self.bits(shape, advance, stream, batch_axis))

    def normal(self, shape: tuple, advance: bool = True, stream: int = 0) -> Any:
        """Standard normal float32 numbers by the Box-Muller transform. Arguments as `bits`.

        Equal across backends up to the rounding of `log`, `sqrt` and `cos`.
        """
        pair = self.uniform((*shape, 2), advance, stream)
        radius = ops.sqrt(-2.0 * ops.log(1.0 - pair[..., 0]))
        return radius * ops.cos(2.0 * math.pi * pair[..., 1])

    def permutation(
        self,
        shape: tuple,
        advance: bool = True,
        stream: int = 0,
        batch_axis: int | None = 0,
    ) -> Any:
        """Random orders of `0 .. shape[-1] - 1` along the last axis, int32. Arguments as `bits`."""
        numbers = self.uniform(shape, advance, stream, batch_axis)
        return ops.cast(ops.argsort(numbers, axis=-1), "int32")

    def call(self, shape):
        return self.uniform(shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        config = super().get_config()
        del config["trainable"]
        config["seed"] = self.seed
        return config
