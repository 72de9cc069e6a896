"""Begin to pretrain on one backend and go on on another: the same curve.

What is saved holds everything that counts: weights, moments of the optimizer, schedule, random
streams of masks and views, which are the same on every backend.
Paper: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (what is trained here).
Data: the shipped emoji, 32 pixels.
Command: python examples/switch_backend.py --backends torch tensorflow jax
Result: the losses of a run on one backend beside those of a run that changes it; and a plot.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys


def part(folder: pathlib.Path, name: str, first: int, last: int, total: int, limit: int) -> list:
    """Epochs `first` to `last` of a run of `total`, from and to `folder/name.keras`; its losses."""
    import keras

    import keras_ssl

    images = keras_ssl.datasets.load_emoji("noto", 32, background=(255, 255, 255)).images[:limit]
    file = folder / f"{name}.keras"
    if first == 0:
        keras.utils.set_random_seed(0)
        model = keras_ssl.models.MAE(
            keras_ssl.backbones.ViTBackbone((32, 32, 3), 8, 128, num_layers=2, num_heads=4),
            **dict(decoder_hidden_dim=64, decoder_num_layers=1, decoder_num_heads=4, seed=0),
        )
        # Initial weights are drawn by each backend's own generator: both runs begin with one file.
        start = folder / "start.weights.h5"
        model.load_weights(start) if start.exists() else model.save_weights(start)
        model.compile(epochs=total, learning_rate=1e-3)
    else:
        model = keras.saving.load_model(file)
    history = model.fit(images, batch_size=64, initial_epoch=first, epochs=last, verbose=0)
    model.save(file)
    return history.history["loss"]


def elsewhere(backend: str, *arguments) -> list:
    """`part` in a process of its own, as another backend needs."""
    command = [sys.executable, __file__, "--part", *map(str, arguments)]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main(argv=None, run=elsewhere) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["torch", "tensorflow"])
    parser.add_argument("--epochs", type=int, default=3, help="of each part")
    parser.add_argument("--limit", type=int, default=1600, help="pictures")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/switch_backend"))
    parser.add_argument("--part", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        folder, name, *numbers = args.part
        print(json.dumps(part(pathlib.Path(folder), name, *map(int, numbers))))
        return {}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "start.weights.h5").unlink(missing_ok=True)
    total = args.epochs * len(args.backends)
    whole = run(args.backends[0], args.output, "whole", 0, total, total, args.limit)
    switched = []
    for number, backend in enumerate(args.backends):
        part_of = number * args.epochs, (number + 1) * args.epochs
        switched += run(backend, args.output, "switched", *part_of, total, args.limit)
    print(f"epoch  {args.backends[0]:>10}  switched  on          difference")
    for epoch, (one, two) in enumerate(zip(whole, switched, strict=True)):
        backend = args.backends[epoch // args.epochs]
        print(f"{epoch + 1:5}  {one:10.6f}  {two:8.6f}  {backend:10}  {two / one - 1:+.1e}")
    draw(whole, switched, args)
    return {"whole": whole, "switched": switched}


def draw(whole, switched, args):
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    figure, axis = plt.subplots(figsize=(5, 3.2))
    epochs = range(1, len(whole) + 1)
    axis.plot(epochs, whole, "-", linewidth=5, alpha=0.3, label=f"{args.backends[0]} alone")
    for number, backend in enumerate(args.backends):
        part = slice(number * args.epochs, (number + 1) * args.epochs)
        axis.plot(
            epochs[part], switched[part], "o-", label=f"then {backend}" if number else backend
        )
    axis.set(xlabel="epoch", ylabel="loss")
    axis.legend()
    figure.tight_layout()
    figure.savefig(args.output / "switch_backend.png", dpi=100)


if __name__ == "__main__":
    main()
