"""What pretraining is worth when labels are few: 1 % and 10 % of them, against none pretrained.

Paper: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
table 7 (semi-supervised: the whole network is fine-tuned on a share of the labels).
Data: --data, a folder or archive with train/ and test/: CIFAR-10, on which the shipped preset was
pretrained without labels; or the emoji (the default), to which it is new.
Command: KERAS_BACKEND=tensorflow python examples/few_labels.py --data cifar10.tar.gz
Result: a line for each share and way; few_labels.png and few_labels.json.
"""

import argparse
import json
import pathlib
import time

import keras
import matplotlib
import numpy as np
from common import load

import keras_ssl
from keras_ssl.augmentation import Views
from keras_ssl.evaluation import LinearProbeProtocol, label_fraction

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


class Classifier(keras.Model):
    """A linear layer over the encoder of any method, on mirrored and cropped pictures."""

    def __init__(self, task, num_classes):
        super().__init__()
        self.task, old = task, task.augmenter
        recipe = [{"crop": {"scale": (0.5, 1.0)}, "flip": {}}]
        self.views = Views(recipe, old.size, mean=old.mean, std=old.std, seed=0)
        self.head = keras.layers.Dense(num_classes, name="head")
        encoder = {id(variable) for variable in task.backbone.variables}
        for variable in task.trainable_variables:  # the method's own heads rest
            variable.trainable = id(variable) in encoder

    def call(self, images, training=False):
        if training:
            return self.head(self.task.encode(self.views(images, training=True)[0], training=True))
        return self.head(self.task.encode(self.task.preprocess(images)))


def fine_tune(task, train, test, args) -> float:
    """Accuracy on `test` after so many steps on `train`, however few pictures that is."""
    model = Classifier(task, int(train[1].max()) + 1)
    epochs = max(1, round(args.steps * args.batch_size / len(train[0])))
    steps = epochs * -(-len(train[0]) // args.batch_size)
    rate = keras_ssl.schedules.WarmupCosine(args.learning_rate, steps, steps // 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_ssl.optimizers.AdamW(rate, weight_decay=0.05), loss)
    model.fit(*train, batch_size=args.batch_size, epochs=epochs, verbose=0)
    answers = model.predict(test[0], batch_size=256, verbose=0).argmax(axis=1)
    return float((answers == test[1]).mean())


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--preset", default="simclr_resnet_cifar10", help="of any method")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--steps", type=int, default=250, help="of every fine-tuning")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/few_labels"))
    args = parser.parse_args(argv)
    data = load(args.data)
    x, y = data.train
    probe = LinearProbeProtocol(epochs=50, validation_fraction=0.0)
    lines = {"from scratch": [], "pretrained, fine-tuned": [], "pretrained, linear probe": []}
    start = time.time()
    for fraction in args.fractions:
        rows = label_fraction(y, fraction)
        train, test = (x[rows], y[rows]), data.test
        for name, values in lines.items():
            keras.utils.set_random_seed(0)
            old = "scratch" not in name
            task = keras_ssl.models.SSLTask.from_preset(args.preset, load_weights=old)
            probed = "probe" in name and probe.evaluate(task, train=train, test=test).top1
            values.append(probed or fine_tune(task, train, test, args))
            print(f"{len(rows)} labels ({fraction:.0%}), {name}: {values[-1]:.1%}", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    result = {"preset": args.preset, "data": data.name, "fractions": args.fractions, **lines}
    (args.output / "few_labels.json").write_text(json.dumps(result, indent=1))
    figure, axis = plt.subplots(figsize=(5, 3.5))
    for name, values in lines.items():
        axis.plot(np.multiply(args.fractions, 100), np.multiply(values, 100), "o-", label=name)
    axis.set(xscale="log", xlabel="% of the labels", ylabel="accuracy in %", title=data.name)
    axis.legend()
    figure.savefig(args.output / "few_labels.png", dpi=100, bbox_inches="tight")
    print(f"{time.time() - start:.0f} s")
    return result


if __name__ == "__main__":
    main()
