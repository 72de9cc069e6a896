"""The recipes: every one builds its model, and a run leaves what it promises."""

import argparse
import importlib
import json
import os
import sys

import keras
import numpy as np
import pytest
from toy import images

import keras_ssl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def recipe(monkeypatch):
    """Imports a recipe with a network small enough for a test."""
    monkeypatch.syspath_prepend(os.path.join(ROOT, "examples"))
    monkeypatch.syspath_prepend(os.path.join(ROOT, "benchmarks"))

    def network(image_shape):
        x = inputs = keras.Input(image_shape)
        return keras.Model(inputs, keras.layers.Conv2D(4, 3, 4, activation="relu")(x))

    monkeypatch.setattr(keras_ssl.backbones, "small_resnet", network)

    def load(name):
        return importlib.import_module(name)

    yield load
    for name in ("common", "accuracy", *importlib.import_module("accuracy").RECIPES):
        sys.modules.pop(name, None)


def test_every_recipe_of_the_accuracy_table_builds_its_method(recipe):
    methods = set()
    for name in recipe("accuracy").RECIPES:
        model = recipe(name).build((16, 16, 3), argparse.Namespace(seed=0, data="emoji"))
        assert isinstance(model, keras_ssl.models.SSLTask)
        assert model.augmenter is not None
        methods.add(type(model))
    assert len(methods) == len(recipe("accuracy").RECIPES)


def test_a_run_leaves_preset_log_and_figures(recipe, monkeypatch, tmp_path):
    simclr, common = recipe("simclr"), recipe("common")
    pictures, labels = images(24, 16), np.arange(24) % 3
    data = common.Data("toy", (pictures, labels), (pictures[:9], labels[:9]))
    monkeypatch.setattr(common, "load", lambda source: data)
    output = str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["simclr.py", "--output", output, "--epochs", "2"])
    model, _, _ = common.run(simclr.build, simclr.__doc__, learning_rate=0.5, batch_size=8)
    with open(os.path.join(output, "result.json"), encoding="utf-8") as file:
        result = json.load(file)
    # The figures are the protocols' own, on what the preset gives.
    again = keras_ssl.models.SimCLR.from_preset(os.path.join(output, "preset"))
    np.testing.assert_allclose(again.predict(pictures), model.predict(pictures), rtol=1e-6)
    assert result["trained"] == common.measure(again, data)
    assert result["pixels"] == common.measure("pixels", data)
    assert result["options"]["epochs"] == 2 and result["method"] == "SimCLR"
    with open(os.path.join(output, "log.csv"), encoding="utf-8") as file:
        assert len(file.readlines()) == 3  # head and two epochs

    # A run that is stopped goes on as if it had not been.
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", [*sys.argv[:2], str(tmp_path / "stopped"), *sys.argv[3:]])
    options = dict(learning_rate=0.5, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        common.run(simclr.build, simclr.__doc__, [Stop()], **options)
    resumed, _, _ = common.run(simclr.build, simclr.__doc__, **options)
    for weight, expected in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    with open(tmp_path / "stopped" / "log.csv", encoding="utf-8") as file:
        assert len(file.readlines()) == 3

    # The table reads what the run left.
    accuracy = recipe("accuracy")
    os.rename(output, accuracy.folder(str(tmp_path), "simclr", "emoji"))
    rows = list(accuracy.table(str(tmp_path), ["emoji"]))
    assert f"| SimCLR | {100 * result['trained']['knn']:.1f} |" in rows[-1]


def test_the_cost_model_refuses_what_is_no_run(monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "benchmarks"))
    cost = importlib.import_module("cost_model").cost
    assert cost("mae", devices=1).flops > 0
    for options, message in (
        (dict(method="nothing"), "must be one of .*'mae'.*Received: method='nothing'"),
        (dict(method="mae", devices=0), "`devices` must be 1 or more"),
        (dict(method="mae", patch=0), "`patch` must be 1 or more"),
        (dict(method="mae", mask_ratio=1.5), r"`mask_ratio` must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            cost(**options)
