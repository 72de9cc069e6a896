"""Lesson: fine-tuning that keeps zero-shot (WiSE-FT), beside a linear probe.

The shipped CLIP is fine-tuned to name the nine groups ("Animals & Nature", ...), on pictures of
concepts that it may see. Between its weights before and after lies a line; along it the accuracy on
groups (of unseen concepts, unseen style) and the zero-shot accuracy over the names of unseen
concepts. Beside it a linear probe of the frozen image encoder on the groups.

Paper: Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, 2022.
Data: the shipped emoji and the shipped preset `clip_resnet_emoji`.
Command: KERAS_BACKEND=torch python examples/clip_finetune.py (two minutes of one core)
Result (plot: docs/images/clip_finetune.png), groups / names of 335 unseen concepts:

    before          11.3 / 17.6 %        half of the way    47.8 /  9.0 %
    a tenth of it   20.6 / 17.3 %        fine-tuned         57.6 /  3.9 %
    linear probe    58.5 / 17.6 %: the encoders stay as they are

Fine-tuning forgets the names. The way back gives them again, but here no point is better than both
ends: the new names say nothing about the old ones, unlike the shifted pictures of the paper.
"""

import argparse
import json
import pathlib

import numpy as np
from clip_emoji import load
from watching import plt

import keras_ssl
from keras_ssl.evaluation import LinearProbeProtocol, zero_shot_classifier

ALPHAS = np.linspace(0, 1, 11)


def accuracies(model, data, groups) -> dict:
    """Of naming the group, and the concept, for pictures of unseen concepts in the unseen style."""
    asked = data.queries[data.unseen]
    pictures = model.encode_image(data.images[asked], batch_size=256)
    result = {}
    for key, truth in (("groups", groups[asked]), ("zero-shot", data.captions[asked])):
        names = np.unique(truth)
        classify = zero_shot_classifier(model, names, "name", batch_size=256)
        said = names[classify.from_embeddings(pictures).argmax(axis=1)]
        result[key] = float(np.mean(said == truth))
    return result


def between(model, data, groups, epochs) -> list[dict]:
    """Fine-tunes; accuracy on groups and zero-shot accuracy from before to after."""
    before = model.get_weights()
    model.compile(learning_rate=3e-4)
    model.fit(data.images[data.train], groups[data.train], 128, epochs, verbose=0)
    after, rows = model.get_weights(), []
    for alpha in ALPHAS:
        model.set_weights(after)
        model.interpolate_weights(before, float(alpha))
        rows.append({"alpha": float(alpha), **accuracies(model, data, groups)})
    model.set_weights(before)
    return rows


def probe(model, data, groups) -> float:
    """A linear classifier of groups on the image encoder's embeddings."""
    labels = np.unique(groups, return_inverse=True)[1]
    sets = ((data.images[r], labels[r]) for r in (data.train, data.queries[data.unseen]))
    train, test = ((model.encode_image(x, batch_size=256), y) for x, y in sets)
    protocol = LinearProbeProtocol(epochs=20, warmup_epochs=2)
    return protocol.evaluate(train=train, test=test).top1


def draw(rows, path):
    figure, axis = plt.subplots(figsize=(5, 3.6))
    for key in ("groups", "zero-shot"):
        axis.plot([r["alpha"] for r in rows], [100 * r[key] for r in rows], "o-", label=key)
    axis.set(xlabel="alpha: 0 before, 1 after fine-tuning", ylabel="right, unseen concepts (%)")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="clip_resnet_emoji")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--concepts", type=int, help="use the first so many only")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/clip_finetune"))
    args = parser.parse_args()
    model = keras_ssl.models.CLIP.from_preset(args.preset)
    data = load(size=model.augmenter.size[0], concepts=args.concepts)
    results = {"probe": probe(model, data, data.groups)}
    results["line"] = between(model, data, data.groups, args.epochs)
    print(json.dumps(results, indent=1), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "result.json").write_text(json.dumps(results, indent=1))
    draw(results["line"], args.output / "clip_finetune.png")
    return results


if __name__ == "__main__":
    main()
