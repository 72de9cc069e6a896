"""CLIP on emoji: pictures find their names, in a drawing style and for things never seen.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
Data: the shipped emoji (six styles; or --data emoji64.npz with nine); one style (Twemoji) and every
fifth concept are in no training picture. The names are the captions, and nothing else is known.
Command: KERAS_BACKEND=tensorflow python examples/clip.py
Result: zero-shot accuracy over the names of all unseen concepts, and Recall@1 and @5 from Twemoji
to Noto, beside raw 16 x 16 pixels: printed, and written to result.json.
"""

import argparse
import json
import pathlib
import time

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
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/clip"))
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    data = load(args.data, args.size, args.concepts)
    model = build(args.size, args.width)
    model.compile(learning_rate=1e-3)
    args.output.mkdir(parents=True, exist_ok=True)
    log = keras.callbacks.CSVLogger(args.output / "log.csv")
    start, rows, fit = time.process_time(), data.train, dict(verbose=2, callbacks=[log])
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
