"""Model cards and the table of the presets that ship, from what `train_zoo.py` measured."""

import ast
import json
import os

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples")

DATA = {
    "cifar10": "CIFAR-10 (Krizhevsky 2009), 50,000 training pictures of 32 px, without labels",
    "emoji": "the emoji that ship with keras_ssl (7,451 pictures, 32 px, on white), without labels",
}
NAMES = {"knn": "k-NN", "linear": "linear", "image_R@5": "names to pictures, R@5"}
NAMES["text_R@5"] = "pictures to names, R@5"
CARD = """# {name}

{doc}

| | |
| --- | --- |
| load | `keras_ssl.models.{method}.from_preset("{name}")` |
| network | {network}; encoder of pictures {backbone:,} parameters, with heads and teacher {all:,} |
| data | {data} |
| recipe | `{recipe}` |
| seed | {seed} |
| made by | `KERAS_BACKEND={backend} python tools/train_zoo.py {name}` |
| time | {minutes:.0f} minutes of processor time on one core |
| stored | float16, {megabytes:.1f} MB; loads as float32 |
| licence | Apache-2.0 |

| top-1 accuracy | raw pixels | untrained | this preset |
| --- | --- | --- | --- |
{rows}

The shipped file, after the last epoch, measured by `{command}`. {best} Protocols: {protocols}.
{own}
![log of the run](log.png)
"""


def draw(curves, picture):
    """The log of the run: the loss, and the figures where they were watched."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.2, 2.5), layout="constrained")
    epochs = range(1, len(curves["loss"]) + 1)
    lines = axes.plot(epochs, curves["loss"], color="0.5", label="loss")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if "knn" in curves:
        right = axes.twinx()
        for name in ("knn", "linear"):
            # The log repeats a figure until the next measurement.
            values = curves[name]
            known = [
                (epoch, 100 * value)
                for epoch, value, last in zip(epochs, values, [None, *values[:-1]], strict=True)
                if value is not None and (value != last or epoch == len(values))
            ]
            lines += right.plot(*zip(*known, strict=True), marker=".", label=NAMES[name])
        right.set_ylabel("top-1 accuracy, %")
    axes.legend(handles=lines, fontsize="small", loc="center right")
    figure.savefig(picture, dpi=80, bbox_inches="tight")
    plt.close(figure)


def best(curves):
    """A sentence on the epochs, for the card."""
    if "knn" not in curves:
        return "No other epoch was measured."
    parts = []
    for name in ("knn", "linear"):
        values = curves[name]
        # Before the first measurement of a long run there is none.
        epoch = max(
            (e for e in range(len(values)) if values[e] is not None), key=values.__getitem__
        )
        parts.append(
            f"{NAMES[name]} best {100 * values[epoch]:.1f} % (epoch {epoch + 1}), last "
            f"{100 * values[-1]:.1f} %"
        )
    return (
        f"During the run, on at most 10,000 training and 2,000 test pictures: {'; '.join(parts)}. "
        "The best epoch is chosen on test pictures, and what ships is the last."
    )


def own_figures(own):
    """What the recipe measured itself, on what it held out."""
    if not own:
        return ""
    lines = ["", "| the recipe's own figures | R@1 | R@5 | among |", "| --- | --- | --- | --- |"]
    for what, figures in own.items():
        for task, found in figures.items():
            classes = found.get("classes", "")
            row = " | ".join(percent(found[name]) for name in ("R@1", "R@5"))
            lines.append(f"| {what}: {task} | {row} | {classes} |")
    return "\n".join(lines) + "\n"


def percent(value):
    return "" if value is None else f"{100 * value:.1f} %"


def card(facts, entry):
    """The page of one preset; the recipe's docstring says what the method is."""
    with open(os.path.join(EXAMPLES, f"{entry.recipe}.py"), encoding="utf-8") as file:
        doc = ast.get_docstring(ast.parse(file.read())).splitlines()
    paper = next(i for i, line in enumerate(doc) if line.startswith("Paper:"))
    end = next(i for i, line in enumerate(doc) if line.startswith("Data:"))
    rows = [
        f"| {NAMES[name]} | {percent(facts['pixels'].get(name))} "
        f"| {percent(facts['untrained'][name])} | **{percent(value)}** |"
        for name, value in facts["figures"].items()
    ]
    data = entry.about or DATA[entry.data]
    if "retrieval" in entry.protocols:
        data = data.replace("without labels", "with their names, without the classes")
    return CARD.format(
        **{key: facts[key] for key in ("name", "method", "seed", "minutes", "recipe", "backend")},
        **facts["parameters"],
        doc=" ".join([doc[0], *doc[paper:end]]),
        network=entry.network,
        data=data,
        megabytes=facts["bytes"] / 1e6,
        rows="\n".join(rows),
        command=facts["command"],
        best=best(facts["curves"]),
        own=own_figures(facts.get("own")),
        protocols="; ".join(json.dumps(protocol) for protocol in facts["protocols"]),
    )


def table(presets, prefix=""):
    """All presets as Markdown, of their facts by name; links begin with the prefix."""
    yield "| preset | method | data | parameters | MB | k-NN | linear | untrained | raw pixels |"
    yield "|" + " --- |" * 9
    for name, facts in presets.items():
        pairs = (
            f"{facts[which]['knn'] * 100:.1f} / {facts[which]['linear'] * 100:.1f}"
            for which in ("untrained", "pixels")
        )
        figures = " | ".join(percent(facts["figures"][which]) for which in ("knn", "linear"))
        limit = f" (classifiers of {facts['limit']:,})" if facts.get("limit") else ""
        yield (
            f"| [`{name}`]({prefix}{name}/README.md) | {facts['method']} | {facts['data']}{limit} "
            f"| {facts['parameters']['backbone']:,} | {facts['bytes'] / 1e6:.1f} "
            f"| {figures} | {' | '.join(pairs)} |"
        )


PAGE = """# Presets that ship with keras_ssl

Each folder is a keras-hub preset with the model's full state (heads, teacher, queue, decoder),
stored in float16, and a model card. They are put inside the wheel and load by name, offline:
`keras_ssl.models.MAE.from_preset("mae_vit_nano_cifar10")`.

Top-1 accuracy of frozen features; untrained and raw pixels are k-NN / linear.
`python tools/train_zoo.py --check --cifar10 cifar10.tar.gz` measures all of them again.

{table}

The last epoch of short runs on one core of a CPU: they are there to start from, to test with and to
compare, not to win. Every card says how its preset was made.
"""


def page(presets):
    """`presets/README.md`."""
    return PAGE.format(table="\n".join(table(presets)))
