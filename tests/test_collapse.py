"""Collapse metrics beside their definitions; the monitor while a model trains."""

import warnings

import keras
import numpy as np
import pytest
from toy import images, mae, moco, simclr, to_numpy, vit

from keras_ssl import evaluation
from keras_ssl.callbacks import CollapseMonitor
from keras_ssl.losses import NTXentLoss
from keras_ssl.models import SimCLR

RNG = np.random.default_rng(0)
PICTURES = images(24, size=16)


def test_metrics_are_their_definitions():
    x, y = RNG.normal(size=(2, 9, 4))
    ux, uy = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum() + 1e-7
    assert evaluation.rankme(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert evaluation.feature_std(x) == pytest.approx(ux.std(axis=0).mean() * 2)
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    assert evaluation.mean_cosine(x) == pytest.approx(np.mean([ux[i] @ ux[j] for i, j in pairs]))
    assert evaluation.alignment(x, y) == pytest.approx(((ux - uy) ** 2).sum(axis=1).mean())
    kernel = [np.exp(-2 * ((ux[i] - ux[j]) ** 2).sum()) for i, j in pairs]
    assert evaluation.uniformity(x) == pytest.approx(np.log(np.mean(kernel)))


def test_metrics_at_their_ends():
    same, spread = np.ones((8, 4)), RNG.normal(size=(4000, 4))
    assert evaluation.rankme(same) == pytest.approx(1, abs=1e-4)
    assert evaluation.rankme(spread) == pytest.approx(4, rel=1e-2)
    assert evaluation.feature_std(same) == 0 and evaluation.mean_cosine(same) == pytest.approx(1)
    assert evaluation.feature_std(spread) == pytest.approx(1, rel=2e-2)
    assert evaluation.uniformity(same) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two rows"):
        evaluation.rankme(np.ones((1, 4)))


def test_the_monitor_logs_every_epoch_and_changes_nothing():
    losses = []
    for callbacks in ([], [CollapseMonitor(PICTURES[:9], batch_size=4)]):
        keras.utils.set_random_seed(1)
        model = moco(vit(num_layers=1))
        history = model.fit(PICTURES, batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
        losses.append(history.history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    names = ["feature_std", "effective_rank", "mean_cosine", "uniformity", "alignment"]
    for name in (*names, "projection_std", "projection_rank", "teacher_distance"):
        assert len(history.history[name]) == 2 and np.isfinite(history.history[name]).all()
    assert 0 < history.history["teacher_distance"][0] < 1
    assert 1 <= history.history["effective_rank"][0] <= 9


def test_the_monitors_features_are_those_of_the_views():
    model = simclr(vit(num_layers=1))
    monitor = CollapseMonitor(PICTURES[:6])
    values = monitor.measure(model)
    views = [to_numpy(model.encode(v)) for v in model.make_views(PICTURES[:6], training=False)]
    assert values["alignment"] == pytest.approx(evaluation.alignment(*views), rel=1e-3)
    assert values["effective_rank"] == pytest.approx(evaluation.rankme(views[0]), rel=1e-3)
    projections = to_numpy(model.projection_head(views[0], training=False))
    assert values["projection_std"] == pytest.approx(evaluation.feature_std(projections), rel=1e-3)
    assert values["projection_rank"] == pytest.approx(evaluation.rankme(projections), rel=1e-3)
    model.backbone.norm.gamma.assign(model.backbone.norm.gamma * 0.0)
    model.backbone.norm.beta.assign(model.backbone.norm.beta + 1.0)
    with pytest.warns(UserWarning, match="collapsed to a point"):
        monitor.on_train_begin()
        monitor.set_model(model)
        logs = {}
        monitor.on_epoch_end(0, logs)
    assert logs["feature_std"] < 1e-4 and logs["mean_cosine"] > 0.999
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # said once
        monitor.on_epoch_end(1, {})


def test_one_view_has_no_alignment():
    values = CollapseMonitor(PICTURES[:4]).measure(mae(vit(num_layers=1)))
    assert not {"alignment", "projection_std", "teacher_distance"} & set(values)


def test_projections_collapse_before_features():
    """All that a head lets through is its offset: the features are as good as ever."""
    model = moco(vit(num_layers=1))
    last = model.projection_head.linears[-1]
    last.kernel.assign(0.0 * last.kernel)
    last.bias.assign(last.bias + 1.0)
    # Below what an untrained network gives, whatever its weights.
    monitor, logs = CollapseMonitor(PICTURES[:6], min_std=0.01), {}
    monitor.on_train_begin()
    monitor.set_model(model)
    with pytest.warns(UserWarning, match="projections of all images are nearly the same"):
        monitor.on_epoch_end(0, logs)
    assert logs["projection_std"] < 1e-4 < logs["feature_std"] > monitor.min_std


def test_a_student_that_says_what_its_teacher_says():
    monitor = CollapseMonitor(PICTURES)
    monitor.on_train_begin()
    monitor._warn_of_agreement(0, {"teacher_student_kl": 0.3})
    monitor._warn_of_agreement(0, {})
    assert not monitor._warned
    with pytest.warns(UserWarning, match="what its teacher says"):
        monitor._warn_of_agreement(1, {"teacher_student_kl": 0.002})


def test_dimensional_collapse_is_named():
    monitor = CollapseMonitor(PICTURES)
    monitor.on_train_begin()
    monitor._values = {"feature_std": 0.5, "effective_rank": 1.5, "mean_cosine": 0.2}
    monitor._possible_rank = {"effective_rank": 64}
    with pytest.warns(UserWarning, match="dimensional collapse"):
        monitor._warn(3)


def test_a_costly_look_waits(monkeypatch):
    monitor, looks = CollapseMonitor(PICTURES, max_cost=0.1), []
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def measure(model):
        looks.append(clock[0])
        clock[0] += 1.0  # a look takes a second, an epoch two
        return {"feature_std": 1.0, "effective_rank": 9.0, "mean_cosine": 0.0}

    monitor.measure = measure
    monitor.set_model(None)
    monitor._possible_rank = {"effective_rank": 9}
    monitor.on_train_begin()
    for epoch in range(40):
        clock[0] += 2.0
        logs = {}
        monitor.on_epoch_end(epoch, logs)
        assert logs["feature_std"] == 1.0
    assert 3 < len(looks) and len(looks[1:]) <= 0.12 * (clock[0] - looks[0])


def test_impossible_options():
    with pytest.raises(ValueError, match="two images"):
        CollapseMonitor(PICTURES[:1])
    with pytest.raises(ValueError, match="max_cost"):
        CollapseMonitor(PICTURES, max_cost=0.0)


# === SimCLR's options for negatives ===


def test_simclr_with_a_memory_bank_and_another_loss():
    loss = NTXentLoss(0.2, decoupled=True, hardness=0.5)
    model = simclr(
        vit(num_layers=1), loss=loss, memory_bank_size=10, augmenter=None, preprocessor=None
    )
    model.compile(keras.optimizers.SGD(0.0))
    views = RNG.random((2, 6, 16, 16, 3)).astype("float32")
    before = to_numpy(model.memory_bank.rows).copy()
    model.test_on_batch(tuple(views))
    np.testing.assert_array_equal(to_numpy(model.memory_bank.rows), before)
    model.train_on_batch(tuple(views))
    after = to_numpy(model.memory_bank.rows)
    np.testing.assert_array_equal(after[6:], before[6:])
    assert int(model.memory_bank.pointer) == 6 and (after[:6] != before[:6]).any()
    copy = SimCLR.from_config(model.get_config())
    assert copy.contrastive_loss.get_config() == loss.get_config()
    assert copy.memory_bank.size == 10 and copy.bank_loss.hardness == 0.5
