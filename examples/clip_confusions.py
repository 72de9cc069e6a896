"""Lesson: what CLIP confuses. Names for pictures among all names, close concepts beside far ones.

Every picture of the unseen style is given one of all its names. A wrong name may still be of the
right kind: another face, another flag, another hour. The shares say how often a name is right, how
often only its kind (Unicode's subgroup); the pictures, what was said instead.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
sections 3.1.5 and 6 (weak on fine-grained classes).
Data: the shipped emoji and the shipped preset `clip_resnet_emoji`; nothing is trained.
Command: KERAS_BACKEND=torch python examples/clip_confusions.py (half a minute)
Result (1,943 pictures, as many names; docs/images/clip_confusions.png): 48 % right, 17 % more of
the right kind. People 36 + 32 %, flags 31 + 28 %, animals 36 + 22 %; hands 79 + 5 %, zodiac
77 + 8 %, faces 60 + 8 %. Where names differ in one word, members of a kind are mixed up.
"""

import argparse
import json

import numpy as np
from clip_emoji import GALLERY, HELD_OUT
from watching import plt

import keras_ssl
from keras_ssl.evaluation import zero_shot_classifier

# Kinds of close concepts, by how their subgroups' names begin; and the rest, to compare.
KINDS = {
    "faces": ("face-",), "hands": ("hand",), "people": ("person",),
    "clocks, moons": ("time", "sky & weather"),
    "flags": ("country-flag", "subdivision-flag"), "arrows": ("arrow",), "zodiac": ("zodiac",),
    "animals": ("animal-",), "food": ("food-", "drink", "dishware"), "vehicles": ("transport-",),
}  # fmt: skip


def confusions(model, data) -> tuple[np.ndarray, dict]:
    """The name (its row) said of each picture, and shares of every kind."""
    pictures = model.encode_image(data.images, batch_size=256)
    weights = zero_shot_classifier(model, data.captions, "name", batch_size=256).weights
    said = (pictures @ weights.T).argmax(axis=1)
    right = data.captions[said] == data.captions
    same_kind = data.subgroups[said] == data.subgroups
    shares = {}
    for kind, starts in {**KINDS, "all": ("",)}.items():
        rows = np.array([subgroup.startswith(starts) for subgroup in data.subgroups])
        if rows.any():
            shares[kind] = {
                "pictures": int(rows.sum()),
                "right": float(right[rows].mean()),
                "right kind": float((same_kind & ~right)[rows].mean()),
            }
    return said, shares


def draw(data, gallery, said, shares, path):
    figure = plt.figure(figsize=(12, 5))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.8))
    axis, kinds = left.subplots(), list(shares)[::-1]
    start = np.zeros(len(kinds))
    for key, color in (("right", "C0"), ("right kind", "C1")):
        values = np.array([100 * shares[kind][key] for kind in kinds])
        axis.barh(kinds, values, left=start, color=color, label=key)
        start += values
    axis.set(xlabel="pictures of the unseen style (%)", xlim=(0, 100))
    axis.legend(fontsize=8)
    left.subplots_adjust(left=0.28, right=0.97, bottom=0.11, top=0.97)
    axes = right.subplots(4, 10)
    right.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.92, hspace=0.35)
    wrong = np.flatnonzero(data.captions[said] != data.captions)
    shown = dict(zip(gallery.captions, gallery.images, strict=True))
    for row, kind in enumerate(("face-", "time", "country-flag", "person")):
        rows = [i for i in wrong if data.subgroups[i].startswith(kind)]
        pairs = [(i, said[i]) for i in rows if data.captions[said[i]] in shown][:5]
        cells = [(data.images[i], data.captions[i]) for pair in pairs for i in pair]
        cells[1::2] = [(shown[name], "→ " + name) for _, name in cells[1::2]]
        for axis in axes[row]:
            axis.axis("off")
        for axis, (image, name) in zip(axes[row], cells, strict=False):
            axis.imshow(image)
            axis.set_title("\n".join(name.replace(": ", " ").split()[-3:]), fontsize=7)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="clip_resnet_emoji")
    parser.add_argument("--output", default="docs/images/clip_confusions.png")
    args = parser.parse_args()
    model = keras_ssl.models.CLIP.from_preset(args.preset)
    data, gallery = (
        keras_ssl.datasets.load_emoji(style, 64, background=(255, 255, 255))
        for style in (HELD_OUT, GALLERY)
    )
    said, shares = confusions(model, data)
    print(json.dumps(shares, indent=1))
    draw(data, gallery, said, shares, args.output)
    return shares


if __name__ == "__main__":
    main()
