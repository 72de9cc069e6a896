"""Lesson: how one asks matters. Prompt ensembling against one prompt, on CLIP trained on emoji.

Zero-shot classification of unseen concepts in the unseen style, their names put into: nothing, each
of the 80 published ImageNet templates alone, all of them averaged, the 7 of them that were chosen
on ImageNet; and into templates that suit the pictures, alone and averaged.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
section 3.1.4.
Data: the shipped emoji and the shipped preset `clip_resnet_emoji`; nothing is trained.
Command: KERAS_BACKEND=torch python examples/clip_prompts.py (one minute)
Result (335 classes; plot: docs/images/clip_prompts.png):

    the bare name, as in training                                    17.6 %
    one of ImageNet's 80 templates: mean, best ("art of a {}.")       7.8, 13.4 %
    ImageNet's 80 averaged; the 7 chosen                             12.8, 13.4 %
    one of 6 templates for emoji: mean, best ("{} icon")             11.7, 14.0 %
    those 6 averaged                                                 15.2 %

Averaging is worth five points over the mean template of ImageNet's, and only "art of a {}." alone
is better than the 80 together; but no prompt beats the form of the captions in training.
"""

import argparse
import json

import numpy as np
from clip_emoji import load
from watching import plt

import keras_ssl
from keras_ssl.evaluation import TEMPLATES, zero_shot_classifier

EMOJI = ("{} emoji", "{} icon", "{} picture", "an emoji of {}", "a drawing of {}", "a {} sign")


def accuracies(model, data) -> dict:
    """Top-1 accuracy of every template alone, and of the ensembles."""
    pictures = model.encode_image(data.images[data.queries[data.unseen]], batch_size=256)
    names = data.names[data.unseen]

    def accuracy(templates):
        classify = zero_shot_classifier(model, names, templates, batch_size=256)
        hits = classify.from_embeddings(pictures).argmax(axis=1) == np.arange(len(names))
        return float(hits.mean())

    groups = {"ImageNet's": TEMPLATES["imagenet_80"], "for emoji": EMOJI}
    return {
        "classes": len(names),
        "the bare name": accuracy("name"),
        "ImageNet's seven": accuracy("imagenet_7"),
        "alone": {name: {t: accuracy([t]) for t in group} for name, group in groups.items()},
        "averaged": {name: accuracy(group) for name, group in groups.items()},
    }


def draw(result, path):
    figure, axis = plt.subplots(figsize=(8, 3))
    for row, (name, alone) in enumerate(result["alone"].items()):
        spread = np.linspace(-0.2, 0.2, len(alone))
        label = "one template" if row == 0 else None
        axis.plot(100 * np.array(list(alone.values())), row + spread, "o", color="C0", label=label)
        label = "all of them averaged" if row == 0 else None
        axis.plot(100 * result["averaged"][name], row, "D", color="C3", ms=10, label=label)
    axis.plot(100 * result["ImageNet's seven"], 0, "s", color="C1", ms=8, label="seven of them")
    axis.axvline(100 * result["the bare name"], color="black", ls="--", label="the bare name")
    axis.set_yticks(range(len(result["alone"])), result["alone"])
    axis.set_ylim(-0.5, len(result["alone"]) - 0.5)
    axis.set_xlabel(f"zero-shot accuracy over {result['classes']} unseen concepts (%)")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="clip_resnet_emoji")
    parser.add_argument("--concepts", type=int, help="use the first so many only")
    parser.add_argument("--output", default="docs/images/clip_prompts.png")
    args = parser.parse_args()
    model = keras_ssl.models.CLIP.from_preset(args.preset)
    size = model.augmenter.size[0]
    result = accuracies(model, load(size=size, concepts=args.concepts))
    for alone in result["alone"].values():
        best = sorted(alone, key=alone.get)
        print("worst", best[0], alone[best[0]], "| best", best[-1], alone[best[-1]])
        print("mean of one template", np.mean(list(alone.values())))
    print(json.dumps({key: value for key, value in result.items() if key != "alone"}, indent=1))
    draw(result, args.output)
    return result


if __name__ == "__main__":
    main()
