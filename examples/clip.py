"""CLIP on emoji: pictures find their names, in a drawing style and for things never seen.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
Data: the shipped emoji (six styles; or --data emoji64.npz with nine); one style (Twemoji) and every
fifth concept are in no training picture. The names are the captions, and nothing else is known.
Command: KERAS_BACKEND=tensorflow python examples/clip.py (29 minutes of one core)
Result, from Twemoji (in no training picture) to Noto, 1,678 concepts, 335 of them never seen:

    Recall@1 / @5, picture to picture    all              never seen
    raw pixels, 16 x 16                  29.5 / 44.6 %    30.4 / 44.8 %
    CLIP, cosine of the embeddings       51.3 / 71.5 %    44.2 / 65.7 %
    zero-shot top-1 / top-5 by name      51.5 / 69.2 %    17.6 / 32.8 % (among their 335 names)

An EfficientNet-Lite0 that was trained on ImageNet with labels is given as 38.0 / 58.2 % on all.
"""

import argparse
import json
import pathlib
import time

import common
import keras
from clip_emoji import load, measure

import keras_ssl
from keras_ssl.augmentation import Views


def build(size=32, width=48, method=keras_ssl.models.CLIP, normalization=(0.5, 0.5), **options):
    tokenizer = keras_ssl.tokenizers.CLIPTokenizer(20, truncate=True, num_merges=3000)
    jitter = dict(brightness=0.4, contrast=0.4, saturation=0.5, hue=0.05, probability=0.8)
    mean, std = ((value,) * 3 for value in normalization)
    views = [{"crop": {"scale": (0.4, 1.0)}, "jitter": jitter, "grayscale": {"probability": 0.1}}]
    return method(
        keras_ssl.backbones.small_resnet((size, size, 3), width),
        keras_ssl.backbones.TextTransformer(
            tokenizer.vocabulary_size, 20, hidden_dim=128, num_layers=2, num_heads=4
        ),
        projection_dim=128,
        tokenizer=tokenizer,
        augmenter=Views(views, size=size, mean=mean, std=std, seed=0),
        seed=0,
        **options,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="emoji", help="or emoji64.npz, for nine styles")
    parser.add_argument("--epochs", type=int, default=180)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--concepts", type=int, help="use the first so many only")
    parser.add_argument("--watch", action="store_true", help="log k-NN and linear accuracy")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/clip"))
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    data = load(args.data, args.size, args.concepts)
    model = build(args.size, args.width)
    model.compile(learning_rate=1e-3)
    args.output.mkdir(parents=True, exist_ok=True)
    callbacks = common.watch(common.load("emoji"), args.epochs) if args.watch else []
    callbacks.append(keras.callbacks.CSVLogger(args.output / "log.csv"))
    start, rows, fit = time.process_time(), data.train, dict(verbose=2, callbacks=callbacks)
    model.fit(data.images[rows], data.captions[rows], args.batch_size, args.epochs, **fit)
    result = {
        "backend": keras.backend.backend(),
        "options": {"seed": 0, **vars(args), "output": str(args.output)},
        "pictures": len(rows),
        "pairs": len(data.names),
        "unseen": int(data.unseen.sum()),
        "parameters": model.count_params(),
        "training_seconds": {"processor": time.process_time() - start},
        "raw pixels": measure("pixels", data),
        "CLIP": measure(model, data),
    }
    (args.output / "result.json").write_text(json.dumps(result, indent=1))
    model.save_to_preset(args.output / "preset")
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
