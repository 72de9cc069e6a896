"""Lesson: BYOL has no negatives. What keeps it from collapsing? The predictor, first of all.

Without the predictor the online network must be equal to the target itself; without the moving
average (momentum 0) the target is the online network of a moment ago. Nothing else is changed.

Paper: Grill et al., Bootstrap Your Own Latent, 2020, section 5 and table 5; Chen and He, Exploring
Simple Siamese Representation Learning, 2021, section 4.
Data: a third of the shipped emoji's training part (2,484 pictures, 32 px).
Command: KERAS_BACKEND=tensorflow python examples/lesson_byol_collapse.py
Result (seed 0, 8 epochs; standard deviation of the projections, k-NN accuracy; untrained 47.6 %):
    as it is                0.82    49.1 %
    without predictor       0.04    46.8 %    CollapseMonitor warns after epoch 5
    without moving average  0.82    48.9 %    no collapse
    without both            0.02    44.3 %    CollapseMonitor warns after epoch 2
BYOL's table reports collapse without the average, too; here it is not seen in a run this short,
which agrees with SimSiam: a predictor that keeps up is enough. In both collapses the loss is the
lowest of all (0.005 and 0.002, against 1.5), and the backbone's features stay spread out: what
collapses is what the loss sees. Plot: docs/images/lesson_byol_collapse.png.
"""

import argparse

import keras
from common import load
from watching import draw, knn, parts, report, watch

import keras_ssl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="docs/images/lesson_byol_collapse.png")
args = parser.parse_args()


def byol(data, predictor=True, average=True):
    model = keras_ssl.models.BYOL(
        projection_dim=64,
        projection_hidden_dim=256,
        momentum=0.9 if average else 0.0,  # 0.9: so short a run needs a target that keeps up
        momentum_schedule="cosine" if average else "constant",
        **parts(data, args.seed),
    )
    if not predictor:
        del model.prediction_head
        model.prediction_head = keras.layers.Identity()
    return model


data = load("emoji")
runs = {}
for name, options in (
    ("as it is", {}),
    ("without predictor", {"predictor": False}),
    ("without moving average", {"average": False}),
    ("without both", {"predictor": False, "average": False}),
):
    model = byol(data, **options)
    untrained = knn(model, data)
    runs[name] = watch(model, data, args.epochs, optimizer=keras_ssl.optimizers.sgd(0.1))
print(f"k-NN: raw pixels {knn('pixels', data):.3f}, untrained {untrained:.3f}")
report(runs)
draw(runs, args.output)
