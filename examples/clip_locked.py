"""Lesson: locked-image tuning (LiT). Only the text encoder learns, for a trained image encoder.

The image encoder is SimCLR's, trained on CIFAR-10 without labels or names. Locked, it stays as it
is and the texts learn to match it; beside it the same start unlocked, and CLIP from scratch.

Paper: Zhai et al., LiT: Zero-Shot Transfer with Locked-image Text Tuning, 2022.
Data: the shipped emoji, style and concepts held out as in clip.py; the shipped preset
`simclr_resnet_cifar10`.
Command: KERAS_BACKEND=tensorflow python examples/clip_locked.py (six minutes of one core)
Result, right by name, and picture to picture (Recall@1 to the other style):

    image encoder     names: all 1,678   unseen   pictures: all   unseen
    locked                      20.1 %   10.1 %          24.1 %   24.8 %
    unlocked                    26.5 %   11.9 %          32.8 %   32.5 %
    from scratch                12.6 %    9.3 %          19.7 %   19.4 %

The pretrained start is worth a lot, locking it is not: the paper's image encoders have seen more
and better pictures than the pairs do, this one CIFAR-10's 32-pixel photographs (one seed each).
"""

import argparse
import json
import pathlib

import keras
from clip import build
from clip_emoji import load, measure

import keras_ssl


def locked(data, epochs) -> dict:
    """Zero-shot figures of a text encoder for SimCLR's image encoder; unlocked; from scratch."""
    trained = keras_ssl.models.SimCLR.from_preset("simclr_resnet_cifar10").backbone
    results = {}
    for name in ("locked", "unlocked", "from scratch"):
        keras.utils.set_random_seed(0)
        # SimCLR's pictures have values in [0, 1].
        model = build(width=32, normalization=(0.0, 1.0), lock_image=name == "locked")
        if name != "from scratch":
            model.backbone.set_weights(trained.get_weights())
        model.compile(learning_rate=1e-3)
        model.fit(data.images[data.train], data.captions[data.train], 128, epochs, verbose=0)
        results[name] = measure(model, data)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--concepts", type=int, help="use the first so many only")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/clip_locked"))
    args = parser.parse_args()
    results = locked(load(size=32, concepts=args.concepts), args.epochs)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "result.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main()
