"""NT-Xent against the papers' code and lightly (vectors), float64 NumPy, and its own properties."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from gradients import input_gradients
from keras import ops

from keras_ssl.losses import NTXentLoss

VECTORS = np.load(Path(__file__).parent / "vectors" / "nt_xent.npz")
META = json.loads(str(VECTORS["meta"]))
BLOCKS = [None, 5]


def embeddings(n=7, dim=5, seed=0, spread=0.5):
    rng = np.random.default_rng(seed)
    z1 = rng.normal(size=(n, dim))
    return z1.astype("float32"), (z1 + spread * rng.normal(size=(n, dim))).astype("float32")


def numpy_nt_xent(z1, z2, temperature, normalize=True):
    """Rows one at a time in float64: loss (mean), accuracy, entropy."""
    z = np.concatenate([z1, z2]).astype("float64")
    if normalize:
        z /= np.linalg.norm(z, axis=1, keepdims=True)
    n, losses, hits, entropies = len(z1), [], [], []
    for i in range(2 * n):
        s = z @ z[i] / temperature
        others = np.delete(s, i)
        losses.append(np.log(np.exp(others).sum()) - s[(i + n) % (2 * n)])
        if i < n:
            p = np.exp(s[n:]) / np.exp(s[n:]).sum()
            hits.append(p.argmax() == i)
            entropies.append(-(p * np.log(p)).sum())
    return np.mean(losses), np.mean(hits), np.mean(entropies)


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("run", range(4))
def test_equals_simclr(run, block_size):
    config = META["simclr"][run]
    loss = NTXentLoss(
        config["temperature"],
        normalize=config["hidden_norm"],
        reduction="sum_over_views",
        block_size=block_size,
    )
    hidden = VECTORS[f"simclr/in/{run}/hidden"]
    value, (gradient,) = input_gradients(loss, hidden)
    # The last run's loss, 4e-4, is 1.2e-5 from its float64 value in the reference (the difference
    # of two logits near 14 in float32) and 8e-7 in ours.
    np.testing.assert_allclose(value, VECTORS[f"simclr/out/{run}/loss"], rtol=2e-5)
    half = len(hidden) // 2
    exact = numpy_nt_xent(
        hidden[:half], hidden[half:], config["temperature"], config["hidden_norm"]
    )
    np.testing.assert_allclose(value, 2 * exact[0], rtol=3e-6)
    expected = VECTORS[f"simclr/grad/{run}/hidden"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    _, statistics = loss(hidden, return_statistics=True)
    logits = VECTORS[f"simclr/out/{run}/logits_ab"]
    hits = logits.argmax(1) == np.arange(len(logits))
    assert float(statistics["accuracy"]) == pytest.approx(hits.mean())


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("run", range(2))
def test_equals_lightly(run, block_size):
    loss = NTXentLoss(**META["lightly"][run], block_size=block_size)
    views = VECTORS["lightly/in/z0"], VECTORS["lightly/in/z1"]
    value, gradients = input_gradients(loss, *views)
    np.testing.assert_allclose(value, VECTORS[f"lightly/out/NTXentLoss/{run}/call1"], rtol=2e-5)
    for j, gradient in enumerate(gradients):
        expected = VECTORS[f"lightly/grad/NTXentLoss/{run}/z{j}"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "block_size, normalize", [(None, False), ("auto", True), (1, True), (5, False), (100, True)]
)
def test_equals_numpy(block_size, normalize):
    z1, z2 = embeddings()
    expected = numpy_nt_xent(z1, z2, 0.2, normalize)
    loss = NTXentLoss(0.2, normalize=normalize, block_size=block_size)
    value, statistics = loss(z1, z2, return_statistics=True)
    actual = [float(x) for x in (value, statistics["accuracy"], statistics["entropy"])]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    double = NTXentLoss(0.2, normalize=normalize, block_size=block_size, reduction="sum_over_views")
    np.testing.assert_allclose(float(double(z1, z2)), 2 * expected[0], rtol=1e-5)


def test_gradient_of_blocks_equals_differences():
    z1, z2 = embeddings(n=4, dim=3)
    loss = NTXentLoss(0.5, block_size=3)
    _, gradients = input_gradients(loss, z1, z2)
    for view, gradient in enumerate(gradients):
        for index in np.ndindex(*gradient.shape):
            change = np.zeros_like(gradient, dtype="float64")
            change[index] = 1e-5
            views = [z.astype("float64") for z in (z1, z2)]
            up = [z + change * (k == view) for k, z in enumerate(views)]
            down = [z - change * (k == view) for k, z in enumerate(views)]
            slope = (numpy_nt_xent(*up, 0.5)[0] - numpy_nt_xent(*down, 0.5)[0]) / 2e-5
            np.testing.assert_allclose(gradient[index], slope, atol=1e-5)


@pytest.mark.parametrize("block_size", [None, 3])
def test_properties(block_size):
    z1, z2 = embeddings()
    loss = NTXentLoss(0.1, block_size=block_size)
    value = float(loss(z1, z2))
    assert float(loss(z2, z1)) == pytest.approx(value, rel=1e-5)  # symmetric
    order = np.random.default_rng(1).permutation(len(z1))
    assert float(loss(z1[order], z2[order])) == pytest.approx(value, rel=1e-5)
    assert float(loss(3 * z1, 0.5 * z2)) == pytest.approx(value, rel=1e-5)  # of directions only
    assert float(loss(z1, z1)) < value < float(loss(z1, z2[order]))
    collapsed = np.ones_like(z1)
    assert float(loss(collapsed, collapsed)) == pytest.approx(np.log(2 * len(z1) - 1), rel=1e-5)
    assert float(loss(z1[:1], z2[:1])) == pytest.approx(0.0, abs=1e-7)  # no negatives


@pytest.mark.parametrize("block_size", [None, 3])
def test_small_losses_keep_their_digits(block_size):
    z1 = np.eye(4, dtype="float32")
    expected = np.log1p(6 * np.exp(-1 / 0.05))
    loss = NTXentLoss(0.05, block_size=block_size)
    assert float(loss(z1, z1)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs(dtype, block_size):
    z1, z2 = embeddings(n=6, dim=32)
    half = [ops.cast(z, dtype) for z in (z1, z2)]
    rounded = [ops.convert_to_numpy(ops.cast(z, "float32")) for z in half]
    loss = NTXentLoss(0.02, block_size=block_size)
    value, statistics = loss(*half, return_statistics=True)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    expected = numpy_nt_xent(*rounded, 0.02)
    np.testing.assert_allclose(float(value), expected[0], rtol=1e-4, atol=1e-6)
    assert np.isfinite(float(statistics["entropy"]))


@pytest.mark.parametrize(
    "block_size, jit_compile", [(None, "auto"), ("auto", "auto"), (3, "auto"), (3, False)]
)
def test_inside_fit_with_an_unknown_batch_size(block_size, jit_compile):
    """The last batch is smaller, so TensorFlow traces with batch size None."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4, use_bias=False, kernel_initializer="ones")
            self.contrastive_loss = NTXentLoss(0.5, block_size=block_size)
            self.entropy = keras.metrics.Mean(name="entropy")

        def call(self, x):
            return self.dense(x[..., 0])

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss, statistics = self.contrastive_loss(
                self.dense(x[..., 0]), self.dense(x[..., 1]), return_statistics=True
            )
            self.entropy.update_state(statistics["entropy"])
            return loss

    rng = np.random.default_rng(3)
    x = rng.normal(size=(14, 6, 2)).astype("float32")
    kernel = rng.normal(size=(6, 4)).astype("float32")
    model = Model()
    model.dense.build((None, 6))
    model.dense.set_weights([kernel])
    # torch's own compiler is left out: it takes tens of seconds on any model
    arguments = {} if keras.backend.backend() == "torch" else {"jit_compile": jit_compile}
    model.compile(keras.optimizers.SGD(1.0), **arguments)
    history = model.fit(x, batch_size=8, epochs=1, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"][0]) and history["entropy"][0] > 0

    def reference(kernel_values):
        total = kernel_values.astype("float64")
        for batch in (x[:8], x[8:]):
            gradient = np.zeros_like(total)
            for index in np.ndindex(*total.shape):
                change = np.zeros_like(total)
                change[index] = 1e-5
                values = [
                    numpy_nt_xent(batch[..., 0] @ (total + s), batch[..., 1] @ (total + s), 0.5)[0]
                    for s in (change, -change)
                ]
                gradient[index] = (values[0] - values[1]) / 2e-5
            total = total - gradient
        return total

    np.testing.assert_allclose(model.dense.get_weights()[0], reference(kernel), atol=2e-4)


def test_serialisation():
    loss = NTXentLoss(0.3, normalize=False, reduction="sum_over_views", block_size=64)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, NTXentLoss) and restored.get_config() == loss.get_config()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: NTXentLoss(0.0), "temperature=0.0"),
        (lambda: NTXentLoss(reduction="sum"), "reduction='sum'"),
        (lambda: NTXentLoss(block_size=0), "block_size=0"),
        (lambda: NTXentLoss(block_size="all"), "block_size='all'"),
        (lambda: NTXentLoss()(np.ones((2, 3, 4))), r"\(2, 3, 4\)"),
        (lambda: NTXentLoss()(np.ones((2, 3)), np.ones((3, 3))), r"z2.shape=\(3, 3\)"),
        (lambda: NTXentLoss()(np.ones((3, 3))), r"z1.shape=\(3, 3\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
