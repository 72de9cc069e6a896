"""The recipes for use: each runs on a few pictures, and its figures are what they say they are.

Their common network is small; presets are made here, so that each takes seconds.
"""

import argparse
import functools
import importlib
import json
import os
import pathlib

import keras
import numpy as np
import pytest
import toy
from PIL import Image

import keras_ssl
from keras_ssl.augmentation import Views
from keras_ssl.evaluation import KNNProtocol, SimilarityIndex

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def tiny_resnet(image_shape, width=4):
    inputs = keras.Input(image_shape)
    x = keras.layers.Conv2D(width, 3, 4, activation="tanh")(inputs)
    return keras.Model(inputs, keras.layers.Flatten()(x))  # tells any two pictures apart


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(keras_ssl.backbones, "small_resnet", tiny_resnet)
    # Pictures are resized once for all tests.
    load = functools.cache(keras_ssl.datasets.load_emoji)
    monkeypatch.setattr(keras_ssl.datasets, "load_emoji", load)
    return importlib.import_module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Presets of a convolutional network and of a transformer, and photos in class folders."""
    place = tmp_path_factory.mktemp("recipes")
    keras.utils.set_random_seed(0)
    augmenter = Views([{"count": 2, "crop": {"scale": (0.5, 1.0)}}], size=16, seed=0)
    toy.simclr(tiny_resnet((16, 16, 3)), augmenter=augmenter).save_to_preset(place / "simclr")
    toy.mae(toy.vit(num_layers=1, position_embedding="sincos")).save_to_preset(place / "mae")
    # Three classes that differ in colour, as a person sees at once.
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 5)):
        for label, name in enumerate(("blue", "green", "red")):
            (place / "photos" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (24, 24, 3), "uint8")
                pixels[..., 2 - label] += 120
                Image.fromarray(pixels).save(place / "photos" / part / name / f"{i:02}.png")
    return place


def arguments(place, tmp_path, preset, *more):
    common = ("--output", tmp_path / "run", "--preset", place / preset)
    return [str(value) for value in (*common, *more)]


def test_fine_tuning_a_folder(recipe, place, tmp_path, capsys):
    more = ("--data", place / "photos", "--epochs", 6, "--batch-size", 12, "--learning-rate", 0.01)
    result = recipe("finetune_folder").main(arguments(place, tmp_path, "mae", *more))
    classifier = keras_ssl.models.ImageClassifier.from_preset(tmp_path / "run" / "preset")
    x, y, names = keras_ssl.datasets.load_arrays(place / "photos", 16, subset="test", verbose=False)
    answers = classifier.predict(x, verbose=0).argmax(axis=1)
    assert result["accuracy"] == (answers == y).mean() > 0.6  # colours are easy
    said = capsys.readouterr().out
    for label, name in enumerate(names):
        assert f"{name:24} {(answers == y)[y == label].mean():6.1%} of 5" in said


def test_few_labels(recipe, place, tmp_path):
    more = ("--data", place / "photos", "--fractions", 0.25, "--steps", 4, "--batch-size", 12)
    result = recipe("few_labels").main(arguments(place, tmp_path, "simclr", *more))
    with open(tmp_path / "run" / "few_labels.json", encoding="utf-8") as file:
        assert json.load(file) == result
    lines = [values for name, values in result.items() if "scratch" in name or "pre" in name[:4]]
    assert {len(values) for values in lines if isinstance(values, list)} == {1}
    assert all(0 <= v <= 1 for values in lines if isinstance(values, list) for v in values)
    with Image.open(tmp_path / "run" / "few_labels.png") as plot:
        assert plot.width > 400


def test_near_duplicates(recipe, place, tmp_path):
    module = recipe("near_duplicates")
    # A picture of the folder lies there twice.
    folder = place / "photos"
    (folder / "again.png").write_bytes((folder / "train" / "red" / "03.png").read_bytes())
    result = module.main(arguments(place, tmp_path, "simclr", "--data", folder))
    (folder / "again.png").unlink()
    pair = ("again.png", "train/red/03.png")
    found = {tuple(names): float(similarity) for *names, similarity in result["pairs"]}
    assert found[pair] > 0.9999 >= max(found.values()) - 1e-4
    assert ",".join(pair) in (tmp_path / "run" / "duplicates.csv").read_text()
    assert set(result["table"]) == {"raw pixels", str(place / "simclr"), "whitened"}

    # Its figures, counted by hand: 6 pictures, two of each half copied, one copy not found.
    owner = np.array([0, 1, 2, 3, 4, 5, 0, 0, 0, 1, 1, 1, 3, 3, 3, 4, 4, 4])
    edit = np.array([-1] * 6 + [0, 1, 2] * 4)
    half = np.array([True, True, True, False, False, False])
    features = np.eye(6)[owner] + 1e-3
    features[14] = -1.0  # the cropped copy of 3
    figures = module.measure(features, owner, edit, half)
    assert figures["precision"] == 1.0 and figures["smaller"] == 1.0
    assert figures["cropped"] == 0.5


def test_searching_a_folder(recipe, place, tmp_path, capsys):
    module = recipe("search_folder")
    picture = place / "photos" / "train" / "red" / "03.png"
    more = ("--data", place / "photos", "--picture", picture, "--count", 4)
    result = module.main(arguments(place, tmp_path, "simclr", *more))
    assert result["names"][0] == "train/red/03.png"
    model = keras_ssl.runs.load_model(place / "simclr")
    images = keras_ssl.datasets.FolderImages(place / "photos", 16)
    vectors = model.predict(images[:], verbose=0)
    row = images.file_names.index("train/red/03.png")
    rows, _ = SimilarityIndex(vectors).search(vectors[row], 4)
    assert result["names"] == [images.file_names[i] for i in rows[0]]
    with Image.open(tmp_path / "run" / "found.png") as grid:
        assert grid.width > 5 * 128
    again = module.main(arguments(place, tmp_path, "simclr", *more))
    assert again["names"] == result["names"] and "embedded before" in capsys.readouterr().out


class ColourModel:
    """An image-text model that knows colours: its space is that of mean colours."""

    logit_scale = keras.Variable(3.0)
    texts = {"red": 0, "green": 1, "blue": 2}

    def encode_image(self, images, batch_size=32):
        x = np.asarray(images, "float64").mean(axis=(1, 2))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def encode_text(self, texts, batch_size=32):
        colours = [next(i for c, i in self.texts.items() if c in text) for text in texts]
        return np.eye(3)[colours]


def test_zero_shot_over_a_folder(recipe, place, tmp_path, monkeypatch, capsys):
    module = recipe("zero_shot_folder")
    monkeypatch.setattr(module.runs, "load_model", lambda preset: ColourModel())
    monkeypatch.setattr(module.runs, "model_image_size", lambda model: (16, 16))
    more = ("--data", place / "photos" / "test", "--templates", "simple")
    result = module.main(arguments(place, tmp_path, "none", *more))
    assert result["accuracy"] == 1.0 and len(result["lines"]) == 15
    assert "15 pictures, 3 classes, name: 100.0%" in capsys.readouterr().out
    assert all(name.split("/")[0] == answer for name, answer, _ in result["lines"])
    named = module.main(arguments(place, tmp_path, "none", *more, "--classes", "red", "blue"))
    assert {answer for _, answer, _ in named["lines"]} == {"red", "blue"}
    monkeypatch.setattr(module.runs, "load_model", lambda preset: object())
    with pytest.raises(SystemExit):
        module.main(arguments(place, tmp_path, "none", *more))


def test_reidentification(recipe, tmp_path):
    more = ("--limit", "12", "--size", "16", "--epochs", "2", "--batch-size", "32")
    result = recipe("reidentification").main(["--output", str(tmp_path / "run"), *more])
    assert set(result) == {"raw pixels", "untrained", "pairs"}
    # Raw pixels, measured again by another protocol: Rank-1 is k-NN with one neighbour.
    data = keras_ssl.datasets.load_emoji(image_size=16, background=(255, 255, 255))
    _, test = data.split(test_fraction=0.2, seed=0)
    test = test.select(np.isin(test.concept_ids, np.unique(test.concept_ids)[:12]))
    asks = test.styles == "twemoji"
    x = test.images.reshape(len(test), -1) / 255.0
    x = (x - x.mean(axis=0)).astype("float32")
    _, ids = np.unique(test.concept_ids, return_inverse=True)
    nearest = KNNProtocol(k=1).evaluate(train=(x[~asks], ids[~asks]), test=(x[asks], ids[asks]))
    assert result["raw pixels"]["Rank-1"] == pytest.approx(nearest.top1)
    assert (tmp_path / "run" / "preset" / "task.json").exists()


def test_video_frames(recipe, tmp_path):
    module = recipe("video_frames")
    more = (
        "--things",
        "10",
        "--frames",
        "6",
        "--size",
        "16",
        "--epochs",
        "1",
        "--batch-size",
        "16",
    )
    result = module.main(["--output", str(tmp_path / "run"), *more])
    assert set(result) == {"raw pixels", "untrained", "gap 6"}
    films = sorted((tmp_path / "run" / "films").iterdir())
    frames, numbers, times = keras_ssl.datasets.read_videos(films, 16)
    assert len(films) == 20 and frames.shape == (120, 16, 16, 3)
    assert (np.bincount(numbers) == 6).all() and times.tolist() == list(range(6)) * 20
    moved = np.abs(np.diff(frames[:6].astype(int), axis=0)).mean()
    assert moved > 1  # it is a film, and not a picture
    own = module.main(
        [
            "--videos",
            str(films[0]),
            *more[2:],
            "--output",
            str(tmp_path / "own"),
            "--batch-size",
            "6",
        ]
    )
    assert own == {}


def test_switching_backends(recipe, tmp_path, monkeypatch):
    """Within one backend and process: the parts make the curve of the whole."""
    module = recipe("switch_backend")
    monkeypatch.setattr(
        keras_ssl.backbones,
        "ViTBackbone",
        lambda *_, **__: toy.vit(num_layers=1, image_shape=(32, 32, 3), patch_size=8),
    )
    backend = keras.backend.backend()
    more = ["--backends", backend, backend, "--epochs", "1", "--limit", "64"]

    def here(_, folder, name, *numbers):
        return module.part(folder, name, *numbers)

    result = module.main([*more, "--output", str(tmp_path)], run=here)
    np.testing.assert_allclose(result["switched"], result["whole"], rtol=1e-4)
    assert result["whole"][0] > result["whole"][1] and (tmp_path / "switch_backend.png").exists()


def test_lora(recipe, place, tmp_path):
    module = recipe("lora")
    head = 16 * 3 + 3 + 2 * 16
    lora = (16 * 2 + 2 * 48) + (16 * 2 + 2 * 16)  # of qkv and of projection: A and B
    options = argparse.Namespace(preset=str(place / "mae"), rank=2)
    counts = [
        sum(int(np.prod(w.shape)) for w in module.classifier(options, 3, way).trainable_variables)
        for way in ("linear", "LoRA", "full")
    ]
    assert counts[0] == head and counts[1] == head + lora and counts[2] > counts[1]
    more = ("--data", place / "photos", "--epochs", 6, "--batch-size", 12, "--ways", "LoRA")
    result = module.main(arguments(place, tmp_path, "mae", *more))
    assert result["agreement after loading"] == 1.0
    assert result["LoRA"]["accuracy"] >= 0.5
    frozen = keras_ssl.backbones.ViTBackbone.from_preset(str(place / "mae")).blocks[0]
    tuned = keras_ssl.models.ImageClassifier.from_preset(str(tmp_path / "run" / "preset"))
    attention, mlp = tuned.backbone.blocks[0].attention, tuned.backbone.blocks[0].mlp
    assert np.abs(
        toy.to_numpy(attention.qkv.kernel) - toy.to_numpy(frozen.attention.qkv.kernel)
    ).max()
    np.testing.assert_array_equal(toy.to_numpy(mlp.fc1.kernel), toy.to_numpy(frozen.mlp.fc1.kernel))


def test_export(recipe, place, tmp_path, monkeypatch, capsys):
    """What the backend writes with what the tests install; other formats say what they need."""
    module = recipe("export")
    result = module.main(arguments(place, tmp_path, "simclr", "--batch-size", 3))
    backend = keras.backend.backend()
    expected = {"jax": {"tf_saved_model"}, "tensorflow": {"tf_saved_model", "litert"}}
    assert expected.get(backend, {"torch"}) <= set(result)
    assert max(result.values()) < 1e-5
    said = capsys.readouterr().out
    for format, backends in module.FORMATS.items():
        if format not in result:
            assert f"{format}: " + ("needs" if backend in backends else "Keras writes") in said
    assert os.path.getsize(tmp_path / "run") > 0
