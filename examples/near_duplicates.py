"""Find near duplicates in a folder of pictures, at a threshold that the folder itself gives.

Of a fifth of the pictures three copies are made: smaller, saved as a bad JPEG, cropped. On one half
of the pictures the threshold of cosine similarity is set at which so many of the pairs found are
copies (--precision); on the other half precision and recall are measured.
Data: --data, a folder or archive; without it, the emoji in one drawing style (some are alike:
clocks, moons, faces, flags of one design; here they count as errors).
Command: KERAS_BACKEND=torch python examples/near_duplicates.py
Result: RESULT
Printed: that table; written: duplicates.csv and duplicates.png, what the folder itself holds twice.
"""

import argparse
import csv
import io
import pathlib

import numpy as np
from PIL import Image

import keras_ssl
from keras_ssl.evaluation import SimilarityIndex, extract_features
from keras_ssl.runs import load_model, model_image_size
from keras_ssl.visualization import picture_grid

EDITS = ("smaller", "jpeg", "cropped")


def copies(picture, rng):
    """Three edits of a picture that leave it the same to the eye, in the order of `EDITS`."""
    image, file, side = Image.fromarray(picture), io.BytesIO(), len(picture)
    image.save(file, "JPEG", quality=15)
    smaller = image.resize((side // 2, side // 2)).resize((side, side))
    kept = round(0.85 * side)
    left, top = rng.integers(0, side - kept + 1, 2)
    cropped = image.crop((left, top, left + kept, top + kept)).resize((side, side))
    return [np.asarray(edit) for edit in (smaller, Image.open(file), cropped)]


def measure(features, owner, edit, half, precision):
    """Threshold from one half of the pictures, and figures on the other."""

    def pairs(part):
        rows = np.flatnonzero(half[owner] == part)
        first, second, similarity = SimilarityIndex(features[rows]).pairs(0.5)
        return rows[first], rows[second], similarity

    first, second, similarity = pairs(True)
    right = np.cumsum(owner[first] == owner[second]) / np.arange(1, len(first) + 1)
    enough = np.flatnonzero(right >= precision)
    last = enough[-1] if len(enough) else -1  # halfway to the next pair
    threshold = float(np.concatenate([[1.0], similarity, [0.5]])[last + 1 : last + 3].mean())
    first, second, similarity = pairs(False)
    first, second = first[similarity >= threshold], second[similarity >= threshold]
    right = float((owner[first] == owner[second]).mean()) if len(first) else 1.0
    figures = {"threshold": threshold, "precision": right}
    for number, name in enumerate(EDITS):
        hidden = (edit == number) & ~half[owner]
        # Originals come before copies, so they are the first of their pairs.
        found = (first == owner[second]) & (edit[second] == number)
        figures[f"recall, {name}"] = float(found.sum() / max(1, hidden.sum()))
    return figures


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", help="folder or archive; default: the emoji of one style")
    add("--preset", default="simclr_resnet_cifar10", help="of any method")
    add("--precision", type=float, default=0.95, help="that is wanted")
    add("--limit", type=int, default=4000, help="most pictures")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/near_duplicates"))
    args = parser.parse_args(argv)
    model = load_model(args.preset)
    size = tuple(2 * side for side in model_image_size(model))
    if args.data is None:
        emoji = keras_ssl.datasets.load_emoji("noto", size[0], background=(255, 255, 255))
        images, names = emoji.images[: args.limit], emoji.captions[: args.limit]
    else:
        folder = keras_ssl.datasets.FolderImages(args.data, size, labels=None)
        images, names = folder[: args.limit], folder.file_names[: args.limit]

    rng = np.random.default_rng(0)
    copied = rng.permutation(len(images))[: len(images) // 5]
    owner = np.concatenate([np.arange(len(images)), copied.repeat(len(EDITS))])
    edit = np.concatenate([np.full(len(images), -1), np.tile(np.arange(len(EDITS)), len(copied))])
    copied = [copy for row in copied for copy in copies(images[row], rng)]
    pictures = np.concatenate([images, copied])
    half = rng.random(len(images)) < 0.5
    tiny = np.stack([np.asarray(Image.fromarray(p).resize((16, 16))) for p in pictures])
    table = {}
    for name, what, x in (("raw pixels", "pixels", tiny), (args.preset, model, pictures)):
        features = extract_features(what, x)
        features = features - features[: len(images)].mean(axis=0)  # what all have says nothing
        table[name] = measure(features, owner, edit, half, args.precision)
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in table[name].items()))

    args.output.mkdir(parents=True, exist_ok=True)
    found = SimilarityIndex(features[: len(images)]).pairs(table[name]["threshold"])
    with open(args.output / "duplicates.csv", "w", encoding="utf-8", newline="") as file:
        rows = [(names[i], names[j], f"{s:.4f}") for i, j, s in zip(*found, strict=True)]
        csv.writer(file).writerows([("first", "second", "similarity"), *rows])
    print(f"{len(rows)} pairs in the folder itself: {args.output / 'duplicates.csv'}")
    if rows:
        shown = np.stack(found[:2], axis=1)[:32].reshape(-1)
        picture_grid(images[shown], columns=8).save(args.output / "duplicates.png")
    return {"table": table, "pairs": rows}


if __name__ == "__main__":
    main()
