"""CLIP's recipe and lessons on a few small pictures: they run, and keep to what they promise."""

import json
import sys

import numpy as np
import pytest

import keras_ssl


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    """The folder that the recipe leaves, its result, its data."""
    folder = tmp_path_factory.mktemp("clip")
    small = "--concepts 50 --size 16 --width 4 --batch-size 16 --epochs 1".split()
    argv, sys.argv = sys.argv, ["clip.py", *small, "--output", str(folder)]
    try:
        result = example("clip").main()
    finally:
        sys.argv = argv
    return folder, result, example("clip_emoji").load(size=16, concepts=50)


def test_nothing_held_out_is_in_training(trained):
    _, result, data = trained
    assert result["pictures"] == len(data.train) and result["unseen"] == data.unseen.sum() > 0
    assert "twemoji" not in data.styles[data.train]
    assert not np.isin(data.captions[data.train], data.names[data.unseen]).any()
    assert np.isin(data.names[~data.unseen], data.captions[data.train]).all()
    for rows, style in ((data.queries, "twemoji"), (data.gallery, "noto")):
        np.testing.assert_array_equal(data.captions[rows], data.names)
        assert set(data.styles[rows]) == {style}


def test_the_recipe_leaves_figures_and_a_preset_that_gives_them(trained, example):
    folder, result, data = trained
    assert json.loads((folder / "result.json").read_text()) == result
    model = keras_ssl.models.CLIP.from_preset(str(folder / "preset"))
    assert example("clip_emoji").measure(model, data) == result["CLIP"]
    # The figures are those of pairs of pictures, and of pictures and names.
    x, y = model.encode_image(data.images, 32), model.encode_text(data.names, 32)
    best = (x[data.queries] @ x[data.gallery].T).argmax(axis=1) == np.arange(len(y))
    assert result["CLIP"]["picture to picture, all"]["R@1"] == pytest.approx(best.mean())
    named = (x[data.queries] @ y.T).argmax(axis=1) == np.arange(len(y))
    assert result["CLIP"]["zero-shot, all"]["R@1"] == pytest.approx(named.mean())


def test_prompts_and_confusions_of_a_preset(trained, example, tmp_path, monkeypatch):
    folder, _, data = trained
    model = keras_ssl.models.CLIP.from_preset(str(folder / "preset"))
    prompts, confusions = example("clip_prompts"), example("clip_confusions")
    monkeypatch.setitem(prompts.TEMPLATES, "imagenet_80", ("a photo of {}.", "{}"))
    result = prompts.accuracies(model, data)
    assert result["alone"]["ImageNet's"]["{}"] == result["the bare name"]
    prompts.draw(result, tmp_path / "prompts.png")
    emoji = keras_ssl.datasets.load_emoji("twemoji", 16, background=(255, 255, 255))
    emoji = emoji.select(slice(0, 400, 8))
    said, shares = confusions.confusions(model, emoji)
    right = emoji.captions[said] == emoji.captions
    assert shares["all"]["right"] == pytest.approx(right.mean()) and len(said) == 50
    confusions.draw(emoji, emoji, said, shares, tmp_path / "confusions.png")
    assert (tmp_path / "prompts.png").exists() and (tmp_path / "confusions.png").exists()


def test_captions_are_wrong_for_the_share_asked(example):
    captions = np.array([f"thing {i}" for i in range(40)])
    wrong = example("clip_noise").corrupt(captions, 0.25)
    assert (wrong != captions).sum() == 10 and sorted(wrong) == sorted(captions)


def test_batches_are_measured(example, monkeypatch):
    batches, asked = example("clip_batch_size"), []

    def fit(model, images, captions, batch_size, epochs, verbose, callbacks):  # as the recipe's
        asked.append((model.micro_batch_size, batch_size, epochs, len(images) == len(captions)))
        callbacks[0].on_epoch_end(0)
        np.ones(2**24)  # 128 MB, which the end of training no longer has
        callbacks[0].on_train_end()

    monkeypatch.setattr(keras_ssl.models.CLIP, "fit", fit)
    result = batches.run("512, 64 at a time", 1, concepts=20, width=8)
    assert asked == [(64, 512, 1, True)]
    assert 120 < result["memory of a step (MB)"] < 200 and 0 <= result["zero-shot, all"]["R@1"] <= 1


def test_accuracies_between_before_and_after(trained, example, monkeypatch):
    folder, _, data = trained
    model = keras_ssl.models.CLIP.from_preset(str(folder / "preset"))
    finetune = example("clip_finetune")
    monkeypatch.setattr(finetune, "ALPHAS", np.array([0.0, 1.0]))
    before = [w.copy() for w in model.get_weights()]

    def fit(images, captions, *args, **kwargs):  # no second training: it is what `trained` tests
        assert set(captions) <= set(data.groups) and len(images) == len(data.train)
        model.set_weights([-w for w in model.get_weights()])

    monkeypatch.setattr(model, "fit", fit)
    zero_shot = finetune.accuracies(model, data, data.groups)["zero-shot"]
    assert zero_shot == example("clip_emoji").measure(model, data)["zero-shot, unseen"]["R@1"]
    rows = finetune.between(model, data, data.groups, epochs=1)
    assert [row["alpha"] for row in rows] == [0, 1] and rows[0]["zero-shot"] == zero_shot
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
