"""What the recipe of CLIP and its lessons share: emoji with a style and concepts held out.

One drawing style (Twemoji) and every fifth concept are in no training picture. Measured are names
for pictures of that style (zero-shot), and Recall from it to another style, picture to picture.
"""

import dataclasses

import numpy as np
from PIL import Image

import keras_ssl
from keras_ssl.evaluation import pixel_features, retrieval_recall, zero_shot_classifier

HELD_OUT, GALLERY = "twemoji", "noto"
STYLES = {"Twitter Emoji": "twemoji", "Noto Emoji": "noto"}


@dataclasses.dataclass
class Emoji:
    """Pictures on white, and what is learned and asked."""

    images: np.ndarray  # uint8 (N, size, size, 3)
    captions: np.ndarray
    styles: np.ndarray
    groups: np.ndarray  # one of nine each; not used in training CLIP
    train: np.ndarray  # rows: not of the held-out style, not of an unseen concept
    names: np.ndarray  # of the concepts that are in the held-out style and in the gallery
    queries: np.ndarray  # their rows in the one
    gallery: np.ndarray  # and in the other
    unseen: np.ndarray  # which of them no training picture shows


def load(path="emoji", size=32, concepts=None) -> Emoji:
    if path == "emoji":
        data = keras_ssl.datasets.load_emoji(image_size=size, background=(255, 255, 255))
        images, captions, styles, groups = data.images, data.captions, data.styles, data.groups
    else:
        with np.load(path) as file:
            keys = ("image", "name", "style", "category")
            images, captions, styles, groups = (file[key] for key in keys)
        keep = np.char.find(captions, "skin-tone") < 0
        images = resize(keras_ssl.datasets.composite(images[keep], (255, 255, 255)), size)
        captions = np.char.replace(captions[keep], "-", " ")
        styles = np.array([STYLES.get(style, style) for style in styles[keep]])
        groups = groups[keep]
    keep = np.isin(captions, np.unique(captions)[:concepts])
    images, captions, styles, groups = (x[keep] for x in (images, captions, styles, groups))
    new = np.isin(captions, np.unique(captions)[::5])
    row = [{captions[i]: i for i in np.flatnonzero(styles == s)} for s in (HELD_OUT, GALLERY)]
    names = np.array(sorted(set(row[0]) & set(row[1])))
    queries, gallery = (np.array([r[name] for name in names]) for r in row)
    train = np.flatnonzero((styles != HELD_OUT) & ~new)
    return Emoji(images, captions, styles, groups, train, names, queries, gallery, new[queries])


def resize(images, size):
    pictures = (Image.fromarray(image).resize((size, size)) for image in images)
    return np.stack([np.asarray(picture) for picture in pictures])


def measure(what, data: Emoji) -> dict:
    """Figures of a model or of `"pixels"`; whoever asks shows the held-out style."""
    pixels = isinstance(what, str)

    def embed(rows):
        if pixels:
            return pixel_features(resize(data.images[rows], 16))
        return what.encode_image(data.images[rows], batch_size=256)

    asked, gallery, result = embed(data.queries), embed(data.gallery), {}
    for which, keep in (("all", data.names == data.names), ("unseen", data.unseen)):
        names = data.names[keep]
        found = retrieval_recall(asked[keep], gallery, names, data.names, ks=(1, 5))
        result[f"picture to picture, {which}"] = found
        if not pixels:
            weights = zero_shot_classifier(what, names, "name", batch_size=256).weights
            found = retrieval_recall(asked[keep], weights, ks=(1, 5))
            result[f"zero-shot, {which}"] = {"classes": len(names), **found}
    return result
