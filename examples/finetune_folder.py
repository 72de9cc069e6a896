"""Fine-tune a preset with `fit` on your own folder of class folders.

Paper: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, appendix A.1: the whole
network learns, deeper layers at smaller rates.
Data: --data, a folder or archive with a folder for each class (a tenth of each is held out), or
with train/ and test/ that hold those. Without it, the shipped emoji are written out as such a
folder, by their nine groups.
Command: KERAS_BACKEND=tensorflow python examples/finetune_folder.py
Result: accuracy of every class; the classifier as a preset; mistakes.png, the surest wrong answers.
"""

import argparse
import pathlib
import time

import keras
import numpy as np

import keras_ssl
from keras_ssl import runs
from keras_ssl.visualization import picture_grid


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder or archive; default: the emoji, written out")
    parser.add_argument("--preset", default="mae_vit_nano_cifar10", help="of a vision transformer")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, default=4_000, help="most pictures to learn from")
    parser.add_argument("--from-scratch", action="store_true", help="new weights, to compare")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/finetune_folder"))
    args = parser.parse_args(argv)
    keras.utils.set_random_seed(0)

    folder = args.data
    if folder is None:
        emoji = keras_ssl.datasets.load_emoji(background=(255, 255, 255))
        folder = emoji.save_to_folder(args.output / "emoji")
    size = keras_ssl.backbones.ViTBackbone.from_preset(args.preset, load_weights=False).image_shape
    data = runs.load_data(folder, size[0])
    train, test = data.labelled(args.limit)
    print(data, f"{len(train[0])} of them to learn from", sep="; ")

    model = keras_ssl.models.ImageClassifier.from_preset(
        args.preset,
        load_weights=not args.from_scratch,
        num_classes=len(data.class_names),
        pooling="mean",
    )
    steps = -(-len(train[0]) // args.batch_size) * args.epochs
    model.compile(
        learning_rate=args.learning_rate,
        layer_decay=1.0 if args.from_scratch else 0.75,
        total_steps=steps,
    )
    start = time.time()
    history = model.fit(
        *train,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=test,
        verbose=2,
    ).history
    seconds = time.time() - start

    logits = model.predict(test[0], batch_size=256, verbose=0)
    answers = logits.argmax(axis=1)
    right = answers == test[1]
    for label, name in enumerate(data.class_names):
        own = test[1] == label
        print(f"{name:24} {right[own].mean():6.1%} of {own.sum()}")
    print(f"all: {right.mean():.1%} after the last epoch, {seconds:.0f} s")

    # The surest wrong answers, each beside a training picture of the class that was answered.
    sure = np.where(right, -np.inf, logits.max(axis=1)).argsort()[::-1][: min(12, (~right).sum())]
    if len(sure):
        like = [np.flatnonzero(train[1] == answer)[0] for answer in answers[sure]]
        pairs = np.stack([test[0][sure], train[0][like]], axis=1)
        grid = picture_grid(pairs.reshape(-1, *pairs.shape[2:]), columns=8, zoom=2)
        grid.save(args.output / "mistakes.png")
    model.save_to_preset(args.output / "preset")
    return {"accuracy": float(right.mean()), "history": history, "output": args.output}


if __name__ == "__main__":
    main()
