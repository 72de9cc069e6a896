"""Makes a preset that ships with keras_ssl, by one command:

    KERAS_BACKEND=tensorflow python tools/train_zoo.py byol_resnet_cifar10 --cifar10 cifar10.tar.gz

runs the recipe (unless its result is there; a run that was stopped goes on), puts the preset into
presets/, loads it again by its name, measures it and writes its model card with the figures of
the file as it ships. Training is seeded and the same on every backend up to rounding.
"""

import argparse
import csv
import importlib
import json
import os
import shutil
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "benchmarks"), os.path.join(ROOT, "examples")]

import accuracy  # noqa: E402
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Name of the preset: recipe, data, the paper, and what the network is.
RESNET = "a small residual network (`keras_ssl.backbones.small_resnet`)"
ZOO = {
    f"{recipe}_resnet_{data}": (recipe, data, RESNET)
    for recipe in accuracy.RECIPES
    if recipe not in ("mae", "dinov2")
    for data in ("cifar10", "emoji")
}
DATA = {
    "cifar10": "CIFAR-10 (Krizhevsky 2009), 50,000 training pictures of 32 px, without labels",
    "emoji": "the emoji that ship with keras_ssl (7,451 pictures, 32 px, on white), without labels",
}
CARD = """# {name}

{doc}

| | |
| --- | --- |
| load | `keras_ssl.models.{method}.from_preset("{name}")` |
| network | {network}, {parameters:,} parameters |
| data | {data} |
| recipe | `KERAS_BACKEND={backend} python examples/{recipe}.py --data ... --epochs {epochs}` |
| seed | {seed} |
| made by | `python tools/train_zoo.py {name} --cifar10 ...` |
| time | {minutes:.0f} minutes of processor time on one core |
| licence | Apache-2.0 |

| last epoch | raw pixels | untrained | this preset |
| --- | --- | --- | --- |
{rows}

Measured on the shipped file. Protocols: {protocols}.

![loss](loss.png)
"""


def curve(log, picture):
    """The log of the run as a picture."""
    with open(log, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(4, 2.5), layout="constrained")
    axes.plot([int(row["epoch"]) + 1 for row in rows], [float(row["loss"]) for row in rows])
    axes.set(xlabel="epoch", ylabel="loss")
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def card(name, network, result, figures):
    names = {"knn": "k-NN", "linear": "linear"}
    rows = [
        f"| {names[protocol]} | {100 * result['pixels'][protocol]:.1f} % "
        f"| {100 * result['untrained'][protocol]:.1f} % | **{100 * figures[protocol]:.1f} %** |"
        for protocol in names
    ]
    protocols = "; ".join(json.dumps(protocol) for protocol in result["protocols"].values())
    doc = importlib.import_module(result["options"]["recipe"]).__doc__.strip().splitlines()
    return CARD.format(
        name=name,
        doc=f"{doc[0]} {next(line for line in doc if line.startswith('Paper:'))}",
        method=result["method"],
        network=network,
        parameters=result["parameters"]["backbone"],
        data=DATA[result["data"]],
        backend=result["backend"],
        recipe=result["options"]["recipe"],
        epochs=result["options"]["epochs"],
        seed=result["options"]["seed"],
        minutes=result["training_seconds"]["processor"] / 60,
        rows="\n".join(rows),
        protocols=protocols,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(ZOO))
    parser.add_argument("--cifar10", help="folder or archive of CIFAR-10")
    parser.add_argument("--output", default="runs/accuracy", help="where the runs are")
    args = parser.parse_args()
    recipe, data, network = ZOO[args.name]
    source = args.cifar10 if data == "cifar10" else data
    if source is None:
        parser.error("--cifar10 must name the folder or archive of CIFAR-10")
    if accuracy.result_of(args.output, recipe, data) is None:
        accuracy.pretrain(args.output, recipe, data, source)
    run = accuracy.folder(args.output, recipe, data)
    result = accuracy.result_of(args.output, recipe, data)
    target = os.path.join(ROOT, "presets", args.name)
    shutil.copytree(os.path.join(run, "preset"), target, dirs_exist_ok=True)

    import common  # Keras, only once there is something to measure

    import keras_ssl

    model = getattr(keras_ssl.models, result["method"]).from_preset(args.name)
    figures = common.measure(model, common.load(source))
    for protocol, figure in figures.items():
        if abs(figure - result["trained"][protocol]) > 0.003:
            raise SystemExit(
                f"The shipped file gives {figure:.4f} ({protocol}), the run had "
                f"{result['trained'][protocol]:.4f}."
            )
    curve(os.path.join(run, "log.csv"), os.path.join(target, "loss.png"))
    with open(os.path.join(target, "README.md"), "w", encoding="utf-8") as file:
        file.write(card(args.name, network, result, figures))
    print(f"{target}: {figures}")


if __name__ == "__main__":
    main()
