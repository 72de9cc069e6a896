"""What DINO's attention finds without labels: emoji pasted on a photograph.

Paper: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, figure 4.
Data: the shipped emoji before parts of one of CIFAR-10's photographs; the things of the test are
new. (With `--backgrounds 1000` the class token looks at the photographs: see the page.)
Command: KERAS_BACKEND=tensorflow python examples/dino_segmentation.py --data cifar10.tar.gz
Result: Jaccard index between true masks and the last layer's attention, cut off to keep 60 % of its
mass: DINO (10 epochs, 7 minutes of one core) 0.42, the same network untrained 0.36, supervised for
as long 0.36; a box in the middle 0.48. All figures and pictures: docs/segmentation.md.
"""

import argparse
import json
import os
import time

import keras
import numpy as np

import keras_ssl
from keras_ssl.augmentation import RECIPES, Views
from keras_ssl.evaluation import AttentionSegmentationProtocol, jaccard_index
from keras_ssl.layers.image_converter import default_preprocessor
from keras_ssl.visualization import attention_grid, feature_pca_grid

SIZE, BATCH, PROTOCOL = 64, 64, AttentionSegmentationProtocol(mass=0.6)
PASTE = dict(image_size=SIZE, scale=(0.6, 1.0), photo_scale=(0.6, 1.0))
TONE = {
    "flip": {},
    "jitter": RECIPES["simclr_cifar"]["views"][0]["jitter"],
    "grayscale": {"probability": 0.2},
}
GLOBAL = {"count": 2, "crop": {"scale": (0.5, 1.0)}, **TONE}
LOCAL = {"count": 4, "local": True, "crop": {"scale": (0.2, 0.6)}, **TONE}


def network():
    return keras_ssl.backbones.ViTBackbone(
        (SIZE, SIZE, 3),
        patch_size=8,
        hidden_dim=64,
        num_layers=4,
        num_heads=4,
        num_register_tokens=4,
        position_embedding="sincos",
        initializer="mae",  # with 0.02 a network as narrow as this stays at the uniform answer
    )


def views(*recipe, seed=0):
    scale = {key: RECIPES["dino"][key] for key in ("mean", "std")}
    return Views(list(recipe), size=SIZE, local_size=24, seed=seed, **scale)


