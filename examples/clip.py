"""CLIP on emoji: pictures find their names, in a drawing style and for things never seen.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
Data: the shipped emoji (six styles; or --data emoji64.npz with nine); one style (Twemoji) and every
fifth concept are in no training picture. The names are the captions, and nothing else is known.
Command: KERAS_BACKEND=torch python examples/clip.py
Result: zero-shot accuracy over the names of all unseen concepts, and Recall@1 and @5 from Twemoji
to Noto, beside raw 16 x 16 pixels: printed, and written to result.json.
"""

import argparse
import json
import pathlib
import re
import time

import keras
import numpy as np
from PIL import Image

import keras_ssl
from keras_ssl.augmentation import Views
from keras_ssl.evaluation import pixel_features, retrieval_recall, zero_shot_classifier

HELD_OUT, GALLERY = "twemoji", "noto"
STYLES = {"Twitter Emoji": "twemoji", "Noto Emoji": "noto"}


def load(path, size):
    """Pictures `(N, size, size, 3)` on white, captions, styles."""
    if path is None:
        data = keras_ssl.datasets.load_emoji(image_size=size, background=(255, 255, 255))
        return data.images, data.captions, data.styles
    with np.load(path) as file:
        images, names, styles, kinds = (file[k] for k in ("image", "name", "style", "category"))
    keep = ~np.array([re.search("skin-tone", name) is not None for name in names])
    images = keras_ssl.datasets.composite(images[keep], (255, 255, 255))
    captions = np.array([name.replace("-", " ") for name in names[keep]])
    styles = np.array([STYLES.get(style, style) for style in styles[keep]])
    return resize(images, size), captions, styles


def resize(images, size):
    pictures = (Image.fromarray(image).resize((size, size)) for image in images)
    return np.stack([np.asarray(picture) for picture in pictures])


def pairs(captions, styles):
    """Rows of one picture a concept in the held-out style and in the gallery."""
    rows = [dict(zip(captions[styles == s], np.flatnonzero(styles == s), strict=True))
            for s in (HELD_OUT, GALLERY)]  # fmt: skip
    names = sorted(set(rows[0]) & set(rows[1]))
    return np.array(names), *(np.array([r[n] for n in names]) for r in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="emoji64.npz, for nine styles")
    parser.add_argument("--epochs", type=int, default=34)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/clip"))
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    images, captions, styles = load(args.data, args.size)
    unseen = np.isin(captions, np.unique(captions)[::5])
    train = (styles != HELD_OUT) & ~unseen
    names, queries, gallery = pairs(captions, styles)
    new = np.isin(names, captions[unseen])

    model = keras_ssl.models.CLIP(
        keras_ssl.backbones.small_resnet(images.shape[1:], args.width),
        keras_ssl.backbones.TextTransformer.from_size("text_nano", context_length=20),
        projection_dim=128,
        augmenter=Views(
            [{"crop": {"scale": (0.5, 1.0)}, "jitter": {"brightness": 0.3, "contrast": 0.3,
              "saturation": 0.4, "hue": 0.05, "probability": 0.8}}],
            size=args.size, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0,
        ),  # fmt: skip
        seed=0,
    )  # fmt: skip
    model.compile(learning_rate=1e-3)
    start = time.time()
    model.fit(images[train], captions[train], args.batch_size, args.epochs, verbose=2)
    result = {"pictures": int(train.sum()), "pairs": len(names), "seconds": time.time() - start}
    pixels = pixel_features(resize(images, 16))
    for what, features in (("CLIP", model.encode_image(images, 256)), ("pixels", pixels)):
        recall = lambda keep, f=features: retrieval_recall(
            f[queries[keep]], f[gallery], names[keep], names, ks=(1, 5)
        )
        result[what] = {"all": recall(np.full(len(names), True)), "unseen concepts": recall(new)}
    for templates in ("name", "imagenet_7"):
        classify = zero_shot_classifier(model, names[new], templates, batch_size=256)
        best = classify(images[queries[new]], batch_size=256).argsort(axis=1)[:, ::-1]
        hits = best == np.arange(new.sum())[:, None]
        result[f"zero-shot, {templates}"] = {
            "classes": int(new.sum()), "top1": hits[:, 0].mean(), "top5": hits[:, :5].any(1).mean()
        }  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "result.json").write_text(json.dumps(result, indent=1))
    model.save_to_preset(args.output / "preset")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
