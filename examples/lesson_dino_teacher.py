"""Lesson: DINO's teacher is better than its student while both learn; that is what it teaches with.

The teacher is the average of the students of the last hundred steps or so. Nothing is trained on
labels: they are only used to look, by k-NN on the features of both networks.

Paper: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, section 5.2
and figure 6.
Data: CIFAR-10, a folder or archive with train/ and test/.
Command: KERAS_BACKEND=tensorflow python examples/lesson_dino_teacher.py --data cifar10.tar.gz
Result: the accuracy of both after every epoch, and the curves as a picture, in `--output`.
"""

import argparse
import json
import os

import keras
from common import load
from dino import build
from watching import plt

from keras_ssl.evaluation import KNNProtocol


class Features(keras.Model):
    """Features of one of a task's networks, for `predict`."""

    def __init__(self, task, network):
        super().__init__()
        self.task, self.network = task, network

    def call(self, images):
        return self.task.encode(self.task.preprocess(images), backbone=self.network)


class Look(keras.callbacks.Callback):
    """k-NN accuracy of student and teacher after every epoch."""

    def __init__(self, train, test):
        super().__init__()
        self.train, self.test, self.rows = train, test, []

    def on_train_begin(self, logs=None):
        task = self.model
        networks = {"student": task.backbone, "teacher": task.teacher_backbone}
        self.features = {who: Features(task, network) for who, network in networks.items()}
        self.look()

    def on_epoch_end(self, epoch, logs=None):
        self.look()

    def look(self):
        row = {"step": int(self.model.seen_batches)}
        for who, features in self.features.items():
            result = KNNProtocol(k=20).evaluate(features, train=self.train, test=self.test)
            row[who] = result.top1
        self.rows.append(row)
        print(row, flush=True)


def some(rows, count):
    """Every n-th row: folders come class after class."""
    return rows[:: max(1, len(rows) // count)]


def draw(rows, path):
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for who in ("teacher", "student"):
        axes.plot([r["step"] for r in rows], [100 * r[who] for r in rows], ".-", label=who)
    axes.set(xlabel="step", ylabel="k-NN accuracy (%)")
    axes.legend()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder or archive with train/ and test/")
    parser.add_argument("--pictures", type=int, default=3000, help="to train with")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/lesson_dino_teacher")
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    data = load(args.data)
    images = some(data.train[0], args.pictures)
    bank, test = ([some(part, 5000) for part in pair] for pair in (data.train, data.test))
    model = build(images.shape[1:], args)
    look = Look(bank, test)
    model.fit(images, batch_size=64, epochs=args.epochs, verbose=0, callbacks=[look])
    looks = look.rows[1:]
    better = sum(row["teacher"] > row["student"] for row in looks)
    mean = 100 * sum(row["teacher"] - row["student"] for row in looks) / len(looks)
    print(f"teacher better at {better} of {len(looks)} looks, by {mean:.1f} points on average")
    with open(os.path.join(args.output, "looks.json"), "w", encoding="utf-8") as file:
        json.dump(look.rows, file, indent=1)
    draw(look.rows, os.path.join(args.output, "lesson_dino_teacher.png"))
