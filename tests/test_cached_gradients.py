"""Cached gradients: the gradient of the whole batch, whatever is encoded at a time."""

import keras
import numpy as np
import pytest
from gradients import variable_gradients
from keras import ops
from test_image_text import text
from toy import crops, images, simclr, to_numpy, vit

from keras_ssl.backbones import small_resnet
from keras_ssl.models import CLIP, SimCLR, image_text

PICTURES = images(8)


def clip(**kwargs):
    return CLIP(
        vit(**{"num_layers": 1, **kwargs}), text(), 8, seed=1, augmenter=None, preprocessor=None
    )


def batch_of(model):
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(8, 16, 16, 3)), "float32")
    if isinstance(model, SimCLR):
        return (x, ops.flip(x, axis=0))
    ids = model.tokenize([f"picture {i}" for i in range(8)])
    return {"images": x, "token_ids": ops.convert_to_tensor(ids)}


@pytest.mark.parametrize("make", [clip, lambda: simclr(vit(num_layers=1), augmenter=None)])
def test_gradient_equals_that_of_the_whole_batch(make):
    keras.utils.set_random_seed(0)
    model = make()
    batch, variables = batch_of(model), model.trainable_variables
    results = []
    for size in (None, 2):
        model.micro_batch_size = size
        results.append(
            variable_gradients(lambda: model.compute_loss(x=batch, training=True), variables)
        )
    (loss, gradients), (cached_loss, cached) = results
    np.testing.assert_allclose(cached_loss, loss, rtol=1e-5)
    scale = max(np.abs(g).max() for g in gradients)
    for one, other in zip(gradients, cached, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * scale)


def test_fit():
    weights = []
    for size in (None, 4):
        keras.utils.set_random_seed(0)
        model = clip()
        model.compile(keras.optimizers.SGD(0.1), micro_batch_size=size)
        batch = {k: to_numpy(v) for k, v in batch_of(model).items()}
        model.fit(batch, batch_size=8, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_second_fit_may_have_another_batch_size():
    model = simclr(vit(num_layers=1), augmenter=crops())
    model.compile(keras.optimizers.SGD(0.1), micro_batch_size=2)
    for batch_size in (8, 4):
        history = model.fit(PICTURES, batch_size=batch_size, verbose=0).history
        assert np.isfinite(history["loss"][0])


def test_second_pass_draws_what_the_first_drew(monkeypatch):
    """Stochastic depth: as if the micro-batches had been encoded once, and all kept."""
    keras.utils.set_random_seed(0)
    model = clip(num_layers=2, drop_path_rate=0.5)
    batch, variables = batch_of(model), model.trainable_variables
    state = [v for v in model.variables if not keras.backend.is_float_dtype(v.dtype)]
    before = [to_numpy(v).copy() for v in state]

    def gradients():
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        return variable_gradients(lambda: model.compute_loss(x=batch, training=True), variables)

    model.micro_batch_size = 4
    loss, cached = gradients()

    def kept(model, encoder, function, inputs, training):
        return ops.concatenate([function(inputs[:4]), function(inputs[4:])], axis=0)

    monkeypatch.setattr(image_text, "in_micro_batches", kept)
    expected_loss, expected = gradients()
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    scale = max(np.abs(g).max() for g in expected)
    for one, other in zip(expected, cached, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * scale)


def test_refusals():
    model = SimCLR(small_resnet((16, 16, 3), 4), projection_dim=8, augmenter=crops(), seed=0)
    model.compile(keras.optimizers.SGD(0.1), micro_batch_size=4)
    with pytest.raises(ValueError, match="batch normalisation"):
        model.fit(PICTURES, batch_size=8, verbose=0)
    model = clip()
    model.compile(keras.optimizers.SGD(0.1), micro_batch_size=3)
    batch = {k: to_numpy(v) for k, v in batch_of(model).items()}
    with pytest.raises(ValueError, match="micro_batch_size=3, 8 rows"):
        model.train_on_batch(batch)
