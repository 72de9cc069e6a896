"""What DINO's attention finds without labels or masks: things before many real photographs.

Every drawing stands before four of CIFAR-10's 50,000 photographs, at other places and sizes. DINO's
views are crops of two of these, as if a thing was photographed twice; "DINO alone" has one's only.

Paper: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, figure 4.
Data: the shipped emoji; things and photographs to test with are in no training picture.
Command: KERAS_BACKEND=tensorflow python examples/dino_segmentation.py --data cifar10.tar.gz
Result: Jaccard index of one head with the true masks: DINO 0.49, DINO alone 0.47, untrained 0.28,
supervised 0.24, the best box in the middle 0.43; 15 minutes. Pictures: docs/segmentation.md
"""

import argparse
import os
import time

import keras
import numpy as np

from keras_ssl import backbones, datasets, evaluation, models, visualization
from keras_ssl.augmentation import RECIPES, PairedViews, Views

SIZE, BATCH, COPIES = 48, 64, 4
VIEW = RECIPES["simclr_cifar"]["views"][0] | {"crop": {"scale": (0.5, 1.0)}, "count": 1}
SCALE = {key: RECIPES["dino_small"][key] for key in ("mean", "std")}
# As the paper: 60 % of the attention is kept, and pictures are shown at twice the training's size.
PROTOCOL = evaluation.AttentionSegmentationProtocol(0.6, interpolation="bilinear")


def scenes(archive):
    """Pictures to train with, to choose with and to test with."""
    rest, test = datasets.load_emoji().split(test_fraction=0.1, seed=0)
    train, validation = rest.split(test_fraction=0.1, seed=1)
    train = train.select(np.tile(np.arange(len(train)), COPIES))
    photos, _, _ = datasets.load_arrays(archive, subset="train", verbose=False)
    others, _, _ = datasets.load_arrays(archive, subset="test", verbose=False)
    parts = (train, photos), (validation, others[::2]), (test, others[1::2])
    sizes = SIZE, (0.5, 0.8), (0.5, 1.0)  # of the picture, the drawing, the part of the photograph
    return [datasets.paste_on_photos(*part, *sizes, seed=i) for i, part in enumerate(parts)]


def network():
    keras.utils.set_random_seed(0)
    options = dict(num_register_tokens=4, position_embedding="sincos", initializer="mae")
    return backbones.ViTBackbone((SIZE, SIZE, 3), 6, 64, 4, 4, **options)


class Supervised(models.ImageClassifier):
    """The same network, which sees one such view and is told the group of the drawing."""

    def call(self, images, training=False):
        return super().call(self.views(images, training=training)[0], training=training)


def networks(train, epochs):
    """Name and model of each network, trained for as long."""
    pictures = np.arange(len(train))
    for name, things in (("DINO", pictures % (len(train) // COPIES)), ("DINO alone", pictures)):
        views = PairedViews([VIEW], SIZE, seed=0, **SCALE)
        model = models.DINO.small(network(), output_dim=256, momentum=0.98, augmenter=views, seed=0)
        if name == "DINO":
            yield "untrained", model
        model.compile(learning_rate=6e-3)
        pairs = datasets.ImagePairs(train.images, things, BATCH)  # alone: with itself
        model.fit(pairs, epochs=epochs, shuffle=False, verbose=2)
        yield name, model
    ready, epochs = model.preprocessor, round(epochs * 8 / 3)  # a step costs 3/8 of DINO's
    model = Supervised(network(), num_classes=9)
    model.views = Views([VIEW], SIZE, seed=0, **SCALE)
    model.compile(learning_rate=1e-3, layer_decay=1.0, total_steps=epochs * len(train) // BATCH)
    model.fit(train.images, train.labels, batch_size=BATCH, epochs=epochs, verbose=2)
    yield "supervised", models.ImageClassifier(model.backbone, 9, preprocessor=ready)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder or archive with train/ and test/")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", default="runs/dino_segmentation")
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    train, validation, test = scenes(args.data)
    shown = test.images[np.random.default_rng(1).choice(len(test), 16, replace=False)]
    masks = test.alphas > 127, train.alphas > 127
    print(evaluation.segmentation_baselines(test.images, *masks), flush=True)
    start = time.process_time()
    for name, model in networks(train, args.epochs):
        print(name, f"{time.process_time() - start:.0f} processor seconds")
        for part in (validation, test):
            maps = evaluation.attention_maps(model, part.images, layer=-1, image_size=2 * SIZE)
            result = PROTOCOL.evaluate(test=(maps, part.alphas > 127))
            print(result, np.round(result.details["jaccard_by_head"], 3), flush=True)
        path = os.path.join(args.output, name.replace(" ", "_"))
        grid = visualization.attention_grid(model, shown, pairs=2, image_size=2 * SIZE)
        grid.save(f"{path}.png")
        visualization.feature_pca_grid(model, shown).save(f"{path}_features.png")
        bank = train.images[: len(train) // COPIES]
        visualization.neighbour_grid(model, shown[:8], bank).save(f"{path}_neighbours.png")
        model.save_to_preset(f"{path}_preset")
        start = time.process_time()
