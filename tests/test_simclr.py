"""SimCLR, beside NumPy in float64."""

import json
import pathlib

import keras
import numpy as np
import pytest
from gradients import compiled
from toy import fill, images, simclr, to_numpy

from keras_ssl.layers.heads import ProjectionHead

RNG = np.random.default_rng(0)


def numpy_nt_xent(a, b, temperature):
    """Equation 1 of the paper, written pair by pair."""
    z = np.concatenate([a, b]).astype("float64")
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    similarity = z @ z.T / temperature
    n, total = len(a), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        total += np.log(np.exp(similarity[i, others]).sum()) - similarity[i, j]
    return total / (2 * n)


def test_the_loss_of_a_batch_is_the_papers():
    model = simclr(augmenter=None, preprocessor=None, temperature=0.3)
    fill(model, scale=0.3)
    views = [RNG.random((6, 16, 16, 3)).astype("float32") for _ in range(2)]
    z = compiled(lambda: model.projection_head(model.encode(np.concatenate(views))))()
    z = to_numpy(z)
    expected = numpy_nt_xent(z[:6], z[6:], 0.3)
    model.compile(keras.optimizers.SGD(0.0))
    loss = float(model.test_on_batch(tuple(views))[0])
    assert loss == pytest.approx(expected, rel=1e-4)


def test_batch_statistics_are_over_both_views():
    head = ProjectionHead(4, num_layers=1)
    x = RNG.normal(size=(10, 3)).astype("float32")
    x[5:] += 3
    out = to_numpy(head(x, training=True))
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=0), 1, atol=1e-3)


def test_head_depths_and_parameters():
    for depth, expected in [(1, 1), (2, 2), (3, 3)]:
        head = ProjectionHead(4, hidden_dim=6, num_layers=depth)
        head.build((None, 5))
        assert len(head.linears) == expected
        # A bias before batch normalisation would do nothing, and the last offset neither.
        assert not any("bias" in v.path for v in head.trainable_variables)
        assert head.norms[-1].beta is None
    with pytest.raises(ValueError, match="num_layers"):
        ProjectionHead(4, num_layers=0)


def test_twenty_steps_are_the_same_on_every_backend():
    path = pathlib.Path(__file__).parent / "vectors" / "simclr_curve.json"
    model = simclr(augmenter=None, preprocessor=None)
    fill(model, scale=0.2)
    model.compile(keras.optimizers.SGD(0.003))
    rng = np.random.default_rng(5)
    pictures = images(16, size=16) / np.float32(255)
    noise = rng.normal(size=(2, *pictures.shape)).astype("float32") * 0.1
    views = (pictures + noise[0], pictures + noise[1])
    losses = [float(model.train_on_batch(views)[0]) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(losses, json.loads(path.read_text()), rtol=1e-3)
