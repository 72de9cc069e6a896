"""Why DINO does not collapse: the same run without one of its parts, on 32-pixel emoji.

Paper: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, sections 5.1
to 5.3 (figures 6 and 7).
Command: KERAS_BACKEND=tensorflow python examples/lesson_dino.py (five minutes of one core)
Result, after 20 epochs (400 steps) on 1,321 pictures; curves in docs/images/lesson_dino.png:

|                     | targets' entropy | KL to student | largest prototype | k-NN of teacher |
| DINO                | 4.96 nats        | 0.28 nats     | 17 % of pictures  | 50.5 %          |
| without centring    | 0.00             | 0.00          | 100 %: one class  | 50.3 %          |
| without sharpening  | 5.55 = log 256   | 0.00: uniform | 18 %              | 51.4 %          |
| teacher by gradient | swings, 0 to 5.5 | up to 14      | 100 %             | 47.3 %          |

Both collapses are complete within 100 steps: the divergence is zero, so nothing more is learned.
DINO's teacher is on average 0.8 points better than its student (ten looks at 368 test pictures;
worse at two). So short a run moves k-NN accuracy little: untrained it is 47.8 %, of raw pixels
50.0 %; only the teacher that learns by gradient ends below both.
"""

import argparse
import json
import os

import keras
import numpy as np
from keras import ops

import keras_ssl
from keras_ssl.evaluation import KNNProtocol
from keras_ssl.losses.dino import mean_entropy
from keras_ssl.models import DINO


class GradientTeacher(DINO):
    """No moving average: the targets are the student's own, and the gradient goes through them."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        s = self.project(self.make_views(x, training), training)  # V x N x K
        temperature = self.current_teacher_temperature()
        targets = ops.softmax((s[:2] - self.center.center) / temperature)
        log_p = ops.log_softmax(s / 0.1)
        pairs = [(t, v) for t in range(2) for v in range(s.shape[0]) if v != t]
        loss = -sum(ops.mean(ops.sum(targets[t] * log_p[v], axis=-1)) for t, v in pairs)
        loss, entropy = loss / len(pairs), mean_entropy(ops.stop_gradient(targets))
        self.teacher_entropy.update_state(entropy)
        self.teacher_student_kl.update_state(ops.stop_gradient(loss) - entropy)
        if training:
            self.center.update(s[:2])
        return loss


LESSONS = {
    "DINO": (DINO, {}),
    "without centring": (DINO, {"center_momentum": 1.0}),
    "without sharpening": (
        DINO,
        {"teacher_temperature": 0.2, "warmup_teacher_temperature": 0.2},
    ),
    "teacher by gradient": (GradientTeacher, {"predict_with": "student"}),
}


class Outputs(keras.Model):
    """Features and logits of the teacher or the student, for `predict`."""

    def __init__(self, model, teacher):
        super().__init__()
        self.model = model
        self.network = (model.backbone, model.head)
        if teacher:
            self.network = (model.teacher_backbone, model.teacher_head)

    def call(self, images):
        features = self.model.encode(self.model.preprocess(images), backbone=self.network[0])
        return features, self.network[1](features)


class Watch(keras.callbacks.Callback):
    """k-NN accuracy of teacher and student, and the share of the pictures in one prototype."""

    def __init__(self, train, test, every):
        super().__init__()
        self.train, self.test, self.every, self.rows = train, test, every, []

    def on_train_begin(self, logs=None):
        own = isinstance(self.model, GradientTeacher)
        self.outputs = {w: Outputs(self.model, w == "teacher" and not own) for w in WHO}
        self.look(0)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0:
            self.look(epoch + 1, **logs)

    def look(self, epoch, **logs):
        row = {"epoch": epoch}
        for who, outputs in self.outputs.items():
            bank, _ = outputs.predict(self.train.images, batch_size=256, verbose=0)
            asked, logits = outputs.predict(self.test.images, batch_size=256, verbose=0)
            sets = dict(train=(bank, self.train.labels), test=(asked, self.test.labels))
            row[who] = KNNProtocol(k=20).evaluate(**sets).top1
        winners = np.bincount(np.argmax(logits - to_numpy(self.model.center.center), axis=-1))
        row["largest prototype"] = float(winners.max() / winners.sum())
        row |= {key: float(value) for key, value in logs.items()}
        self.rows.append(row)
        print({key: round(value, 3) for key, value in row.items()}, flush=True)


WHO, to_numpy = ("student", "teacher"), ops.convert_to_numpy


def run(name, train, test, args):
    keras.utils.set_random_seed(args.seed)
    backbone = keras_ssl.backbones.ViTBackbone(
        (32, 32, 3),
        patch_size=8,
        hidden_dim=96,
        num_layers=3,
        num_heads=3,
        position_embedding="sincos",
        initializer="mae",
    )
    method, options = LESSONS[name]
    model = method.small(backbone, output_dim=256, num_local_views=2, seed=args.seed, **options)
    print(name, flush=True)
    model.compile(learning_rate=args.learning_rate)
    watch = Watch(train, test, args.every)
    model.fit(train.images, batch_size=64, epochs=args.epochs, verbose=0, callbacks=[watch])
    return watch.rows


def plot(results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True)
    titles = {
        "teacher_entropy": "entropy of the teacher's targets (nats; uniform: log 256 = 5.5)",
        "teacher_student_kl": "KL(teacher | student) (nats)",
        "largest prototype": "share of test pictures in the largest prototype",
    }
    for axis, (key, title) in zip(axes.flat, titles.items(), strict=False):
        for name, rows in results.items():
            shown = [row for row in rows if key in row]
            axis.plot([r["epoch"] for r in shown], [r[key] for r in shown], label=name)
        axis.set_title(title, fontsize=9)
    axes[0, 1].set_yscale("symlog", linthresh=0.1)
    for i, rows in enumerate(results.values()):
        for who, style in (("teacher", "-"), ("student", ":")):
            axes[1, 1].plot(
                [r["epoch"] for r in rows], [r[who] for r in rows], style, color=f"C{i}"
            )
    axes[1, 1].set_title("k-NN accuracy: teacher (line), student (dots)", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=2, help="epochs between looks")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="for a batch of 256")
    parser.add_argument("--only", nargs="*", default=list(LESSONS), choices=list(LESSONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/lesson_dino")
    args = parser.parse_args()
    emoji = keras_ssl.datasets.load_emoji(styles="noto", image_size=32, background=(255, 255, 255))
    train, test = emoji.split(test_fraction=0.2, seed=0)
    os.makedirs(args.output, exist_ok=True)
    path, results = os.path.join(args.output, "lesson_dino.json"), {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    results.update({name: run(name, train, test, args) for name in args.only})
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    plot(results, os.path.join(args.output, "lesson_dino.png"))
