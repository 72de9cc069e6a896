"""What the recipes share: options, data, a small network, and the same evaluation for all.

A recipe says what its method is made of (`build`), and calls `run`. The result of a run is a
folder: the preset, `log.csv`, and `result.json` with the figures and the protocols behind them.
"""

import argparse
import dataclasses
import json
import os
import shutil
import time

import keras
import numpy as np

import keras_ssl
from keras_ssl.augmentation import Views
from keras_ssl.callbacks import Checkpoint, KNNEvaluation, LinearProbe
from keras_ssl.evaluation import KNNProtocol, LinearProbeProtocol

# Protocols of every figure in the README's table.
PROTOCOLS = {"knn": KNNProtocol(k=20), "linear": LinearProbeProtocol(epochs=20, warmup_epochs=2)}


@dataclasses.dataclass
class Data:
    """Labelled pictures `(images, labels)` in two parts; training sees no label.

    `captions` are those of the train part, where the data has any.
    """

    name: str
    train: tuple
    test: tuple
    captions: np.ndarray | None = None


def load(source: str) -> Data:
    """The shipped emoji (`"emoji"`; things in `test` are in no style in `train`), or a folder or
    archive that has `train/` and `test/`, as CIFAR-10's."""
    if source == "emoji":
        emoji = keras_ssl.datasets.load_emoji(image_size=32, background=(255, 255, 255))
        train, test = emoji.split(test_fraction=0.2, seed=0)
        parts = ((part.images, part.labels) for part in (train, test))
        return Data("emoji", *parts, train.captions)
    parts = [keras_ssl.datasets.load_arrays(source, subset=part)[:2] for part in ("train", "test")]
    return Data(os.path.basename(source).split(".")[0], *parts)


def small_views(image_shape, seed):
    """Two views of a small picture, without blur: the same for every method that is compared."""
    return Views("simclr_cifar", size=image_shape[:2], seed=seed)


def arguments(doc: str, **defaults) -> argparse.Namespace:
    """The options of every recipe; `defaults` are the recipe's own."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="emoji", help="emoji, or a folder or archive with train/ and test/"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, help="for a batch of 256")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="default: runs/<recipe>_<data>")
    parser.add_argument(
        "--watch", action="store_true", help="log k-NN and linear accuracy five times or so"
    )
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    args.recipe = os.path.splitext(os.path.basename(parser.prog))[0]
    return args


def watch(data: Data, epochs: int, most: int = 10_000) -> list:
    """Callbacks that log the protocols' figures five times in a run, if it is that long.

    At most so many pictures are learned from, and a fifth as many tested. The best epoch of such
    a log was chosen on test pictures.
    """
    parts = {}
    for part, (images, labels), count in (
        ("train", data.train, most),
        ("test", data.test, most // 5),
    ):
        rows = np.random.default_rng(0).permutation(len(images))[:count]
        parts[part] = images[rows], labels[rows]
    every = -(-epochs // 5)
    return [
        KNNEvaluation(**parts, k=PROTOCOLS["knn"].k, every=every),
        LinearProbe(**parts, training_epochs=PROTOCOLS["linear"].epochs, every=every),
    ]


def baselines(model, data: Data, output: str) -> dict:
    """Figures of raw pixels and of the untrained model, kept for when the run goes on."""
    path = os.path.join(output, "baselines.json")
    if not os.path.exists(path):
        figures = {"pixels": measure("pixels", data), "untrained": measure(model, data)}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def run(build, doc: str, callbacks=(), captions=False, **defaults):
    """Pretrains what `build(image_shape, args)` gives, measures it and saves it.

    A run that was stopped goes on from its last epoch. With `captions` the model learns from
    pictures and theirs. Returns the model, the data and the folder of the run.
    """
    args = arguments(doc, **defaults)
    data = load(args.data)
    output = args.output or os.path.join("runs", f"{args.recipe}_{data.name}")
    checkpoints = os.path.join(output, "checkpoints")
    os.makedirs(output, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    model = build(data.train[0].shape[1:], args)
    before = baselines(model, data, output)
    model.compile(learning_rate=args.learning_rate)
    found, done = Checkpoint.latest(checkpoints) or (None, 0)
    if found:
        print(f"Going on after epoch {done}, from {found}")
        model = keras.saving.load_model(found)
    start, processor = time.time(), time.process_time()
    pairs = {"images": data.train[0], "texts": data.captions}
    model.fit(
        pairs if captions else data.train[0],
        batch_size=args.batch_size,
        epochs=args.epochs,
        initial_epoch=done,
        verbose=2,
        callbacks=[
            *(watch(data, args.epochs) if args.watch else ()),
            keras.callbacks.CSVLogger(os.path.join(output, "log.csv"), append=bool(found)),
            *callbacks,
            Checkpoint(checkpoints),
        ],
    )
    seconds = {"wall": time.time() - start, "processor": time.process_time() - processor}
    model.save_to_preset(os.path.join(output, "preset"))
    result = {
        "method": type(model).__name__,
        "data": data.name,
        "options": {key: value for key, value in vars(args).items() if key != "output"},
        "backend": keras.backend.backend(),
        "parameters": {"backbone": model.backbone.count_params()},
        "first_epoch": done,
        "training_seconds": seconds,
        **before,
        "trained": measure(model, data),
        "protocols": {name: protocol.to_dict() for name, protocol in PROTOCOLS.items()},
    }
    with open(os.path.join(output, "result.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    shutil.rmtree(checkpoints)
    for name in PROTOCOLS:
        figures = ", ".join(
            f"{w} {result[w][name]:.4f}" for w in ("pixels", "untrained", "trained")
        )
        print(f"{name}: {figures}")
    return model, data, output


def measure(what, data: Data) -> dict[str, float]:
    """Top-1 accuracy of a model, or of `"pixels"`, by every protocol."""
    if what != "pixels":  # once for both protocols
        train, test = (
            (what.predict(images, batch_size=256, verbose=0), labels)
            for images, labels in (data.train, data.test)
        )
    else:
        train, test = (
            (np.reshape(images, (len(images), -1)).astype("float32") / 255, labels)
            for images, labels in (data.train, data.test)
        )
    return {
        name: protocol.evaluate(train=train, test=test).top1 for name, protocol in PROTOCOLS.items()
    }
