"""MoCo: the queue at any size, the loss, batch normalisation in groups."""

import keras
import numpy as np
import pytest
from gradients import compiled
from keras import ops
from toy import moco, to_numpy, vit

from keras_ssl.layers import FeatureQueue, apply_in_groups
from keras_ssl.losses import InfoNCELoss
from keras_ssl.models import MoCo

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [1, 5, 7, 8])
def test_the_queue_wraps_at_any_size_and_batch(size):
    queue = FeatureQueue(size, 2, seed=0)
    expected, pointer = to_numpy(queue.rows).copy(), 0
    for count in (3, 1, 4, size, 2 * size + 1):
        keys = RNG.normal(size=(count, 2)).astype("float32")
        queue.enqueue(ops.convert_to_tensor(keys))
        for key in keys:  # one at a time
            expected[pointer] = key
            pointer = (pointer + 1) % size
        np.testing.assert_array_equal(to_numpy(queue.rows), expected)
        assert int(queue.pointer) == pointer


def test_a_bank_that_restarts_drops_what_does_not_fit():
    bank = FeatureQueue(5, 2, overflow="restart", seed=0)
    first, second = RNG.normal(size=(2, 3, 2)).astype("float32")
    for batch in (first, second):
        bank.enqueue(ops.convert_to_tensor(batch))
    np.testing.assert_array_equal(to_numpy(bank.rows), np.concatenate([first, second[:2]]))
    assert int(bank.pointer) == 0
    bank.enqueue(ops.convert_to_tensor(np.ones((9, 2), "float32")))
    np.testing.assert_array_equal(to_numpy(bank.rows), np.ones((5, 2)))
    assert int(bank.pointer) == 0


def test_the_queue_starts_equal_on_every_backend():
    rows = to_numpy(FeatureQueue(3, 2, seed=4).rows)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    draw = np.random.default_rng(4).normal(size=(3, 2))
    np.testing.assert_allclose(rows, draw / np.linalg.norm(draw, axis=1, keepdims=True), rtol=1e-6)
    with pytest.raises(ValueError, match="positive"):
        FeatureQueue(0, 2)
    with pytest.raises(ValueError, match="overflow"):
        FeatureQueue(3, 2, overflow="grow")


def numpy_info_nce(q, k, negatives, temperature):
    q, k, negatives = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k, negatives))
    losses = []
    for i in range(len(q)):
        own, others = np.exp(q[i] @ k[i] / temperature), np.exp(negatives @ q[i] / temperature)
        losses.append(-np.log(own / (own + others.sum())))
    return np.mean(losses)


def test_info_nce_with_a_queue_and_within_the_batch():
    q, k = RNG.normal(size=(2, 5, 4))
    negatives = RNG.normal(size=(9, 4))
    tensors = [ops.convert_to_tensor(x.astype("float32")) for x in (q, k, negatives)]
    value = float(InfoNCELoss(0.3)(*tensors))
    assert value == pytest.approx(numpy_info_nce(q, k, negatives, 0.3), rel=1e-5)
    value = float(InfoNCELoss(0.3, scale=0.6)(*tensors[:2]))
    rows = [numpy_info_nce(q[i : i + 1], k[i : i + 1], np.delete(k, i, 0), 0.3) for i in range(5)]
    assert value == pytest.approx(0.6 * np.mean(rows), rel=1e-5)
    loss = InfoNCELoss(0.3, scale=2.0, hardness=0.5, class_prior=0.1, decoupled=True)
    assert InfoNCELoss.from_config(loss.get_config()).get_config() == loss.get_config()


@pytest.mark.parametrize("rows", [2, 5, 8, 11])
def test_groups_are_normalised_on_their_own(rows):
    norm = keras.layers.BatchNormalization(epsilon=1e-5)
    x = RNG.normal(size=(rows, 3)).astype("float32")
    norm.build(x.shape)
    ours = to_numpy(apply_in_groups(lambda part: norm(part, training=True), x, 4))
    assert ours.shape == x.shape and np.isfinite(ours).all()
    if rows >= 8:
        for i in range(4):
            part = x[i * rows // 4 : (i + 1) * rows // 4].astype("float64")
            part = (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5)
            np.testing.assert_allclose(ours[i * rows // 4 :][: len(part)], part, atol=1e-4)


def resnet():
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, use_bias=False)(images)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(images, keras.layers.ReLU()(x))


def test_shuffled_keys_come_back_in_order():
    """Where batch statistics play no part, shuffling changes nothing."""
    model = moco(vit(num_layers=1), batch_norm_groups=4, augmenter=None, preprocessor=None)
    x = RNG.random((9, 16, 16, 3)).astype("float32")
    keys = to_numpy(compiled(lambda: model.keys(x, training=True))())
    plain = to_numpy(compiled(lambda: model.keys(x, training=False))())
    np.testing.assert_allclose(keys, plain, atol=1e-5)
    assert np.abs(plain[1:] - plain[:1]).max() > 1e-3


def test_keys_of_shuffled_groups_see_other_statistics():
    model = moco(resnet(), batch_norm_groups=2, augmenter=None, preprocessor=None)
    x = RNG.random((6, 8, 8, 3)).astype("float32")
    order = np.array([0, 2, 4, 1, 3, 5], "int32")
    keys = to_numpy(model.keys(x, training=True, order=order))
    model.batch_norm_groups = 1
    for rows in (order[:3], order[3:]):
        np.testing.assert_allclose(
            keys[rows], to_numpy(model.keys(x[rows], training=True)), atol=1e-5
        )


def test_a_ragged_last_batch_trains():
    model = moco(resnet(), batch_norm_groups=2, augmenter=None, preprocessor=None)
    model.compile(keras.optimizers.SGD(0.1))
    views = RNG.random((2, 13, 8, 8, 3)).astype("float32")
    batches = [tuple(v[i : i + 5] for v in views) for i in (0, 5, 10)]
    before = to_numpy(model.queue.rows).copy()
    history = model.fit(((batch,) for batch in batches), steps_per_epoch=3, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert int(model.queue.pointer) == 13
    after = to_numpy(model.queue.rows)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(after[13:], before[13:])
    assert (after[:13] != before[:13]).any(axis=1).all()


def test_versions():
    one, two = moco(version=1), moco()
    assert len(one.projection_head.linears) == 1 and one.temperature == 0.07
    assert len(two.projection_head.linears) == 2 and two.temperature == 0.2
    assert not two.projection_head.norms and two.batch_norm_groups == 1
    assert moco(resnet()).batch_norm_groups == 8
    with pytest.raises(ValueError, match="version"):
        moco(version=3)
    with pytest.raises(ValueError, match="parts"):
        moco(resnet()).fit(np.zeros((8, 8, 8, 3), "uint8"), batch_size=8)
    assert MoCo.teacher_update == "before"
