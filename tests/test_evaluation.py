"""k-NN and linear probe against scikit-learn and float64 NumPy; protocols as data; bad input."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from keras_ssl.evaluation import (
    EvaluationResult,
    KNNProtocol,
    LinearProbeProtocol,
    Protocol,
    extract_features,
    pixel_features,
)
from keras_ssl.training.compilation import compile_function


def blobs(train=160, test=70, dim=6, classes=7, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(100 + seed).normal(size=(classes, dim))
    sets = []
    for n in (train, test):
        y = np.arange(n) % classes
        sets.append(((centres[y] + spread * rng.normal(size=(n, dim))).astype("float32"), y))
    return sets


def numpy_knn(train, test, k, temperature, normalize):
    """One query at a time in float64: top-1 and top-5."""
    (bank, labels), (queries, targets) = train, test
    bank, queries = bank.astype("float64"), queries.astype("float64")
    if normalize:
        bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    hits = []
    for query, target in zip(queries, targets, strict=True):
        similarity = bank @ query
        nearest = np.argsort(-similarity)[:k]
        votes = {}
        for i in nearest:
            votes[labels[i]] = votes.get(labels[i], 0) + np.exp(similarity[i] / temperature)
        ranking = sorted(votes, key=lambda label: -votes[label])
        hits.append((ranking[0] == target, target in ranking[:5]))
    return tuple(np.mean(hits, axis=0))


# ---- k-NN


@pytest.mark.parametrize("k", [1, 5, 160])
@pytest.mark.parametrize("temperature, normalize", [(0.07, True), (2.0, False)])
def test_knn_equals_numpy(k, temperature, normalize):
    train, test = blobs()
    protocol = KNNProtocol(k, temperature, normalize=normalize, chunk_size=32)
    result = protocol.evaluate(train=train, test=test)
    expected = numpy_knn(train, test, k, temperature, normalize)
    np.testing.assert_allclose((result.top1, result.top5), expected, atol=1e-9)
    assert 0.3 < result.top1 < 1 and result.top1 <= result.top5


def test_knn_equals_scikit_learn():
    train, test = blobs(seed=1)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train[0], test[0])]
    reference = KNeighborsClassifier(
        n_neighbors=20,
        algorithm="brute",
        # of unit vectors: distance**2 = 2 - 2 * cosine
        weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07),
    ).fit(unit[0], train[1])
    expected = reference.score(unit[1], test[1])
    result = KNNProtocol(k=20).evaluate(train=train, test=test)
    assert result.top1 == pytest.approx(expected, abs=1e-9)


def test_knn_does_not_depend_on_the_chunk_size_or_scale():
    train, test = blobs(seed=2)
    results = [
        KNNProtocol(9, chunk_size=size).evaluate(train=train, test=test)
        for size in (1, 16, 70, 999)
    ]
    assert len({json.dumps(r.metrics) for r in results}) == 1
    assert all(results[0].comparable_with(r) for r in results)
    scaled = KNNProtocol(9).evaluate(train=(1000 * train[0], train[1]), test=test)
    assert scaled.metrics == results[0].metrics


def test_knn_of_large_dot_products_does_not_overflow():
    train, test = blobs(seed=3)
    protocol = KNNProtocol(9, normalize=False)
    result = protocol.evaluate(train=(1e3 * train[0], train[1]), test=(1e3 * test[0], test[1]))
    assert result.top1 > 0.3


def test_knn_top5_counts_only_classes_with_votes():
    x = np.eye(4, dtype="float32")
    train, test = (x, np.arange(4)), (x[:1], np.array([3]))
    assert KNNProtocol(k=1).evaluate(train=train, test=test).top5 == 0.0
    assert KNNProtocol(k=4).evaluate(train=train, test=test).top5 == 1.0


# ---- linear probe

FAST = {"epochs": 15, "warmup_epochs": 1, "batch_size": 32}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"standardize": "batch"},
        {"standardize": None},
        # LARS moves the weights by a thousandth of their norm and needs many steps
        {"optimizer": "lars", "standardize": "batch", "learning_rates": (10.0,), "epochs": 60},
    ],
)
def test_linear_probe_is_near_logistic_regression(options):
    train, test = blobs(train=420, test=210, spread=0.7, seed=4)
    reference = LogisticRegression(C=1e3, max_iter=1000).fit(*train).score(*test)
    protocol = LinearProbeProtocol(**{**FAST, **options})
    result = protocol.evaluate(train=train, test=test)
    assert reference > 0.75
    assert abs(result.top1 - reference) < (0.1 if protocol.optimizer == "lars" else 0.06)
    assert result.metrics["best_top1"] >= result.top1
    assert result.top5 > 0.97


def numpy_probe(train, test, protocol, rate):
    """One learning rate in float64, by the definition: accuracy of the test set per epoch."""
    rng = np.random.default_rng(protocol.seed)
    (x, y), (x_test, y_test) = train, test
    classes = y.max() + 1
    w, b = rng.normal(0, 0.01, (x.shape[1], 1, classes))[:, 0], np.zeros(classes)
    mw, mb = np.zeros_like(w), np.zeros_like(b)
    mean, variance, eps = np.zeros(x.shape[1]), np.ones(x.shape[1]), 1e-6
    if protocol.standardize == "dataset":
        mean, variance = x.mean(0, dtype="float64"), x.var(0, dtype="float64")
    batch = min(protocol.batch_size, len(x))
    steps = len(x) // batch
    total, warmup = protocol.epochs * steps, protocol.warmup_epochs * steps
    accuracy, step = [], 0
    for _ in range(protocol.epochs):
        order = rng.permutation(len(x))
        for i in range(steps):
            index = order[i * batch : (i + 1) * batch]
            inputs = x[index].astype("float64")
            if protocol.standardize == "batch":
                m, v = inputs.mean(0), inputs.var(0)
                inputs = (inputs - m) / np.sqrt(v + eps)
                mean = 0.9 * mean + 0.1 * m
                variance = 0.9 * variance + 0.1 * v * batch / (batch - 1)
            elif protocol.standardize == "dataset":
                inputs = (inputs - mean) / np.sqrt(variance + eps)
            logits = inputs @ w + b
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(batch), y[index]] -= 1
            gw, gb = inputs.T @ p / batch + protocol.weight_decay * w, p.mean(0)
            if protocol.optimizer == "lars":
                gw *= 0.001 * np.linalg.norm(w) / np.linalg.norm(gw)
            mw, mb = protocol.momentum * mw + gw, protocol.momentum * mb + gb
            cosine = (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) / 2
            lr = rate * batch / 256 * (step / warmup if step < warmup else cosine)
            w, b, step = w - lr * mw, b - lr * mb, step + 1
        inputs = x_test.astype("float64")
        if protocol.standardize is not None:
            inputs = (inputs - mean) / np.sqrt(variance + eps)
        accuracy.append(((inputs @ w + b).argmax(1) == y_test).mean())
    return accuracy


@pytest.mark.parametrize(
    "options",
    [
        {"standardize": "dataset", "weight_decay": 0.01},
        {"standardize": "batch", "optimizer": "lars", "learning_rates": (3.0, 10.0)},
        {"standardize": None, "batch_size": 1000, "momentum": 0.5},
    ],
)
def test_every_lane_equals_numpy(options):
    train, test = blobs(seed=5)
    options = {"learning_rates": (0.03, 0.3), "epochs": 4, "warmup_epochs": 1, **options}
    protocol = LinearProbeProtocol(**{"batch_size": 32, "validation_fraction": 0.0, **options})
    result = protocol.evaluate(train=train, test=test)
    lanes = result.details["top1_by_learning_rate"]
    one_sample = 1.01 / len(test[1])  # float32 may flip a tie
    for rate in protocol.learning_rates:
        curve = numpy_probe(train, test, protocol, rate)
        assert lanes[str(rate)]["last"] == pytest.approx(curve[-1], abs=one_sample)
        assert lanes[str(rate)]["best"] == pytest.approx(max(curve), abs=one_sample)
    chosen = result.details["learning_rate"]
    assert result.top1 == lanes[str(chosen)]["last"] == result.details["top1_by_epoch"][-1]
    assert result.top1 == max(lane["last"] for lane in lanes.values())
    best = result.details["best_epoch"] - 1
    assert result.details["top1_by_epoch"][best] == result.metrics["best_top1"]


def test_linear_probe_is_deterministic_and_follows_the_seed():
    train, test = blobs(seed=6)
    runs = [
        LinearProbeProtocol(**{**FAST, "epochs": 2}, seed=seed).evaluate(train=train, test=test)
        for seed in (0, 0, 1)
    ]
    assert runs[0].metrics == runs[1].metrics and runs[0].details == runs[1].details
    assert runs[0].details != runs[2].details
    assert not runs[0].comparable_with(runs[2])


def test_a_diverging_learning_rate_loses():
    train, test = blobs(seed=7)
    options = {**FAST, "epochs": 3, "learning_rates": (0.1, 1e38), "standardize": None}
    result = LinearProbeProtocol(**options).evaluate(train=(100 * train[0], train[1]), test=test)
    assert result.details["learning_rate"] == 0.1
    assert result.details["top1_by_learning_rate"]["1e+38"]["last"] == 0.0


def test_reference_recipes():
    mae, dino = LinearProbeProtocol.mae(), LinearProbeProtocol.dino(epochs=3)
    assert (mae.optimizer, mae.batch_size, mae.standardize) == ("lars", 16384, "batch")
    assert (dino.optimizer, dino.epochs, dino.learning_rates) == ("sgd", 3, (0.001,))
    train, test = blobs(seed=8)
    assert dino.evaluate(train=train, test=test).top1 > 0.2


# ---- what protocols share


@pytest.mark.parametrize(
    "protocol",
    [KNNProtocol(20, 0.1, normalize=False), LinearProbeProtocol(learning_rates=(0.1, 1.0), seed=3)],
)
def test_protocol_and_result_as_data(protocol):
    restored = Protocol.from_dict(json.loads(json.dumps(protocol.to_dict())))
    assert restored == protocol and type(restored) is type(protocol)
    assert hash(restored) == hash(protocol)
    assert restored != KNNProtocol(21) and "version='1'" in repr(protocol)


def test_result_as_data():
    train, test = blobs(dim=6)
    result = KNNProtocol(5).evaluate(train=train, test=test)
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert result.data == {"train": 160, "test": 70, "features": 6, "classes": 7}
    text = str(result)
    assert f"top1 {100 * result.top1:.2f} %" in text and "k=5" in text and "version 1" in text
    wider = KNNProtocol(5).evaluate(train=blobs(dim=9)[0], test=blobs(dim=9)[1])
    assert result.comparable_with(wider)
    assert not result.comparable_with(KNNProtocol(6).evaluate(train=train, test=test))


def test_models_pixels_and_functions():
    rng = np.random.default_rng(9)
    y = np.arange(40) % 4
    images = rng.integers(0, 60, (40, 5, 5, 3)).astype("uint8")
    images[np.arange(40), y, y] = 255
    train, test = (images[:30], y[:30, None]), (images[30:], y[30:, None])  # (N, 1) as in CIFAR
    protocol = KNNProtocol(3)
    pixels = protocol.evaluate("pixels", train=train, test=test)
    by_hand = protocol.evaluate(
        train=(pixel_features(train[0]), y[:30]), test=(pixel_features(test[0]), y[30:])
    )
    assert pixels.metrics == by_hand.metrics and pixels.data["features"] == 75
    flatten = keras.Sequential(
        [keras.Input((5, 5, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    )
    for model in (flatten, lambda x: flatten(x.astype("float32"))):
        assert protocol.evaluate(model, train=train, test=test, batch_size=7).top1 == pixels.top1
    features = extract_features(flatten, images, batch_size=16)
    assert features.shape == (40, 75) and features.dtype == np.float32


def good():
    return blobs(train=20, test=10, classes=3)


def broken(which, part, value):
    sets = dict(zip(("train", "test"), good(), strict=True))
    x, y = sets[which]
    sets[which] = (value(x), y) if part == "x" else (x, value(y))
    return sets


def with_nan(x):
    x = x.copy()
    x[3, 1] = np.nan
    return x


@pytest.mark.parametrize(
    "sets, message",
    [
        (broken("train", "x", lambda x: x[:0]), "`train` must not be empty. Received: 0 samples"),
        (broken("test", "y", lambda y: y[:0]), "`test` must not be empty"),
        (broken("test", "y", lambda y: y[:-1]), "10 samples, 9 labels"),
        (broken("train", "y", lambda y: np.eye(3)[y]), r"not one-hot. Received: shape \(20, 3\)"),
        (broken("train", "y", lambda y: y.astype("float32")), "dtype float32"),
        (broken("train", "y", lambda y: y - 1), "a label -1"),
        (broken("test", "y", lambda y: y + 5), "a test label 7"),
        (broken("train", "x", with_nan), "1 of 20 rows, the first is row 3"),
        (broken("test", "x", lambda x: x[:, :, None]), r"shape \(10, 6, 1\)"),
        (broken("test", "x", lambda x: x[:, :4]), "6 and 4"),
        ({**broken("test", "x", lambda x: x), "test": np.ones((3, 2))}, "a pair"),
    ],
)
@pytest.mark.parametrize(
    "protocol", [KNNProtocol(3), LinearProbeProtocol(epochs=1, warmup_epochs=0)]
)
def test_bad_data(protocol, sets, message):
    with pytest.raises(ValueError, match=message):
        protocol.evaluate(**sets)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: KNNProtocol(0), ValueError, "k=0"),
        (lambda: KNNProtocol(2.5), ValueError, "k=2.5"),
        (lambda: KNNProtocol(temperature=0), ValueError, "temperature=0"),
        (lambda: KNNProtocol(chunk_size=0), ValueError, "chunk_size=0"),
        (lambda: KNNProtocol(version="9"), ValueError, "version='9'"),
        (
            lambda: KNNProtocol(21).evaluate(train=good()[0], test=good()[1]),
            ValueError,
            "k=21 for 20",
        ),
        (lambda: LinearProbeProtocol("adam"), ValueError, "optimizer='adam'"),
        (lambda: LinearProbeProtocol(learning_rates=()), ValueError, "learning_rates"),
        (lambda: LinearProbeProtocol(learning_rates=(0.1, -1)), ValueError, "-1.0"),
        (lambda: LinearProbeProtocol(epochs=2, warmup_epochs=3), ValueError, "warmup_epochs=3"),
        (lambda: LinearProbeProtocol(standardize="layer"), ValueError, "standardize='layer'"),
        (lambda: LinearProbeProtocol(validation_fraction=1), ValueError, "validation_fraction=1"),
        (lambda: Protocol.from_dict({"protocol": "magic"}), ValueError, "protocol='magic'"),
        (lambda: extract_features(3, np.ones((2, 2))), TypeError, "model=3"),
        (lambda: extract_features(lambda x: {"a": x}, np.ones((2, 2))), ValueError, "dict of 1"),
    ],
)
def test_bad_options(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_compile_function():
    add = compile_function(lambda x, y, scale: scale * (x + y), static=("scale",))
    total = add(ops.ones((3,)), ops.ones((3,)), scale=2.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(total), [4.0, 4.0, 4.0])
