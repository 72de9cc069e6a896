"""Makes the presets that ship with keras_ssl, checks them, and prints their table.

    KERAS_BACKEND=tensorflow python tools/train_zoo.py byol_resnet_cifar10 --cifar10 cifar10.tar.gz
    KERAS_BACKEND=torch python tools/train_zoo.py --check --cifar10 cifar10.tar.gz
    python tools/train_zoo.py --table

The first runs a recipe of examples/ (one that was stopped goes on, one that is done is not
repeated), stores its preset with float16 weights in presets/, loads that by its name, measures it
by `keras_ssl.runs.evaluate`, as `keras-ssl evaluate` does, and writes its model card. The second
measures what is in presets/ again and fails where a figure is not that of the card. Training is
seeded and the same on every backend up to rounding.
"""

import argparse
import csv
import dataclasses
import json
import math
import os
import subprocess
import sys

from model_cards import EXAMPLES, NAMES, card, draw, page, table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRESETS = os.path.join(ROOT, "presets")
TOLERANCE = 0.003


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a preset is made: recipe of examples/, data, epochs, and what the network is."""

    recipe: str
    data: str
    epochs: int
    network: str
    protocols: tuple = ("knn", "linear")
    options: tuple = ("--watch",)
    about: str = ""  # the data, in place of the usual words
    limit: int | None = None  # pictures that the classifiers learn from


RESNET = "a small residual network (`keras_ssl.backbones.small_resnet`)"
PAIRS = ("knn", "linear", "retrieval")
ZOO = {
    "mae_vit_nano_cifar10": Entry("mae", "cifar10", 13, "ViT-nano, 128 wide, 6 blocks, patch 4"),
    "simclr_resnet_cifar10": Entry("simclr", "cifar10", 15, RESNET),
    "moco_resnet_cifar10": Entry("moco", "cifar10", 5, RESNET),
    "moco_v3_resnet_cifar10": Entry("moco_v3", "cifar10", 5, RESNET),
    "byol_resnet_cifar10": Entry("byol", "cifar10", 5, RESNET),
    "simsiam_resnet_cifar10": Entry("simsiam", "cifar10", 5, RESNET),
    "barlow_twins_resnet_cifar10": Entry("barlow_twins", "cifar10", 5, RESNET),
    "vicreg_resnet_cifar10": Entry("vicreg", "cifar10", 5, RESNET),
    "dino_resnet_cifar10": Entry("dino", "cifar10", 5, RESNET),
    "dinov2_vit_cifar10": Entry("dinov2", "cifar10", 5, "a ViT, 96 wide, 3 blocks, patch 8"),
    "clip_resnet_emoji": Entry(
        "clip",
        "emoji",
        180,
        "a small residual network, 48 wide, and a text transformer, 128 wide, 2 blocks",
        PAIRS,
        (),
        "6,057 of the emoji that ship with keras_ssl (32 px, on white) with their names, without "
        "the classes; one style (Twemoji) and every fifth concept are not among them. Most of what "
        "`keras-ssl evaluate` asks for is: the recipe's own figures below are those on what is new",
    ),
    "siglip_resnet_emoji": Entry(
        "siglip", "emoji", 10, f"{RESNET} and a text transformer, 96 wide, 2 blocks", PAIRS
    ),
    "align_efficientnet_emoji": Entry(
        "align",
        "emoji",
        12,
        "keras-hub's EfficientNet, three stages, and its BERT, 96 wide, 2 blocks",
        PAIRS,
    ),
}


def evaluated(model, data, entry):
    """Figures by name in [0, 1], and the protocols behind them."""
    import common

    from keras_ssl import runs

    k, epochs = common.PROTOCOLS["knn"].k, common.PROTOCOLS["linear"].epochs
    figures, protocols = {}, []
    options = dict(k=k, linear_epochs=epochs, limit=entry.limit)
    for result in runs.evaluate(model, data, entry.protocols, **options):
        kind = result.protocol["protocol"]
        if kind == "retrieval":
            figures |= {name: result.metrics[name] for name in ("image_R@5", "text_R@5")}
        else:
            figures["linear" if kind == "linear_probe" else kind] = result.top1
        protocols.append(result.protocol)
    return figures, protocols


def ramps():
    """A picture that is the same everywhere: what a preset makes of it shows how it was loaded."""
    import numpy as np

    y, x = np.mgrid[:32, :32]
    return np.stack([8 * x, 8 * y, 4 * (x + y)], axis=-1).astype("uint8")[None]


def embedding_of(model):
    """The first values of the embedding of `ramps()`, as numbers for `figures.json`."""
    import keras

    values = keras.ops.convert_to_numpy(model(ramps()))[0, :16]
    return [round(float(value), 6) for value in values]


def command_of(name, entry):
    import keras

    protocols = " ".join(f"-p {protocol}" for protocol in entry.protocols)
    data = "emoji" if entry.data == "emoji" else "cifar10.tar.gz"
    backend = f"KERAS_BACKEND={keras.backend.backend()}"
    limit = f" --limit {entry.limit}" if entry.limit else ""
    name = f"{name} --data {data} {protocols} --linear-epochs 20{limit}"
    return f"{backend} keras-ssl evaluate {name}"


def measure(name, entry, source, log):
    """The figures of a shipped preset beside pixels and the same network untrained."""
    import keras

    import keras_ssl
    from keras_ssl import runs

    data = runs.load_data(source, 32)
    model = runs.load_model(name)
    figures, protocols = evaluated(model, data, entry)
    plain = dataclasses.replace(entry, protocols=("knn", "linear"))
    if set(figures) - set(log["untrained"]):
        keras.utils.set_random_seed(log["seed"])
        untrained = keras_ssl.models.SSLTask.from_preset(name, load_weights=False)
        log["untrained"] = evaluated(untrained, data, entry)[0]
    if not log["pixels"]:
        log["pixels"] = evaluated("pixels", data, plain)[0]
    return {
        **log,
        "name": name,
        "method": type(model).__name__,
        "data": entry.data,
        "limit": entry.limit,
        "parameters": {"backbone": model.backbone.count_params(), "all": model.count_params()},
        "figures": figures,
        "protocols": protocols,
        "command": command_of(name, entry),
        "embedding": embedding_of(model),
    }


def known(cell):
    """A number of the log, or None where an epoch was not measured."""
    value = float(cell)
    return None if math.isnan(value) else value


def log_of(run, entry):
    """What the run's files say: options, time, baselines, and figures over time if watched."""
    with open(os.path.join(run, "result.json"), encoding="utf-8") as file:
        result = json.load(file)
    with open(os.path.join(run, "log.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    curves = {
        name: [known(row[column]) for row in rows]
        for name, column in (("loss", "loss"), ("knn", "knn_top1"), ("linear", "linear_top1"))
        if column in rows[0]
    }
    timed = len(rows) - result.get("first_epoch", 0)  # a run that went on knows its last part
    return {
        "recipe": f"python examples/{entry.recipe}.py --data ... --epochs {len(rows)}",
        "backend": result["backend"],
        "seed": result["options"]["seed"],
        "minutes": result["training_seconds"]["processor"] / 60 * len(rows) / timed,
        "curves": curves,
        "pixels": result.get("pixels", {}),
        "untrained": result.get("untrained", {}),
        "own": {key: result[key] for key in ("raw pixels", "CLIP") if key in result},
    }


def make(name, source, run):
    entry, target = ZOO[name], os.path.join(PRESETS, name)
    if not os.path.exists(os.path.join(run, "result.json")):
        command = [sys.executable, os.path.join(EXAMPLES, f"{entry.recipe}.py"), *entry.options]
        command += ["--data", source, "--epochs", str(entry.epochs), "--output", run]
        subprocess.run(command, check=True)

    import keras_ssl  # Keras, only once there is something to measure

    model = keras_ssl.models.SSLTask.from_preset(os.path.join(run, "preset"))
    model.save_to_preset(target, storage_dtype="float16")
    facts = measure(name, entry, source, log_of(run, entry))
    draw(facts["curves"], os.path.join(target, "log.png"))
    facts["bytes"] = sum(
        os.path.getsize(os.path.join(target, file))
        for file in os.listdir(target)
        if file.endswith((".json", ".h5")) and file != "figures.json"
    )
    with open(os.path.join(target, "figures.json"), "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1, allow_nan=False)
        file.write("\n")
    write_cards()
    print(f"{target}: {facts['figures']}, {facts['bytes'] / 1e6:.1f} MB")


def write_cards():
    """All cards and the page of the folder, from what was measured."""
    pages = {os.path.join(name, "README.md"): card(f, ZOO[name]) for name, f in shipped().items()}
    for path, text in {**pages, "README.md": page(shipped())}.items():
        with open(os.path.join(PRESETS, path), "w", encoding="utf-8") as file:
            file.write(text)


def shipped():
    """Facts of all presets that are there, by name."""
    found = {}
    for name in ZOO:
        path = os.path.join(PRESETS, name, "figures.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                found[name] = json.load(file)
    return found


def check(sources, only):
    """Prints the card's figures beside those measured now; whether all are the same."""
    from keras_ssl import runs

    data, same = {}, True
    for name, facts in shipped().items():
        source = sources[facts["data"]]
        if source is None or (only and name != only):
            continue
        if facts["data"] not in data:
            data[facts["data"]] = runs.load_data(source, 32)
        measured, _ = evaluated(runs.load_model(name), data[facts["data"]], ZOO[name])
        for figure, value in facts["figures"].items():
            fine = abs(measured[figure] - value) <= TOLERANCE
            same &= fine
            print(
                f"{name:30} {NAMES[figure]:24} card {100 * value:6.2f}  measured "
                f"{100 * measured[figure]:6.2f}  {'ok' if fine else 'DIFFERS'}",
                flush=True,
            )
    return same


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=list(ZOO))
    parser.add_argument("--cifar10", help="folder or archive of CIFAR-10")
    parser.add_argument("--run", help="folder of the run; default: runs/zoo/<name>")
    parser.add_argument("--check", action="store_true", help="measure what ships again")
    parser.add_argument("--cards", action="store_true", help="write the cards of what ships again")
    parser.add_argument("--table", action="store_true", help="print the table of what ships")
    args = parser.parse_args()
    sources = {"cifar10": args.cifar10, "emoji": "emoji"}
    if args.table:
        print("\n".join(table(shipped(), "presets/")))
        return
    sys.path.insert(0, EXAMPLES)
    if args.cards:
        write_cards()
        return
    if args.check:
        raise SystemExit(not check(sources, args.name))
    if args.name is None:
        parser.error("name a preset, or pass --check or --table")
    source = sources[ZOO[args.name].data]
    if source is None:
        parser.error("--cifar10 must name the folder or archive of CIFAR-10")
    make(args.name, source, args.run or os.path.join("runs", "zoo", args.name))


if __name__ == "__main__":
    main()
