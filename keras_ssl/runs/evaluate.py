"""Evaluating a preset on data by name."""

import os
import pathlib

import keras_hub
import numpy as np

from keras_ssl.evaluation import (
    AttentionSegmentationProtocol,
    EvaluationResult,
    KNNProtocol,
    LinearProbeProtocol,
    extract_features,
)
from keras_ssl.layers.image_converter import ImagePreprocessor
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.presets import resolve_preset
from keras_ssl.runs.data import RunData, load_data
from keras_ssl.runs.embeddings import model_image_size

PROTOCOLS = ("knn", "linear", "segmentation")


def load_model(name: str | os.PathLike):
    """A self-supervised model by name, with its weights.

    Args:
        name: a shipped preset, a folder made by `save_to_preset`, a run's folder (its `preset/`),
            or a hub handle. A preset that holds a backbone alone will do.

    Returns:
        A task of `keras_ssl.models`; for a backbone alone, an `SSLTask` that embeds with it.

    Raises:
        ValueError: nothing of that name is found.

    Example:

    ```python
    model = keras_ssl.runs.load_model("runs/photos")
    ```
    """
    inner = pathlib.Path(name) / "preset"
    if inner.is_dir() and not (pathlib.Path(name) / "task.json").exists():
        name = inner
    folder = pathlib.Path(resolve_preset(os.fspath(name)))
    if (folder / "task.json").exists() or not (folder / "config.json").exists():
        return SSLTask.from_preset(os.fspath(folder))
    backbone = keras_hub.models.Backbone.from_preset(os.fspath(folder))
    preprocessor = "auto"
    if (folder / "preprocessor.json").exists():
        preprocessor = ImagePreprocessor.from_preset(os.fspath(folder))
    return SSLTask(backbone, preprocessor=preprocessor)


def evaluate(
    model,
    data: RunData | str | os.PathLike,
    protocols=("knn", "linear"),
    k: int = 20,
    linear_epochs: int = 50,
    label_fraction: float | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> list[EvaluationResult]:
    """Runs evaluation protocols with their usual choices; features are extracted once.

    Args:
        model: a task, or anything with `predict`; or `"pixels"`.
        data: as for `keras_ssl.runs.load_data`, with labels; or a `RunData`.
        protocols: of `"knn"`, `"linear"` and `"segmentation"` (attention against masks: for vision
            transformers, on data that has masks, as the shipped pictures do).
        k: neighbours.
        linear_epochs: of the linear probe.
        label_fraction: share of the train labels, in (0, 1], e.g. 0.01 and 0.1; stratified.
        limit: most pictures to learn on, and a fifth as many to measure on; None for all.
        batch_size: of `predict`.
        seed: of the limit and the share of labels.

    Returns:
        An `EvaluationResult` for each protocol, in order.

    Raises:
        ValueError: for an unknown protocol, or data that lacks what it needs.

    Example:

    ```python
    for result in keras_ssl.runs.evaluate(model, "photos", ["knn"], k=5):
        print(result)
    ```
    """
    unknown = sorted(set(protocols) - set(PROTOCOLS))
    if unknown or not protocols:
        raise ValueError(
            f"`protocols` must be of {list(PROTOCOLS)}. Received: protocols={list(protocols)}"
        )
    if not isinstance(data, RunData):
        size = None if isinstance(model, str) else model_image_size(model)[0]
        data = load_data(data, size, seed=seed)
    features = None
    if {"knn", "linear"} & set(protocols):
        if data.train_labels is None or data.test_labels is None:
            raise ValueError(
                "k-NN and the linear probe need labels in both parts: a folder for each class, "
                f"or train/ and test/ with them. Received: {data!r}"
            )
        train, test = data.labelled(limit or len(data.train) * 5 + len(data.test) * 5, seed)
        features = [(extract_features(model, x, batch_size), y) for x, y in (train, test)]
    results = []
    for name in protocols:
        if name == "segmentation":
            if data.test_masks is None:
                raise ValueError(
                    "Segmentation needs masks, which of the known data only `emoji` has; use "
                    "keras_ssl.evaluation.AttentionSegmentationProtocol with your own. "
                    f"Received: {data!r}"
                )
            rows = np.arange(len(data.test))[: (limit or 5 * len(data.test)) // 5]
            protocol = AttentionSegmentationProtocol()
            pair = (data.test[rows], data.test_masks[rows])
            results.append(protocol.evaluate(model, test=pair, batch_size=batch_size))
            continue
        if name == "knn":
            protocol = KNNProtocol(k=k)
        else:
            warmup = min(5, linear_epochs / 10)
            protocol = LinearProbeProtocol(epochs=linear_epochs, warmup_epochs=warmup, seed=seed)
        results.append(
            protocol.evaluate(
                train=features[0],
                test=features[1],
                label_fraction=label_fraction,
                label_seed=seed,
            )
        )
    return results