class Supervised(keras_ssl.models.ImageClassifier):
    """The same network, which sees one global view and is told the group of the drawing."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.views = views({**GLOBAL, "count": 1})

    def call(self, images, training=False):
        return super().call(self.views(images, training=training)[0], training=training)


class Watch(keras.callbacks.Callback):
    """The Jaccard index while the network learns."""

    def __init__(self, images, masks, every=1):
        super().__init__()
        self.images, self.masks, self.every, self.start = images, masks, every, time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0:
            result = PROTOCOL.evaluate(self.model, test=(self.images, self.masks))
            figures = {**result.metrics, **logs}
            text = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
            print(
                f"epoch {epoch + 1}, {time.process_time() - self.start:.0f} s: {text}", flush=True
            )


def thresholds(images, masks):
    """Jaccard indices of what needs no network."""
    grey = images @ np.array([0.299, 0.587, 0.114])
    otsu = np.stack([picture > otsu_threshold(picture) for picture in grey])
    border = np.ones(masks.shape[1:], "bool")
    border[4:-4, 4:-4] = False
    mostly = otsu[:, border].mean(axis=1) > 0.5  # what holds the border is the background
    otsu[mostly] = ~otsu[mostly]
    box = np.zeros_like(masks)
    cut = round(SIZE * (1 - 0.8) / 2)  # the mean side of what was pasted
    box[:, cut:-cut, cut:-cut] = True
    guesses = {"whole picture": np.ones_like(masks), "box in the middle": box, "Otsu": otsu}
    return {name: float(jaccard_index(guess, masks).mean()) for name, guess in guesses.items()}


def otsu_threshold(grey):
    """The grey value that splits a picture into two parts of greatest variance between them."""
    counts, edges = np.histogram(grey, bins=64)
    values, below = (edges[1:] + edges[:-1]) / 2, np.cumsum(counts)[:-1]
    sums, above = np.cumsum(counts * values)[:-1], counts.sum() - below
    apart = sums / below.clip(1) - ((counts * values).sum() - sums) / above.clip(1)
    return edges[1:-1][np.argmax(below * above * apart**2)]


def pretrain(train, test, masks, chosen):
    model = keras_ssl.models.DINO.small(
        network(),
        output_dim=256,
        head_batch_norm=True,
        teacher_temperature=0.03,
        warmup_teacher_temperature=0.03,
        momentum=0.98,
        augmenter=views(GLOBAL, LOCAL),
        seed=0,
    )
    results = {"untrained": PROTOCOL.evaluate(model, test=(test.images, masks)).to_dict()}
    attention_grid(model, test.images[chosen], pairs=2).save(f"{args.output}/untrained.png")
    start = time.process_time()
    model.compile(learning_rate=args.learning_rate)
    watch = Watch(test.images, masks)
    model.fit(train.images, batch_size=BATCH, epochs=args.epochs, verbose=0, callbacks=[watch])
    results["DINO, processor seconds"] = time.process_time() - start
    results["DINO"] = PROTOCOL.evaluate(model, test=(test.images, masks)).to_dict()
    model.save_to_preset(f"{args.output}/preset")
    for name, options in {"attention": {}, "masks": {"mass": 0.6}}.items():
        grid = attention_grid(model, test.images[chosen], pairs=2, **options)
        grid.save(f"{args.output}/dino_{name}.png")
    feature_pca_grid(model, test.images[chosen]).save(f"{args.output}/dino_features.png")
    return results


def supervise(train, test, masks, chosen):
    start, epochs = time.process_time(), args.supervised_epochs
    model = Supervised(network(), num_classes=9)
    steps = epochs * (len(train) // BATCH)
    model.compile(learning_rate=1e-3, layer_decay=1.0, total_steps=steps)
    model.fit(train.images, train.labels, batch_size=BATCH, epochs=epochs, verbose=2)
    seconds = time.process_time() - start
    accuracy = model.evaluate(test.images, test.labels, verbose=0, return_dict=True)
    ready = default_preprocessor(model.backbone, model.views)
    model = keras_ssl.models.ImageClassifier(model.backbone, 9, preprocessor=ready)
    attention_grid(model, test.images[chosen], pairs=2).save(f"{args.output}/supervised.png")
    return {
        "supervised, processor seconds": seconds,
        "supervised, accuracy": accuracy["sparse_categorical_accuracy"],
        "supervised": PROTOCOL.evaluate(model, test=(test.images, masks)).to_dict(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder or archive with train/ and test/")
    parser.add_argument("--backgrounds", type=int, default=1, help="number of photographs")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--supervised-epochs", type=int, default=25)
    parser.add_argument("--learning-rate", type=float, default=6e-3, help="for a batch of 256")
    parser.add_argument("--only", choices=("DINO", "supervised"), help="one of the trainings")
    parser.add_argument("--output", default="runs/dino_segmentation")
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    emoji = keras_ssl.datasets.load_emoji().split(test_fraction=0.1, seed=0)
    photos, _, _ = keras_ssl.datasets.load_arrays(args.data, subset="train", verbose=False)
    train, test = (
        keras_ssl.datasets.paste_on_photos(part, photos[: args.backgrounds], **PASTE, seed=seed)
        for seed, part in enumerate(emoji)
    )
    masks = test.alphas > 127
    chosen = np.random.default_rng(1).choice(len(test), 16, replace=False)
    os.makedirs(args.output, exist_ok=True)
    results = thresholds(test.images, masks)
    for name, work in {"DINO": pretrain, "supervised": supervise}.items():
        if args.only in (None, name):
            results.update(work(train, test, masks, chosen))
    path = f"{args.output}/result.json"
    if args.only and os.path.exists(path):  # beside what the other training left
        with open(path, encoding="utf-8") as file:
            results = {**json.load(file), **results}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    for name, result in results.items():
        if isinstance(result, dict):
            figures = (f"{key} {value:.3f}" for key, value in result["metrics"].items())
            print(f"{name}: {', '.join(figures)}")
        else:
            print(f"{name}: {result:.3f}")
