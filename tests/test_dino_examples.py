"""DINO's lessons and dense uses on a few small pictures: data, losses and figures are as said."""

import keras
import numpy as np
import pytest
import toy
from gradients import variable_gradients

from keras_ssl import datasets, evaluation


@pytest.fixture
def few(monkeypatch):
    """The examples find 43 drawings and 20 photographs of noise, others in each part."""
    emoji = datasets.load_emoji("noto").select(slice(None, None, 40))
    photos = np.random.default_rng(0).integers(0, 256, (2, 20, 32, 32, 3), "uint8")
    found = {"train": photos[0], "test": photos[1]}
    monkeypatch.setattr(datasets, "load_emoji", lambda *styles: emoji)
    monkeypatch.setattr(
        datasets, "load_arrays", lambda source, subset, verbose: (found[subset], None, None)
    )
    return emoji


def test_scenes_of_segmentation(example, few):
    script = example("dino_segmentation")
    train, validation, test = script.scenes("archive")
    names = [set(part.captions) for part in (train, validation, test)]
    assert sum(map(len, names)) == len(set.union(*names)) == len(few)  # other things in each
    copies = [part.reshape(4, -1, *part.shape[1:]) for part in (train.images, train.alphas)]
    assert (train.captions.reshape(4, -1) == train.captions[: len(train) // 4]).all()
    for part in copies:  # of one thing, at another place before another photograph
        assert all((part[0, i] != part[1, i]).any() for i in range(part.shape[1]))
    masks = train.alphas > 127
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in masks]) - 23.5
    assert centres.std() > 4  # pixels: a box in the middle is not the answer
    assert abs(centres.mean()) < 2


def test_networks_are_compared_from_the_same_start(example, few):
    script = example("dino_segmentation")
    train, _, test = script.scenes("archive")
    name, model = next(script.networks(train, epochs=1))
    assert name == "untrained"
    supervised = script.Supervised(script.network(), num_classes=9)
    for own, other in zip(
        model.teacher_backbone.get_weights(), supervised.backbone.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(own, other)
    maps = evaluation.attention_maps(model, test.images[:2], layer=-1, image_size=96)
    assert maps.shape == (2, 4, 16, 16)  # heads, and twice the patches along each side


def test_a_teacher_by_gradient_learns_from_both_sides(example, monkeypatch):
    lesson = example("lesson_dino")
    options = dict(output_dim=5, hidden_dim=8, bottleneck_dim=4, augmenter=toy.crops(), seed=1)
    model = lesson.GradientTeacher(toy.vit(num_layers=1), teacher_temperature=0.5, **options)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5))  # V x N x K
    center, variable = rng.normal(size=5), keras.Variable(logits.astype("float32"))
    model.center.center.assign(np.broadcast_to(center, model.center.center.shape))
    monkeypatch.setattr(model, "make_views", lambda x, training: x)
    monkeypatch.setattr(model, "project", lambda views, training: variable.value)
    monkeypatch.setattr(model, "current_teacher_temperature", lambda: 0.5)

    def loss(s):  # -mean over pairs and pictures of sum_k p_t log p_v
        log_softmax = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in ((s - center) / 0.5,)]
        student = s / 0.1 - np.log(np.exp(s / 0.1).sum(-1, keepdims=True))
        terms = [
            -(np.exp(log_softmax[0][t]) * student[v]).sum(-1).mean()
            for t in range(2)
            for v in range(3)
            if t != v
        ]
        return np.mean(terms)

    value, (gradient,) = variable_gradients(
        lambda: model.compute_loss(x=None, training=False), [variable]
    )
    assert value == pytest.approx(loss(logits), rel=1e-5)
    for place in ((0, 0, 0), (0, 3, 4), (1, 2, 1), (2, 1, 3)):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        slope = (loss(logits + step) - loss(logits - step)) / 2e-5
        assert gradient[place] == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_largest_prototype_and_looks_of_the_lessons(example, tmp_path):
    model, pictures = toy.dino(), toy.images(24, 16)
    toy.fill(model)
    features = model.predict(pictures, verbose=0)
    logits = keras.ops.convert_to_numpy(model.teacher_head(features))
    center = keras.ops.convert_to_numpy(model.center.center)
    winners = (logits - center).argmax(axis=-1)
    expected = max(np.mean(winners == k) for k in range(24))
    assert example("lesson_dino").largest(model, pictures) == pytest.approx(expected)

    lesson, labels = example("lesson_dino_teacher"), np.arange(24) % 3
    data = (pictures, labels)
    look = lesson.Look(data, data)
    look.set_model(model)
    look.on_train_begin()
    knn = evaluation.KNNProtocol(k=20).evaluate(train=(features, labels), test=(features, labels))
    assert look.rows[0]["step"] == 0 and look.rows[0]["teacher"] == knn.top1
    student = look.features["student"].predict(pictures, verbose=0)
    assert np.abs(student - features).max() > 1e-3  # its own network
    lesson.draw(look.rows, tmp_path / "looks.png")
    assert (tmp_path / "looks.png").exists()


def test_rooms_have_the_depth_that_is_seen(example):
    dense, size = example("dense_probes"), 48
    photos = np.random.default_rng(0).integers(0, 200, (9, 32, 32, 3), "uint8")
    red = np.full((1, 20, 20, 4), (255, 0, 0, 255), "uint8")
    pictures, depths = dense.rooms(20, photos, red, seed=0)
    v = np.arange(size)[:, None] + 0.5
    for picture, depth in zip(pictures, depths, strict=True):
        thing = (picture == (255, 0, 0)).all(axis=-1)
        wall = depth[~thing].max()
        assert 4 <= wall <= 12 and depth.max() == wall  # things stand before it
        # Rays through the floor meet it 1.5 m below the camera: one horizon explains them all.
        floor = ~thing & (depth < wall)
        horizon = (v - size * 1.5 / depth)[floor]
        assert np.ptp(horizon) < 1e-6 and 0 <= horizon[0] <= size / 2
        near = depth[thing].min()
        rows = np.flatnonzero((thing & (depth == near)).any(axis=1))
        foot = round(horizon[0] + size * 1.5 / near)
        assert rows.max() == min(foot, size) - 1  # it stands on the floor,
        assert rows.min() == foot - round(size / near)  # and is 1 m tall


def test_targets_of_the_dense_probes(example, few):
    found = {
        name: (train, test) for name, _, train, test in example("dense_probes").tasks("archive", 6)
    }
    assert set(found) == {"thing", "kind", "depth"}
    for i in range(2):
        thing, kind = (found[name][i][1] for name in ("thing", "kind"))
        assert ((kind > 0) == (thing > 0)).all() and kind.max() <= 9 and thing.max() == 1
        for images, targets in (pair[i] for pair in found.values()):
            assert images.dtype == np.uint8 and images.shape == (*targets.shape, 3)
