"""Re-identification: know a thing again when another camera sees it, from pairs without labels.

For tracking: an embedding in which two pictures of one identity are near, and others far, also for
identities that no one trained on. Here an identity is an emoji's concept and a camera is a drawing
style. What is known in training is only which pictures belong together, as tracks of a video tell;
they are the two views of SimCLR.
Paper: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020;
Zheng et al., Scalable Person Re-identification: A Benchmark, 2015 (mAP, Rank-k).
Data: the shipped emoji: 1,573 concepts in six styles; measured on 393 others: Twemoji asks, all
other styles are the gallery.
Command: KERAS_BACKEND=tensorflow python examples/reidentification.py
Result: a table; the preset, result.json, and found.png: queries and their nearest.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np

import keras_ssl
from keras_ssl.augmentation import PairedViews
from keras_ssl.datasets import ImagePairs
from keras_ssl.evaluation import extract_features, mean_average_precision
from keras_ssl.visualization import neighbour_grid


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32, help="of the residual network")
    parser.add_argument("--limit", type=int, help="most identities of each part")
    parser.add_argument(
        "--own-views", action="store_true", help="two views of one picture, to compare"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("runs/reidentification")
    )
    args = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    emoji = keras_ssl.datasets.load_emoji(image_size=args.size, background=(255, 255, 255))
    train, test = (
        part.select(np.isin(part.concept_ids, np.unique(part.concept_ids)[: args.limit]))
        for part in emoji.split(test_fraction=0.2, seed=0)
    )
    asks = test.styles == "twemoji"
    asks &= np.isin(test.concept_ids, test.concept_ids[~asks])  # is in the gallery at all

    def measure(what):
        features = extract_features(what, test.images)
        if what == "pixels":
            features = features - features.mean(axis=0)
        queries, gallery = features[asks], features[test.styles != "twemoji"]
        labels = test.concept_ids[asks], test.concept_ids[test.styles != "twemoji"]
        return mean_average_precision(queries, gallery, *labels, ranks=(1, 5))

    jitter = dict(brightness=0.4, contrast=0.4, saturation=0.8, hue=0.1, probability=0.8)
    views = [{"crop": {"scale": (0.3, 1.0)}, "flip": {}, "jitter": jitter}]
    model = keras_ssl.models.SimCLR(
        keras_ssl.backbones.small_resnet((args.size, args.size, 3), args.width),
        projection_dim=64,
        temperature=0.1,
        augmenter=PairedViews(views, size=args.size, seed=0),
        seed=0,
    )
    result = {"raw pixels": measure("pixels"), "untrained": measure(model)}
    groups = np.arange(len(train)) if args.own_views else train.concept_ids
    pairs = ImagePairs(train.images, groups, args.batch_size)
    start = time.time()
    model.compile(learning_rate=1.0)
    model.fit(pairs, epochs=args.epochs, shuffle=False, verbose=2)
    result["own views" if args.own_views else "pairs"] = measure(model)
    for name, figures in result.items():
        print(f"{name:12} " + "  ".join(f"{key} {100 * v:5.1f} %" for key, v in figures.items()))
    print(f"{asks.sum()} queries, {(~asks).sum()} in the gallery, {time.time() - start:.0f} s")

    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "result.json").write_text(json.dumps(result, indent=1))
    shown = np.flatnonzero(asks)[:: max(1, asks.sum() // 8)][:8]
    gallery = test.images[test.styles != "twemoji"]
    neighbour_grid(model, test.images[shown], gallery).save(args.output / "found.png")
    model.save_to_preset(args.output / "preset")
    return result


if __name__ == "__main__":
    main()
