"""The random stream: bit-equal to the definition, on every backend, compiled or not."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_ssl.training.random import RandomStream, threefry2x32

# Known answers of the Random123 library's test file for threefry2x32-20: counter, key, result.
KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


def signed(words):
    return np.asarray(words, "uint32").view("int32")


def reference_threefry(key, counter):
    """The block function in Python integers, which do not wrap by themselves."""
    mask = 0xFFFFFFFF
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA]
    x = [(counter[0] + keys[0]) & mask, (counter[1] + keys[1]) & mask]
    for i in range(20):
        x[0] = (x[0] + x[1]) & mask
        r = rotations[i % 8]
        x[1] = (((x[1] << r) | (x[1] >> (32 - r))) & mask) ^ x[0]
        if i % 4 == 3:
            n = i // 4 + 1
            x[0] = (x[0] + keys[n % 3]) & mask
            x[1] = (x[1] + keys[(n + 1) % 3] + n) & mask
    return tuple(x)


def reference_uniform(seed, count, shape):
    """What draw number `count` of a stream must be, from the definition."""
    size = int(np.prod(shape))
    key = (seed >> 32, seed & 0xFFFFFFFF)
    words = []
    for block in range((size + 1) // 2):
        words += reference_threefry(key, (block, count & 0xFFFFFFFF))
    return (np.array(words[:size], "float64") // 256 / 2**24).reshape(shape)


class Model(keras.Model):
    """A loss that is the mean of a draw, for a batch of a size that TensorFlow does not know."""

    def __init__(self, seed):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.stream = RandomStream(seed)

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        draw = self.stream.uniform((ops.shape(x)[0], 5), advance=training)
        return 0.0 * ops.mean(y_pred) + ops.mean(draw)


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    key = tuple(ops.convert_to_tensor(word) for word in signed(key))
    counter = tuple(ops.convert_to_tensor(word) for word in signed(counter))
    words = [ops.convert_to_numpy(word) for word in threefry2x32(key, counter)]
    np.testing.assert_array_equal(words, signed(expected))


def test_equals_jax_bit_for_bit():
    import jax.extend.random

    generator = np.random.default_rng(0)
    key = generator.integers(0, 2**32, 2, dtype="uint32")
    ours = threefry2x32(tuple(signed(key)), (np.arange(50, dtype="int32"), np.int32(3)))
    counter = np.concatenate([np.arange(50), np.full(50, 3)]).astype("uint32")
    theirs = jax.extend.random.threefry_2x32(key, counter)
    ours = np.concatenate([ops.convert_to_numpy(word) for word in ours])
    np.testing.assert_array_equal(ours, np.asarray(theirs).view("int32"))


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**63 + 12345])
def test_draws_are_the_documented_ones(seed):
    stream = RandomStream(seed)
    for count, shape in enumerate([(3, 3), (4,), (1, 1)]):
        draw = stream.uniform(shape)
        assert keras.backend.standardize_dtype(draw.dtype) == "float32"
        np.testing.assert_array_equal(
            ops.convert_to_numpy(draw), reference_uniform(seed, count, shape).astype("float32")
        )
    assert ops.convert_to_numpy(stream.state)[2] == 3


def test_fixed_draws_write_nothing_and_are_separate():
    stream = RandomStream(5)
    first = ops.convert_to_numpy(stream.uniform((20,), advance=False))
    other = ops.convert_to_numpy(stream.uniform((20,), advance=False, stream=1))
    counted = ops.convert_to_numpy(stream.uniform((20,)))
    again = ops.convert_to_numpy(stream.uniform((20,), advance=False))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, reference_uniform(5, -1, (20,)).astype("float32"))
    assert not np.intersect1d(first, other).size and not np.intersect1d(first, counted).size
    assert ops.convert_to_numpy(stream.state)[2] == 1


def test_a_larger_batch_begins_with_the_smaller_one():
    small = ops.convert_to_numpy(RandomStream(1).uniform((3, 5)))
    large = ops.convert_to_numpy(RandomStream(1).uniform((8, 5)))
    np.testing.assert_array_equal(small, large[:3])


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_inside_a_compiled_loss(jit_compile, steps_per_execution):
    if keras.backend.backend() == "torch":
        # Compiling a toy takes PyTorch a minute, and it has no steps_per_execution.
        jit_compile, steps_per_execution = False, 1
    seed, x = 7, np.ones((10, 4), "float32")
    model = Model(seed)
    model.compile("sgd", jit_compile=jit_compile, steps_per_execution=steps_per_execution)
    loss = model.fit(x, x[:, :1], batch_size=5, epochs=2, shuffle=False, verbose=0)
    expected = [reference_uniform(seed, i, (5, 5)).mean() for i in range(4)]
    expected = [(expected[0] + expected[1]) / 2, (expected[2] + expected[3]) / 2]
    np.testing.assert_allclose(loss.history["loss"], expected, rtol=1e-6)
    # Evaluation repeats itself and leaves the stream where it was.
    value = model.evaluate(x, x[:, :1], batch_size=5, verbose=0)
    np.testing.assert_allclose(value, reference_uniform(seed, -1, (5, 5)).mean(), rtol=1e-6)
    assert ops.convert_to_numpy(model.stream.state)[2] == 4


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_saved_and_resumed(tmp_path, suffix):
    inputs = keras.Input((2,))

    def make(seed):
        layer = RandomStream(seed, name="stream")
        model = keras.Sequential([inputs, keras.layers.Dense(1)])
        model.stream = layer
        return model

    if suffix == ".keras":
        stream = RandomStream(3, name="stream")
        model = keras.Sequential([keras.Input((2,)), Noise(3)])
        stream = model.layers[0].stream
        stream.uniform((4,))
        model.save(tmp_path / "model.keras")
        restored = keras.saving.load_model(tmp_path / "model.keras").layers[0].stream
    else:
        model, other = make(3), make(4)
        stream, restored = model.stream, other.stream
        stream.uniform((4,))
        model.save_weights(tmp_path / "model.weights.h5")
        other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(restored.uniform((6,))),
        reference_uniform(3, 1, (6,)).astype("float32"),
    )


@keras.saving.register_keras_serializable(package="keras_ssl_tests")
class Noise(keras.layers.Layer):
    def __init__(self, seed, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.stream = RandomStream(seed)

    def call(self, x):
        return x + self.stream.uniform((ops.shape(x)[0], 2), advance=False)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


def test_normal_and_permutation():
    stream = RandomStream(0)
    normal = ops.convert_to_numpy(stream.normal((20000,)))
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert abs((normal**3).mean()) < 0.1 and abs((normal**4).mean() - 3) < 0.2
    orders = ops.convert_to_numpy(stream.permutation((6000, 3)))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile([0, 1, 2], (6000, 1)))
    counts = np.unique(orders @ [9, 3, 1], return_counts=True)[1]
    assert len(counts) == 6 and counts.min() > 850


def test_uniform_is_uniform():
    draw = np.sort(ops.convert_to_numpy(RandomStream(11).uniform((50000,))).astype("float64"))
    assert draw[0] >= 0 and draw[-1] < 1
    distance = np.abs(draw - (np.arange(50000) + 0.5) / 50000).max()
    assert distance < 1.63 / np.sqrt(50000)  # Kolmogorov-Smirnov at 1 %


def test_unseeded_streams_differ_and_follow_the_global_seed():
    keras.utils.set_random_seed(1)
    a, b = RandomStream(), RandomStream()
    keras.utils.set_random_seed(1)
    c = RandomStream()
    state = [ops.convert_to_numpy(stream.state) for stream in (a, b, c)]
    assert not np.array_equal(state[0], state[1])
    np.testing.assert_array_equal(state[0], state[2])


def test_config_and_errors():
    stream = RandomStream(2**40 + 3, name="draws")
    clone = RandomStream.from_config(stream.get_config())
    assert clone.name == "draws" and clone.seed == stream.seed
    np.testing.assert_array_equal(
        ops.convert_to_numpy(clone.state), ops.convert_to_numpy(stream.state)
    )
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="must lie in"):
            RandomStream(seed)
    for seed in (1.5, True, "a"):
        with pytest.raises(ValueError, match="must be an integer"):
            RandomStream(seed)
