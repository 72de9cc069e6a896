"""KNNEvaluation, LinearProbe, few labels and pictures while a model trains."""

import csv
import math

import keras
import numpy as np
import pytest
import toy
from PIL import Image

from keras_ssl.callbacks import (
    AttentionPlot,
    KNNEvaluation,
    LinearProbe,
    OnlineEvaluation,
    PicturePlot,
    ReconstructionPlot,
    ViewsPlot,
)
from keras_ssl.evaluation import KNNProtocol, LinearProbeProtocol, label_fraction


def labelled(seed, count=24):
    return toy.images(count, seed=seed), np.arange(count) % 3


# ---- few labels


@pytest.mark.parametrize("fraction, expected", [(0.01, (1, 1, 2)), (0.1, (1, 4, 20)), (1.0, None)])
def test_label_fraction_is_stratified(fraction, expected):
    labels = np.repeat([0, 4, 7], [10, 40, 200])
    rng = np.random.default_rng(0)
    rng.shuffle(labels)
    rows = label_fraction(labels, fraction, seed=3)
    counts = np.bincount(labels[rows], minlength=8)[[0, 4, 7]]
    assert tuple(counts) == (expected or (10, 40, 200))
    assert (np.diff(rows) > 0).all()
    assert (rows == label_fraction(labels[:, None], fraction, seed=3)).all()


def test_label_fraction_nests_and_depends_on_the_seed():
    labels = np.arange(300) % 3
    small, large = label_fraction(labels, 0.05, seed=1), label_fraction(labels, 0.2, seed=1)
    assert set(small) <= set(large)
    assert set(large) != set(label_fraction(labels, 0.2, seed=2))


@pytest.mark.parametrize(
    "labels, fraction, message",
    [([0, 1], 0.0, "fraction=0.0"), ([0, 1], 1.5, "fraction=1.5"), ([0.5, 1], 0.5, "float64")],
)
def test_label_fraction_refuses(labels, fraction, message):
    with pytest.raises(ValueError, match=message):
        label_fraction(labels, fraction)


def test_protocols_take_a_share_of_the_labels():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)).astype("float32"), np.arange(200) % 4
    test = (x[:50] + 0.01, y[:50])
    whole = KNNProtocol(k=3).evaluate(train=(x, y), test=test)
    few = KNNProtocol(k=3).evaluate(train=(x, y), test=test, label_fraction=0.1, label_seed=5)
    rows = label_fraction(y, 0.1, seed=5)
    by_hand = KNNProtocol(k=3).evaluate(train=(x[rows], y[rows]), test=test)
    assert few.metrics == by_hand.metrics and few.data["train"] == 20
    assert few.data["label_fraction"] == 0.1 and few.data["label_seed"] == 5
    assert not few.comparable_with(whole) and "label_fraction" not in whole.data


# ---- online evaluation


def test_figures_are_those_of_the_protocols(tmp_path):
    """Every log carries them; they equal the protocol on the model as it is; nothing is touched."""
    train, test = labelled(1), labelled(2)
    images = toy.images()
    models = [toy.mae(), toy.mae()]
    for model in models:
        toy.fill(model)
        model.compile(epochs=3)
    knn = KNNEvaluation(train, test, k=5, every=2)
    linear = LinearProbe(train, test, training_epochs=2, epochs=[3])
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    options = dict(batch_size=12, epochs=3, verbose=0)
    history = models[0].fit(images, callbacks=[knn, linear, log], **options).history
    plain = models[1].fit(images, **options).history

    np.testing.assert_array_equal(history["loss"], plain["loss"])
    for one, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(toy.to_numpy(one), toy.to_numpy(other))

    assert sorted(knn.results) == [2, 3] and sorted(linear.results) == [3]
    expected = KNNProtocol(k=5).evaluate(models[0], train=train, test=test)
    assert knn.results[3].comparable_with(expected) and knn.results[3].metrics == expected.metrics
    assert math.isnan(history["knn_top1"][0])
    assert history["knn_top1"][1:] == [knn.results[2].top1, knn.results[3].top1]
    assert set(linear.results[3].details["top1_by_learning_rate"]) == {
        "0.003",
        "0.01",
        "0.03",
        "0.1",
        "0.3",
        "1.0",
    }
    protocol = LinearProbeProtocol(epochs=2, warmup_epochs=0.2)
    expected = protocol.evaluate(models[0], train=train, test=test)
    assert linear.results[3].metrics == expected.metrics
    assert history["linear_best_top1"][2] == expected.metrics["best_top1"]

    with open(tmp_path / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[2]["knn_top1"]) == knn.results[3].top1
    assert float(rows[2]["linear_top1"]) == linear.results[3].top1
    assert knn.seconds > 0


def test_online_evaluation_refuses_and_says_what():
    train, test = labelled(1), labelled(2)
    with pytest.raises(ValueError, match="24 images, 3 labels"):
        KNNEvaluation((train[0], train[1][:3]), test)
    with pytest.raises(ValueError, match="must be a pair"):
        LinearProbe(train[0], test)
    with pytest.raises(ValueError, match="every=0"):
        OnlineEvaluation(KNNProtocol(), train, test, every=0)
    with pytest.raises(ValueError, match="counted from 1"):
        KNNEvaluation(train, test, epochs=[0, 3])


# ---- pictures


def test_pictures_are_written_at_chosen_epochs(tmp_path):
    images = toy.images()
    model = toy.mae()
    seen = []
    plots = [
        ReconstructionPlot(images[:3], tmp_path / "pictures", every=2, zoom=1),
        ViewsPlot(images[:2], tmp_path / "pictures", zoom=1),
        AttentionPlot(images[:2], tmp_path, epochs=[3], zoom=1),
        PicturePlot(
            lambda m: seen.append(m) or Image.new("RGB", (4, 4)), tmp_path, "own", epochs=[2]
        ),
    ]
    model.fit(images, batch_size=12, epochs=3, verbose=0, callbacks=plots)
    names = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert names == [
        "attention_0003.png",
        "own_0002.png",
        "own_0003.png",
        "reconstruction_0002.png",
        "reconstruction_0003.png",
        "views_0001.png",
        "views_0003.png",
    ]
    assert seen == [model, model] and plots[-1].path == tmp_path / "own_0003.png"
    one, two = (
        np.asarray(Image.open(tmp_path / "pictures" / f"reconstruction_000{i}.png")) for i in (2, 3)
    )
    assert one.shape == two.shape and (one != two).any()  # same masks, other weights
    # three pictures of 16 px for each of three images, gaps of 2
    assert one.shape[:2] == (16 + 4, 9 * 16 + 10 * 2)


def test_views_are_shown_as_the_model_gets_them(tmp_path):
    """Undoing the normalisation gives the pixels that went in, and no state is touched."""
    from keras_ssl.augmentation import Views
    from keras_ssl.visualization import views_grid

    images = toy.images(size=16)
    views = Views(
        [{"crop": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}}],
        size=16,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.1),
        seed=1,
    )
    model = toy.simclr(augmenter=views)
    state = toy.to_numpy(views.stream.state)
    grid = np.asarray(views_grid(model, images[:2], zoom=1))
    np.testing.assert_array_equal(state, toy.to_numpy(views.stream.state))
    for i in range(2):
        top = 2 + i * 18
        picture, view = grid[top : top + 16, 2:18], grid[top : top + 16, 20:36]
        np.testing.assert_array_equal(picture, images[i])
        assert np.abs(view.astype(int) - images[i]).max() <= 1
    with pytest.raises(ValueError, match="augmenter=None"):
        views_grid(toy.simclr(augmenter=None), images)
