"""Lesson: what do negatives do for SimCLR? Without them, it collapses.

SimCLR's loss has two parts: views of one picture attract each other, and all other pictures repel.
Take the second part away and what remains is minimal when every picture is the same point.

Paper: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
equation 1; Wang and Isola, Understanding Contrastive Representation Learning, 2020.
Data: a third of the shipped emoji's training part (2,484 pictures, 32 px).
Command: KERAS_BACKEND=tensorflow python examples/lesson_simclr_negatives.py
Result (seed 0, 12 epochs): k-NN accuracy with negatives 51.0 % (raw pixels 48.9 %, untrained
47.6 %), without 31.9 %: worse than no training at all. The loss falls to -4.87 of at best -5, while
the projections' standard deviation goes to 0.02 (with negatives: 0.92) and the features' RankMe to
4.6 (21). CollapseMonitor warns after epoch 6. Plot: docs/images/lesson_simclr_negatives.png.
"""

import argparse

from common import load
from keras import ops
from watching import draw, knn, parts, report, watch

import keras_ssl
from keras_ssl.losses import NTXentLoss

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="docs/images/lesson_simclr_negatives.png")
args = parser.parse_args()


class WithoutNegatives(NTXentLoss):
    """`-cos(z_i, z_j) / T`: the numerator of NT-Xent alone."""

    def __call__(self, z1, z2, return_statistics=False):
        _, statistics = super().__call__(z1, z2, return_statistics=True)
        cosine = ops.sum(ops.normalize(z1, axis=-1) * ops.normalize(z2, axis=-1), axis=-1)
        loss = -ops.mean(cosine) / self.temperature
        return (loss, statistics) if return_statistics else loss


data = load("emoji")
runs = {}
for name, loss in (("with negatives", NTXentLoss(0.2)), ("without", WithoutNegatives(0.2))):
    model = keras_ssl.models.SimCLR(projection_dim=64, loss=loss, **parts(data, args.seed))
    untrained = knn(model, data)
    runs[name] = watch(model, data, args.epochs, learning_rate=1.0)
print(f"k-NN: raw pixels {knn('pixels', data):.3f}, untrained {untrained:.3f}")
report(runs)
draw(runs, args.output)
