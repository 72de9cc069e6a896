"""Linear segmentation and depth probes against scikit-learn, scipy and a rendered scene."""

import json

import numpy as np
import pytest
import scipy.ndimage
import toy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score, mean_squared_error

from keras_ssl import datasets
from keras_ssl.evaluation import (
    LinearDepthProtocol,
    LinearSegmentationProtocol,
    Protocol,
    patch_features,
)

FAST = dict(epochs=8, batch_size=256, learning_rates=(0.1, 0.5), pixels_per_image=32)


def enlarged(maps, size):
    """scipy's bilinear enlargement of `(N, h, w, D)`."""
    _, h, w, _ = maps.shape
    zoom = (1, size[0] / h, size[1] / w, 1)
    return scipy.ndimage.zoom(maps.astype("float64"), zoom, order=1, grid_mode=True, mode="nearest")


def regions(count, seed=0, classes=3, grid=4, size=12):
    """Features that tell, with noise, the class of each quarter of a picture."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (count, 2, 2)).repeat(size // 2, 1).repeat(size // 2, 2)
    centres = np.random.default_rng(99).normal(size=(classes, 6))
    coarse = labels[:, :: size // grid, :: size // grid]
    maps = centres[coarse] + 0.6 * rng.normal(size=(count, grid, grid, 6))
    return maps.astype("float32"), labels


@pytest.mark.parametrize("standardize", ["dataset", "batch", None])
def test_segmentation_is_near_logistic_regression_of_enlarged_features(standardize):
    train, test = regions(60), regions(25, seed=1)
    protocol = LinearSegmentationProtocol(**FAST, standardize=standardize, ignore_label=9)
    result = protocol.evaluate(train=train, test=test)
    pixels = [enlarged(maps, (12, 12)).reshape(-1, 6) for maps, _ in (train, test)]
    reference = LogisticRegression(C=1e3, max_iter=500).fit(pixels[0], train[1].ravel())
    predicted = reference.predict(pixels[1])
    expected = jaccard_score(test[1].ravel(), predicted, average="macro")
    assert 0.6 < expected < 0.98
    assert result.metrics["miou"] == pytest.approx(expected, abs=0.03)
    assert result.metrics["pixel_accuracy"] == pytest.approx(
        (predicted == test[1].ravel()).mean(), abs=0.02
    )
    assert result.data == {"train": 60, "test": 25, "features": 6, "classes": 3}


def test_drawn_pixels_are_enlarged_features():
    maps, labels = regions(4)
    protocol = LinearSegmentationProtocol(pixels_per_image=50)
    known = np.random.default_rng(0).random(labels.shape) > 0.3
    known[0] = False
    known[0, 0, :7] = True  # fewer than are wanted
    everything = enlarged(maps, (12, 12))
    pixels, classes = protocol._draw(np.random.default_rng(1), maps, labels, known)
    pixels, classes = pixels.reshape(4, 50, 6), classes.reshape(4, 50)
    for i in range(4):
        distance = np.abs(pixels[i][:, None] - everything[i].reshape(-1, 6)[None]).max(-1)
        same = (distance < 1e-5) & known[i].ravel()  # beyond the border's centres some are equal
        assert same.any(1).all()
        place = same.argmax(1)
        np.testing.assert_array_equal(labels[i].ravel()[place], classes[i])
        assert len(set(place)) >= 0.6 * min(50, known[i].sum())


def test_miou_equals_scikit_learn_and_ignores():
    rng = np.random.default_rng(2)
    labels, predicted = rng.integers(0, 4, (2, 5, 6, 7))
    labels[labels == 2] = 255
    protocol = LinearSegmentationProtocol()
    metrics, details = protocol._score(predicted.astype("float32"), labels, protocol._known(labels))
    true, guess = labels[labels != 255], predicted[labels != 255]
    expected = jaccard_score(true, guess, average=None, labels=[0, 1, 2, 3])
    np.testing.assert_allclose(list(details["iou_by_class"].values()), expected)
    assert metrics["miou"] == pytest.approx(expected.mean())
    assert metrics["pixel_accuracy"] == pytest.approx((true == guess).mean())


def test_ignored_pixels_do_not_count():
    train, test = regions(40), regions(20, seed=1)
    protocol = LinearSegmentationProtocol(**FAST)
    results = []
    for wrong in (0, 7):  # what stands below the ignored pixels cannot matter
        sets = []
        for maps, labels in (train, test):
            maps, labels = maps.copy(), labels.copy()
            maps[:, :2] += 100 * wrong  # the upper half
            labels[:, :9] = 255  # and all pixels that it reaches
            sets.append((maps[:, 2:], labels[:, 6:]))
        results.append(protocol.evaluate(train=sets[0], test=sets[1]).metrics)
    assert results[0] == results[1] and results[0]["miou"] > 0.4


def test_emoji_on_photos_are_segmented_from_a_model():
    emoji = datasets.load_emoji(styles="noto").select(slice(0, 40))
    photos = np.random.default_rng(0).integers(0, 90, (9, 8, 8, 3)).astype("uint8")
    scenes = datasets.paste_on_photos(emoji, photos, image_size=16, scale=(0.6, 0.9))
    labels = (scenes.alphas > 127).astype("uint8")
    model = toy.simclr()
    toy.fill(model, scale=0.2)
    protocol = LinearSegmentationProtocol(**FAST)
    train, test = [(scenes.images[rows], labels[rows]) for rows in (slice(0, 30), slice(30, 40))]
    result = protocol.evaluate(model, train=train, test=test)
    by_hand = protocol.evaluate(
        train=(patch_features(model, train[0]), train[1]),
        test=(patch_features(model, test[0]), test[1]),
    )
    assert result.metrics == pytest.approx(by_hand.metrics, abs=1e-3)
    constant = jaccard_score(test[1].ravel(), np.ones(test[1].size), average="macro")
    assert result.metrics["miou"] > constant + 0.1
    # Pixels are maps as well, with a grid of their own.
    quick = LinearSegmentationProtocol(**{**FAST, "epochs": 1})
    pixels = quick.evaluate("pixels", train=train, test=test)
    assert pixels.data["features"] == 3 and pixels.details["grid"] == [16, 16]
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert by_hand.comparable_with(result) and "miou" in str(result)


# ---- depth


def spheres(count, size=16, seed=0):
    """Rays through a room: a floor, a far wall and a sphere, with their true depth.

    The camera looks along z from one metre above the floor; the wall is 6 m away. Light falls
    off with depth, as in fog, and each surface has a colour of its own.
    """
    rng = np.random.default_rng(seed)
    images, depths = [], []
    place = (np.arange(size) + 0.5) / size - 0.5
    x, y = np.meshgrid(place, place)
    rays = np.stack([x, y, np.ones_like(x)], axis=-1)  # z of a point is its distance t
    for _ in range(count):
        depth, colour = np.full((size, size), 6.0), np.full((size, size, 3), 0.9)
        with np.errstate(divide="ignore"):
            floor = np.where(y > 0, 1 / y, np.inf)
        colour[floor < depth] = 0.7
        depth = np.minimum(depth, floor)
        centre, radius = rng.uniform((-0.8, -0.4, 2), (0.8, 0.4, 4)), rng.uniform(0.4, 0.9)
        a, b = (rays**2).sum(-1), rays @ centre
        root = b**2 - a * (centre @ centre - radius**2)
        t = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        colour[t < depth] = (1.0, 0.5, 0.4)
        depth = np.minimum(depth, t)
        images.append(255 * colour * np.exp(-depth / 4)[..., None])
        depths.append(depth)
    return np.stack(images).astype("uint8"), np.stack(depths).astype("float32")


def test_depth_of_a_rendered_scene():
    train, test = spheres(50), spheres(20, seed=1)
    model = toy.simclr()
    toy.fill(model, scale=0.2)
    protocol = LinearDepthProtocol(epochs=40, batch_size=128, learning_rates=(0.3, 1.0), bins=32)
    result = protocol.evaluate(model, train=train, test=test)
    # The same bins by logistic regression.
    pixels = [
        enlarged(patch_features(model, images), (16, 16)).reshape(-1, 16)
        for images, _ in (train, test)
    ]
    mean, std = pixels[0].mean(0), pixels[0].std(0)
    edges = np.linspace(train[1].min(), train[1].max(), 33)
    centres = (edges[1:] + edges[:-1]) / 2
    labels = np.clip(np.digitize(train[1].ravel(), edges) - 1, 0, 31)
    reference = LogisticRegression(C=1e3, max_iter=300).fit((pixels[0] - mean) / std, labels)
    predicted = reference.predict_proba((pixels[1] - mean) / std) @ centres[reference.classes_]
    expected = np.sqrt(mean_squared_error(test[1].ravel(), predicted))
    constant = test[1].std()
    assert expected < 0.6 * constant
    assert result.metrics["rmse"] == pytest.approx(expected, rel=0.15)
    assert result.metrics["delta1"] > 0.6
    text = str(result)
    assert f"rmse {result.metrics['rmse']:.4g}" in text and "delta1" in text and " %" in text


def test_depth_metrics():
    rng = np.random.default_rng(3)
    true = rng.uniform(1, 5, (3, 4, 4))
    true[0, 0] = 0  # unknown
    true[0, 1, 0] = np.nan
    predicted = true * rng.uniform(0.6, 1.6, true.shape)
    predicted[0, :2] = 1.0
    protocol = LinearDepthProtocol()
    metrics, _ = protocol._score(predicted, true, protocol._known(true))
    known = np.isfinite(true) & (true > 0)
    t, p = true[known], predicted[known]
    assert len(t) == 43
    assert metrics["rmse"] == pytest.approx(np.sqrt(mean_squared_error(t, p)))
    assert metrics["delta1"] == pytest.approx(np.mean((p / t < 1.25) & (t / p < 1.25)))
    assert metrics["abs_rel"] == pytest.approx(np.mean(np.abs(p - t) / t))


def test_depth_that_the_features_hold_is_found():
    depths = np.random.default_rng(4).uniform(1, 3, (40, 4, 4)).astype("float32")
    maps = np.stack([depths, depths**2], axis=-1)
    protocol = LinearDepthProtocol(**{**FAST, "epochs": 60}, bins=16, min_depth=1.0, max_depth=3.0)
    result = protocol.evaluate(train=(maps[:30], depths[:30]), test=(maps[30:], depths[30:]))
    assert result.metrics["rmse"] < 0.15 < depths.std() / 3 and result.metrics["delta1"] > 0.97
    assert result.details["learning_rate"] in protocol.learning_rates
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


def test_a_diverging_rate_loses():
    train = regions(30)
    options = {**FAST, "learning_rates": (0.1, 1e38), "standardize": None}
    maps = 100 * train[0]
    for protocol, target in (
        (LinearSegmentationProtocol(**options), train[1]),
        (LinearDepthProtocol(**options, bins=4), 1.0 + train[1]),
    ):
        result = protocol.evaluate(train=(maps, target), test=(maps[:5], target[:5]))
        assert result.details["learning_rate"] == 0.1
        assert all(np.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: LinearSegmentationProtocol(pixels_per_image=0), ValueError, "pixels_per_image=0"),
        (lambda: LinearSegmentationProtocol("adam"), ValueError, "optimizer='adam'"),
        (lambda: LinearDepthProtocol(bins=2.5), ValueError, "bins=2.5"),
        (lambda: LinearDepthProtocol(min_depth=3, max_depth=2), ValueError, "min_depth=3"),
        (lambda: evaluate(labels=np.zeros((9, 4), int)), ValueError, r"shape \(9, 4\)"),
        (lambda: evaluate(labels=np.zeros((3, 4, 4), int)), ValueError, "for 4 images"),
        (lambda: evaluate(labels=np.zeros((4, 4, 4))), ValueError, "dtype float64"),
        (lambda: evaluate(labels=np.full((4, 4, 4), 255)), ValueError, "no pixel"),
        (lambda: evaluate(maps=np.ones((4, 4, 4))), ValueError, r"shape \(4, 4, 4\)"),
        (lambda: evaluate(maps=np.full((4, 2, 2, 3), np.nan)), ValueError, "finite"),
        (lambda: evaluate(test=(np.ones((1, 2, 2, 5)), np.zeros((1, 4, 4), int))), ValueError, "3"),
        (
            lambda: evaluate(test=(np.ones((1, 2, 2, 3)), np.full((1, 4, 4), 6))),
            ValueError,
            "a test label 6",
        ),
        (lambda: evaluate(model=3), TypeError, "model=3"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def evaluate(maps=None, labels=None, test=None, model=None):
    maps = np.ones((4, 2, 2, 3)) if maps is None else maps
    labels = np.zeros((4, 4, 4), "int64") if labels is None else labels
    test = test or (np.ones((1, 2, 2, 3)), np.zeros((1, 4, 4), int))
    return LinearSegmentationProtocol(**FAST).evaluate(model, train=(maps, labels), test=test)
