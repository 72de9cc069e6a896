"""The accuracy table: every recipe on two sets of small pictures, by one command.

    KERAS_BACKEND=tensorflow python benchmarks/accuracy.py --cifar10 cifar10.tar.gz

pretrains each method with the same small residual network (MAE and DINOv2: a small ViT), at most
twenty minutes each on one core, and prints k-NN and linear accuracy beside raw pixels and the
untrained network. A run that has its `result.json` is not repeated, so the command resumes;
`--only` takes some methods, and `--table` prints what is there.
"""

import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLES = os.path.join(os.path.dirname(HERE), "examples")
RECIPES = ("simclr", "moco", "moco_v3", "byol", "simsiam", "barlow_twins", "vicreg", "dino")
TRANSFORMERS = {"mae": "MAE", "dinov2": "DINOv2"}  # they hide patches: no residual network can
RECIPES = (*TRANSFORMERS, *RECIPES)
EPOCHS = {"emoji": 10, "cifar10": 5}


def folder(output, recipe, data):
    return os.path.join(output, f"{recipe}_{data}")


def result_of(output, recipe, data):
    path = os.path.join(folder(output, recipe, data), "result.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def pretrain(output, recipe, data, source):
    """One run in a process of its own, its log beside its result."""
    target = folder(output, recipe, data)
    os.makedirs(target, exist_ok=True)
    command = [sys.executable, os.path.join(EXAMPLES, f"{recipe}.py"), "--data", source]
    command += ["--epochs", str(EPOCHS[data]), "--output", target]
    print(" ".join(command), flush=True)
    with open(os.path.join(target, "output.log"), "w", encoding="utf-8") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if status:
        raise SystemExit(f"{recipe} on {data} failed: see {log.name}")


def percent(value):
    return f"{100 * value:.1f}"


def table(output, sources):
    """Rows of Markdown: one method, its figures on every set."""
    columns = [f"{data} {protocol}" for data in sources for protocol in ("k-NN", "linear")]
    yield "| | " + " | ".join(columns) + " | processor minutes |"
    yield "|" + " --- |" * (len(columns) + 2)
    results = {
        (recipe, data): result
        for recipe in RECIPES
        for data in sources
        if (result := result_of(output, recipe, data))
    }

    def cells(what, recipes):
        """Of baselines, the figures of the first run that has them; they are equal."""
        for data in sources:
            found = [results[r, data] for r in recipes if (r, data) in results]
            for protocol in ("knn", "linear"):
                yield percent(found[0][what][protocol]) if found else "-"

    networks = [recipe for recipe in RECIPES if recipe not in TRANSFORMERS]
    yield "| raw pixels | " + " | ".join(cells("pixels", RECIPES)) + " | |"
    yield "| untrained residual network | " + " | ".join(cells("untrained", networks)) + " | |"
    for recipe, name in TRANSFORMERS.items():
        yield f"| untrained ViT of {name} | {' | '.join(cells('untrained', [recipe]))} | |"
    for recipe in RECIPES:
        found = [results[recipe, data] for data in sources if (recipe, data) in results]
        if found:
            seconds = [result["training_seconds"]["processor"] for result in found]
            minutes = " + ".join(f"{s / 60:.0f}" for s in seconds)
            row = " | ".join(cells("trained", [recipe]))
            yield f"| {found[0]['method']} | {row} | {minutes} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", help="folder or archive of CIFAR-10; without, emoji only")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--output", default="runs/accuracy")
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    args = parser.parse_args()
    sources = {"emoji": "emoji"}
    if args.cifar10 or args.table:
        sources["cifar10"] = args.cifar10
    if not args.table:
        for data, source in sources.items():
            for recipe in args.only:
                if result_of(args.output, recipe, data) is None:
                    pretrain(args.output, recipe, data, source)
    print("\n".join(table(args.output, sources)))


if __name__ == "__main__":
    main()
