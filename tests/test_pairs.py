"""Pairs of pictures: who is drawn beside whom, views of both, and films read as frames."""

import sys
import types

import keras
import numpy as np
import pytest
import toy
from gradients import compiled

from keras_ssl import datasets
from keras_ssl.augmentation import PairedViews, Views


def drawn(pairs, epochs):
    """`(first, second)` row numbers of so many epochs; the pictures are their own numbers."""
    found = []
    for _ in range(epochs):
        found += [
            np.stack([a.ravel(), b.ravel()], 1)
            for ((a, b),) in (pairs[i] for i in range(len(pairs)))
        ]
        pairs.on_epoch_end()
    return np.concatenate(found)


def numbers(count):
    return np.arange(count).reshape(-1, 1, 1, 1)


def test_partners_are_all_others_of_the_group_alike():
    groups = np.array([0, 1, 0, 1, 0, 2, 0, 1])  # 4 of 0, 3 of 1, one of 2
    pairs = datasets.ImagePairs(numbers(8), groups, batch_size=4)
    found = drawn(pairs, 600)
    assert len(pairs) == 2 and (np.bincount(found[:, 0]) == 600).all()  # each first once an epoch
    np.testing.assert_array_equal(groups[found[:, 0]], groups[found[:, 1]])
    alone = found[:, 0] == 5
    assert (found[alone, 1] == 5).all() and (found[~alone, 0] != found[~alone, 1]).all()
    counts = np.bincount(found[found[:, 0] == 2, 1], minlength=8)
    np.testing.assert_allclose(counts[[0, 4, 6]] / 600, 1 / 3, atol=0.06)  # three deviations


def test_partners_in_time_are_near():
    groups, times = np.repeat([7, 3], 20), np.tile(np.arange(20), 2)
    order = np.random.default_rng(0).permutation(40)
    pairs = datasets.ImagePairs(
        numbers(40), groups[order], batch_size=40, times=times[order], max_gap=3
    )
    found = order[drawn(pairs, 200)]
    np.testing.assert_array_equal(groups[found[:, 0]], groups[found[:, 1]])
    gap = np.abs(times[found[:, 0]] - times[found[:, 1]])
    assert set(gap) == {1, 2, 3}
    first = found[found[:, 0] == 0, 1]
    assert set(first) == {1, 2, 3}  # the end of a film has neighbours on one side


