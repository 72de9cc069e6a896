"""Evaluating a preset on data by name."""

import os
import pathlib
import time

import keras_hub
import numpy as np

from keras_ssl.evaluation import (
    AttentionSegmentationProtocol,
    EvaluationResult,
    KNNProtocol,
    LinearProbeProtocol,
    extract_features,
    retrieval_recall,
    zero_shot_classifier,
)
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.presets import resolve_preset
from keras_ssl.runs.data import RunData, load_data
from keras_ssl.runs.embeddings import model_image_size
from keras_ssl.weight_files import load_preset

PROTOCOLS = ("knn", "linear", "zero-shot", "retrieval", "segmentation")


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
    backbone = load_preset(keras_hub.models.Backbone.from_preset, folder)
    preprocessor = "auto"
    if (folder / "preprocessor.json").exists():
        # Of whatever class keras-hub finds for the backbone.
        preprocessor = keras_hub.models.ImageClassifierPreprocessor.from_preset(os.fspath(folder))
    return SSLTask(backbone, preprocessor=preprocessor)


def evaluate(
    model,
    data: RunData | str | os.PathLike,
    protocols=("knn", "linear"),
    k: int = 20,
    linear_epochs: int = 50,
    templates="simple",
    label_fraction: float | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> list[EvaluationResult]:
    """Runs evaluation protocols with their usual choices; features are extracted once.

    Args:
        model: a task, or anything with `predict`; or `"pixels"`.
        data: as for `keras_ssl.runs.load_data`, with labels; or a `RunData`.
        protocols: what to measure:
            `"knn"` and `"linear"`: classes from frozen features;
            `"zero-shot"`: classes from their names, of image-text models;
            `"retrieval"`: recall@k, of image-text models between pictures and captions where the
            data has captions (the shipped pictures), else between pictures of one class;
            `"segmentation"`: attention of a vision transformer against masks (the shipped
            pictures).
        k: neighbours.
        linear_epochs: of the linear probe.
        templates: of zero-shot: as for `keras_ssl.evaluation.zero_shot_classifier`.
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
    needs_labels = {"knn", "linear", "zero-shot"} & set(protocols)
    if needs_labels and (data.train_labels is None or data.test_labels is None):
        raise ValueError(
            f"{' and '.join(sorted(needs_labels))} need labels in both parts: a folder for each "
            f"class, or train/ and test/ with them. Received: {data!r}"
        )
    limit = limit or 5 * (len(data.train) + len(data.test if data.test is not None else ()))
    features = None
    if {"knn", "linear"} & set(protocols):
        features = [
            (extract_features(model, x, batch_size), y) for x, y in data.labelled(limit, seed)
        ]
    few = dict(label_fraction=label_fraction, label_seed=seed)
    results = []
    for name in protocols:
        if name == "knn":
            protocol = KNNProtocol(k=k)
            results.append(protocol.evaluate(train=features[0], test=features[1], **few))
        elif name == "linear":
            warmup = min(5, linear_epochs / 10)
            protocol = LinearProbeProtocol(epochs=linear_epochs, warmup_epochs=warmup, seed=seed)
            results.append(protocol.evaluate(train=features[0], test=features[1], **few))
        elif name == "zero-shot":
            results.append(_zero_shot(model, data, limit // 5, seed, templates, batch_size))
        elif name == "retrieval":
            results.append(_retrieval(model, data, limit // 5, batch_size))
        else:
            results.append(_segmentation(model, data, limit // 5, batch_size))
    return results


def _zero_shot(model, data, limit, seed, templates, batch_size):
    if not hasattr(model, "encode_text"):
        raise ValueError(
            "Zero-shot classification needs an image-text model (CLIP, SigLIP, ALIGN). "
            f"Received: a {type(model).__name__}"
        )
    _, (images, labels) = data.labelled(5 * limit, seed)
    start = time.perf_counter()
    classify = zero_shot_classifier(model, data.class_names, templates, batch_size)
    order = np.argsort(-classify(images, batch_size=batch_size), axis=1, kind="stable")
    hits = order == labels[:, None]
    return EvaluationResult(
        protocol={"protocol": "zero_shot", "version": "1", "templates": templates},
        metrics={f"top{n}": float(hits[:, :n].any(axis=1).mean()) for n in (1, 5)},
        data={"test": len(images), "classes": len(data.class_names)},
        seconds=time.perf_counter() - start,
    )


def _retrieval(model, data, limit, batch_size):
    start = time.perf_counter()
    metrics, details = {}, {}
    if hasattr(model, "encode_text") and data.test_captions is not None:
        rows = _spread(len(data.test), limit)
        captions, names = np.unique(data.test_captions[rows], return_inverse=True)
        images = model.encode_image(np.asarray(data.test[rows]), batch_size=batch_size)
        texts = model.encode_text(list(captions), batch_size=batch_size)
        number = np.arange(len(captions))
        between = "pictures and captions"
        asked = {"text": (images, texts, names, number), "image": (texts, images, number, names)}
        sizes = {"pictures": len(rows), "captions": len(captions)}
    elif data.train_labels is not None and data.test_labels is not None:
        train, test = data.labelled(5 * limit)
        bank, queries = (extract_features(model, x, batch_size) for x, _ in (train, test))
        between = "pictures of one class"
        asked = {"image": (queries, bank, test[1], train[1])}
        sizes = {"bank": len(bank), "queries": len(queries)}
    else:
        raise ValueError(
            "Retrieval needs captions (emoji) or labels that say what belongs together. "
            f"Received: {data!r}"
        )
    for what, (queries, index, own, theirs) in asked.items():
        found = retrieval_recall(queries, index, own, theirs)
        details[f"{what}_median_rank"] = found.pop("median_rank")
        metrics |= {f"{what}_{name}": value for name, value in found.items()}
    return EvaluationResult(
        protocol={"protocol": "retrieval", "version": "1", "between": between},
        metrics=metrics,
        data=sizes,
        seconds=time.perf_counter() - start,
        details=details,
    )


def _segmentation(model, data, limit, batch_size):
    if data.test_masks is None:
        raise ValueError(
            "Segmentation needs masks, which of the known data only `emoji` has; use "
            "keras_ssl.evaluation.AttentionSegmentationProtocol with your own. "
            f"Received: {data!r}"
        )
    rows = _spread(len(data.test), limit)
    pair = (np.asarray(data.test[rows]), data.test_masks[rows])
    return AttentionSegmentationProtocol().evaluate(model, test=pair, batch_size=batch_size)


def _spread(count, most):
    """At most so many rows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, max(1, min(most, count))).astype(int))