def test_pairs_are_the_same_for_the_same_seed_and_epoch():
    def epoch(seed, number):
        pairs = datasets.ImagePairs(numbers(12), np.arange(12) // 4, 6, seed=seed, epoch=number)
        return drawn(pairs, 1)

    again = datasets.ImagePairs(numbers(12), np.arange(12) // 4, 6, seed=1)
    np.testing.assert_array_equal(drawn(again, 2)[12:], epoch(1, 1))
    assert (epoch(1, 0) != epoch(2, 0)).any() and (epoch(1, 0) != epoch(1, 1)).any()
    with pytest.raises(ValueError, match="one group"):
        datasets.ImagePairs(numbers(3), [0, 1])
    with pytest.raises(ValueError, match="batch_size"):
        datasets.ImagePairs(numbers(3), [0, 1, 1], batch_size=4)


def test_views_of_pairs_are_those_of_each_picture():
    images = toy.images(8, 20)
    first, second = images[:4], images[4:]
    recipe = [{"crop": {"scale": (0.3, 1.0)}, "flip": {}}]
    # A recipe with a kind of view for each side: each picture gets its own kind.
    sides = [{"crop": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}}, recipe[0]]
    views = PairedViews(sides, 20, seed=0)
    again = PairedViews.from_config(views.get_config())
    one, pair = Views(recipe, 16, seed=3), PairedViews(recipe, 16, seed=3)

    def all_of_them():
        calls = [one(images, training=False), pair((first, second), training=False)]
        return calls + [v((first, second), training=False) for v in (views, again)]

    made = compiled(all_of_them)()
    (both,), (a, b), (whole, part), other = (tuple(map(toy.to_numpy, views)) for views in made)
    np.testing.assert_allclose(np.concatenate([a, b]), both, atol=1e-6)
    np.testing.assert_allclose(whole, first / 255, atol=1e-5)
    assert np.abs(part - second / 255).max() > 0.05
    np.testing.assert_array_equal(other, (whole, part))
    named = PairedViews("byol", 16)
    assert named.mean == Views("byol", 16).mean and named.size == (16, 16)
    for wrong in ("dino", "mae_", [{"count": 3, "crop": {}}]):
        with pytest.raises(ValueError, match="recipe"):
            PairedViews(wrong, 16)
    with pytest.raises(ValueError, match="pair"):
        views((first, second, first))


def test_a_model_learns_from_pairs_and_is_saved_with_them(tmp_path):
    images = toy.images(24, 16)
    pairs = datasets.ImagePairs(images, np.arange(24) // 3, batch_size=12)
    views = PairedViews([{"crop": {"scale": (0.5, 1.0)}, "flip": {}}], 16, seed=1)
    pixels = keras.Input((16, 16, 3))
    network = keras.Model(pixels, keras.layers.Conv2D(4, 3, 4, activation="relu")(pixels))
    model = toy.simclr(network, augmenter=views)
    before = model.get_weights()
    losses = model.fit(pairs, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and np.abs(before[0] - model.get_weights()[0]).max() > 0
    model.save(tmp_path / "pairs.keras")
    again = keras.saving.load_model(tmp_path / "pairs.keras")
    assert isinstance(again.augmenter, PairedViews)
    for weight, saved in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, saved)  # the place in the random stream, too


# ---- films


def frames(count=6, side=24):
    """Frames of one colour each, so that a lossy file keeps them."""
    shades = np.linspace(20, 230, count).astype("uint8")
    return np.broadcast_to(shades[:, None, None, None], (count, side, side + 8, 3))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_films_are_read_as_frames(tmp_path, suffix):
    path, expected = tmp_path / f"film.{suffix}", frames()
    datasets.write_video(path, expected)
    found = datasets.read_video(path)
    assert found.shape == expected.shape and found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=3)
    small = datasets.read_video(path, 12, every=2, max_frames=2)
    assert small.shape == (2, 12, 12, 3)
    np.testing.assert_allclose(small, expected[[0, 2], :12, :12], atol=3)


def test_several_films_are_one_array(tmp_path):
    for name, count in (("a.gif", 4), ("b.webp", 2)):
        datasets.write_video(tmp_path / name, frames(count))
    found, numbers, times = datasets.read_videos([tmp_path / "a.gif", tmp_path / "b.webp"], 8)
    assert found.shape == (6, 8, 8, 3) and numbers.tolist() == [0, 0, 0, 0, 1, 1]
    assert times.tolist() == [0, 1, 2, 3, 0, 1]
    with pytest.raises(ValueError, match="Animations"):
        datasets.write_video(tmp_path / "a.mp4", frames(2))


def test_a_scene_moves():
    drawing = np.zeros((10, 10, 4), "uint8")
    drawing[..., 0] = drawing[..., 3] = 255  # red
    photo = np.zeros((2, 2, 3), "uint8")
    film = datasets.moving_scene(drawing, photo, frames=5, image_size=40, seed=3)
    assert film.shape == (5, 40, 40, 3) and film[..., 1:].max() == 0
    red = (film[..., 0] > 127).mean(axis=(1, 2))
    assert ((red > 0.1) & (red < 0.8)).all()  # it is there, and something else too
    centres = [np.argwhere(frame > 127).mean(axis=0) for frame in film[..., 0]]
    assert np.linalg.norm(np.diff(centres, axis=0), axis=1).min() > 0.3
    again = datasets.moving_scene(drawing, photo, frames=5, image_size=40, seed=3)
    np.testing.assert_array_equal(again, film)


def test_films_of_other_kinds_go_to_av(tmp_path, monkeypatch):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"a film")

    class Film:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def decode(self, video):
            assert video == 0
            for frame in frames(3):
                yield types.SimpleNamespace(to_ndarray=lambda format, frame=frame: frame)

    monkeypatch.setattr("keras_ssl.datasets.video.find_spec", lambda name: name == "av" or None)
    monkeypatch.setitem(sys.modules, "av", types.SimpleNamespace(open=lambda path: Film()))
    np.testing.assert_array_equal(datasets.read_video(path), frames(3))
    monkeypatch.setattr("keras_ssl.datasets.video.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install av"):
        datasets.read_video(path)


def test_what_is_no_film_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        datasets.read_video(tmp_path / "film.gif")
    (tmp_path / "film.gif").write_bytes(b"no film")
    with pytest.raises(ValueError, match="cannot be read"):
        datasets.read_video(tmp_path / "film.gif")
    with pytest.raises(ValueError, match="every"):
        datasets.read_video(tmp_path / "film.gif", every=0)


def test_emoji_are_written_as_class_folders(tmp_path):
    data = datasets.load_emoji("noto", 16, background=(255, 255, 255))
    data = data.select(np.arange(len(data)) % 40 == 0)
    data.save_to_folder(tmp_path / "emoji")
    images, labels, names = datasets.load_arrays(tmp_path / "emoji", 16, verbose=False)
    assert set(names) == set(data.groups) and len(images) == len(data)
    folder = datasets.FolderImages(tmp_path / "emoji", 16)
    place = {name: row for row, name in enumerate(folder.file_names)}
    files = (f"{g}/{c} noto.png" for g, c in zip(data.groups, data.captions, strict=True))
    rows = [place[file.replace(":", "-")] for file in files]
    np.testing.assert_array_equal(images[rows], data.images)
    np.testing.assert_array_equal(np.array(names)[labels[rows]], data.groups)
    with pytest.raises(ValueError, match="by"):
        data.save_to_folder(tmp_path, by="colour")
