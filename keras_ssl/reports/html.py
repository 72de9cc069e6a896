"""A page about a run that opens anywhere: no network, no library, no other file."""

import base64
import html
import io
import json
import math
import os
import pathlib

import numpy as np
from PIL import Image

from keras_ssl import visualization
from keras_ssl.callbacks import LogFile
from keras_ssl.reports.svg import colour, line_chart, scatter
from keras_ssl.runs.config import read_yaml
from keras_ssl.safe_files import whole_file

_THUMBNAIL = 48

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #d9dee6;
  --page: #ffffff; --card: #f5f7fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b5; --line: #38414e;
  --page: #14181f; --card: #1d232c; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1160px; margin: 0 auto; padding: 24px; }
h1 { margin: 0; font-size: 26px; } h2 { margin: 36px 0 10px; font-size: 19px; }
p.note { color: var(--soft); margin: 4px 0 12px; max-width: 75ch; }
.tiles, .row { display: flex; flex-wrap: wrap; gap: 14px; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 16px; min-width: 130px; }
.tile b { display: block; font-size: 22px; } .tile span { color: var(--soft); font-size: 13px; }
svg.plot { background: var(--card); border-radius: 8px; max-width: 100%; height: auto; }
svg text { font-size: 11.5px; fill: var(--soft); }
svg text.title { font-size: 13.5px; font-weight: 600; fill: var(--ink); }
.grid { stroke: var(--line); } .curve { fill: none; stroke-width: 1.8; }
.map circle { opacity: .8; cursor: pointer; } .map circle:hover { opacity: 1; r: 6px; }
figure { margin: 0 0 22px; } figcaption { color: var(--soft); font-size: 13px; }
img { max-width: 100%; border-radius: 4px; }
table { border-collapse: collapse; } td, th { padding: 4px 14px 4px 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; }
pre { background: var(--card); padding: 12px; border-radius: 8px; overflow-x: auto; }
ul.legend { list-style: none; padding: 0; margin: 0; columns: 1; }
ul.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 6px;
  margin-right: 7px; }
#look { position: fixed; display: none; pointer-events: none; background: var(--page);
  border: 1px solid var(--line); border-radius: 6px; padding: 6px; font-size: 12px;
  text-align: center; box-shadow: 0 2px 10px #0005; }
#look div { width: 96px; height: 96px; margin: auto; image-rendering: auto; }
"""

_SCRIPT = """
const map = document.getElementById("map"), look = document.getElementById("look");
const seen = JSON.parse(document.getElementById("seen").textContent);
function show(event) {
  const i = event.target.dataset && event.target.dataset.i;
  if (i === undefined) { look.style.display = "none"; return; }
  const picture = look.firstElementChild, scale = 96 / seen.side;
  const sprite = getComputedStyle(document.getElementById("sprite"));
  picture.style.backgroundImage = sprite.backgroundImage;
  picture.style.backgroundSize = (seen.columns * 96) + "px auto";
  picture.style.backgroundPosition =
    (-96 * (i % seen.columns)) + "px " + (-96 * Math.floor(i / seen.columns)) + "px";
  look.lastElementChild.textContent = seen.names[i];
  look.style.display = "block";
  look.style.left = Math.min(event.clientX + 16, innerWidth - 130) + "px";
  look.style.top = Math.min(event.clientY + 16, innerHeight - 140) + "px";
}
if (map) {
  map.addEventListener("mousemove", show);
  map.addEventListener("mouseleave", () => { look.style.display = "none"; });
}
"""

# Curves in groups that share an axis: (title, {column: label}, shares of 1).
_CHARTS = (
    ("Loss", {"loss": "training", "val_loss": "held out"}, False),
    (
        "Accuracy on labelled pictures",
        {"knn_top1": "k-NN", "linear_top1": "linear probe"},
        True,
    ),
    ("Effective rank", {"effective_rank": "effective rank"}, False),
    (
        "Spread of the features",
        {"feature_std": "std (0: collapsed)", "mean_cosine": "mean cosine"},
        False,
    ),
    ("Alignment and uniformity", {"alignment": "alignment", "uniformity": "uniformity"}, False),
    ("Images a second", {"images_per_second": "images a second"}, False),
)
_HIDDEN = ("epoch", "knn_top5", "linear_top5", "linear_best_top1")


def write_report(
    path: str | os.PathLike,
    title: str,
    log: list[dict],
    figures: dict | None = None,
    config: dict | None = None,
    pictures: list[tuple[str, Image.Image]] = (),
    baselines: dict[str, float] | None = None,
    evaluations: list[dict] = (),
    embedding: dict | None = None,
) -> pathlib.Path:
    """Writes one HTML file about a run, with everything in it.

    Args:
        path: the file.
        title: heading.
        log: rows of `LogFile.read`.
        figures: name to what is shown in the tiles at the top.
        config: the choices of the run.
        pictures: `(caption, picture)`.
        baselines: k-NN accuracies to compare with, in [0, 1].
        evaluations: `EvaluationResult.to_dict()` of each.
        embedding: what the map shows: `points` `(N, 2)` within `[-1, 1]`, `images` uint8
            `(N, height, width, 3)`, `groups` `(N,)` whole numbers, `names` of each point and
            `class_names`.

    Returns:
        The path.

    Example:

    ```python
    log = keras_ssl.callbacks.LogFile.read("run/log.csv")
    keras_ssl.reports.write_report("report.html", "My run", log)
    ```
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    if figures:
        tiles = "".join(
            f'<div class="tile"><b>{html.escape(str(value))}</b>'
            f"<span>{html.escape(name)}</span></div>"
            for name, value in figures.items()
        )
        body.append(f'<div class="tiles" style="margin-top:16px">{tiles}</div>')
    body.append("<h2>Curves</h2>")
    body.append(f'<div class="row">{"".join(_charts(log, baselines or {}))}</div>')
    if embedding is not None:
        body += _map(**embedding)
    if pictures:
        body.append("<h2>Pictures</h2>")
        for caption, picture in pictures:
            body.append(
                f'<figure><img alt="{html.escape(caption, quote=True)}" '
                f'src="{data_uri(picture)}"><figcaption>{html.escape(caption)}</figcaption></figure>'
            )
    if evaluations:
        body.append("<h2>Protocols and figures</h2>")
        body.append(_evaluations(evaluations))
    if config:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td><code>{html.escape(_plain(value))}</code></td></tr>"
            for name, value in config.items()
        )
        body.append(f"<h2>Configuration</h2><table>{rows}</table>")
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title>"
        # The page's own icon: browsers ask a server for one otherwise.
        '<link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + f"\n<script>{_SCRIPT if embedding is not None else ''}</script></body></html>\n"
    )
    path = pathlib.Path(path)
    with whole_file(path) as unfinished:  # backslashes: names of files need not be UTF-8
        unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def run_report(
    folder: str | os.PathLike,
    model=None,
    data=None,
    points: int = 400,
    method: str = "pca",
    say=print,
) -> pathlib.Path:
    """Writes `report.html` into the folder of a run of `keras_ssl.runs.pretrain`.

    Args:
        folder: of the run.
        model: its model; None loads `preset/`.
        data: its `RunData`; None loads it again.
        points: most pictures in the map.
        method: of the map, `"pca"` or `"tsne"`.
        say: called with a line.

    Returns:
        The path of the page.

    Example:

    ```python
    keras_ssl.reports.run_report("runs/photos")
    ```
    """
    from keras_ssl.models.ssl_task import SSLTask
    from keras_ssl.runs.data import load_data

    folder = pathlib.Path(folder)
    config = read_yaml(folder / "config.yaml")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if model is None:
        model = SSLTask.from_preset(str(folder / "preset"))
    if data is None:
        data = load_data(config["data"], config["image_size"], config["holdout"], config["seed"])
    log = LogFile.read(folder / "log.csv")
    pictures = [
        (f"{_CAPTIONS.get(kind, kind)} (after epoch {epoch})", Image.open(path))
        for kind, epoch, path in _newest_pictures(folder / "pictures")
    ]
    shown, labels = (data.train, data.train_labels)
    if data.test is not None:
        shown, labels = data.test, data.test_labels
    rows = np.unique(np.linspace(0, len(shown) - 1, min(points, len(shown))).astype(int))
    images = np.asarray(shown[rows])
    groups = np.zeros(len(rows), int) if labels is None else labels[rows]
    vectors = model.predict(images, batch_size=min(128, len(images)), verbose=0)
    names = [
        data.class_names[g] if data.class_names else f"picture {r}"
        for g, r in zip(groups, rows, strict=True)
    ]
    queries = np.unique(np.linspace(0, len(images) - 1, min(6, len(images))).astype(int))
    pictures.insert(
        0,
        (
            "Nearest neighbours: in each row a picture and those that the model finds most like it",
            _neighbours(images, vectors, queries),
        ),
    )
    figures = {
        "epochs": result["epochs"],
        "last loss": f"{result['loss']:.4g}",
        "parameters of the backbone": f"{result['parameters']:,}",
        "minutes of training": f"{result['seconds'] / 60:.1f}",
        "backend": result["backend"],
    }
    for entry in result["evaluations"]:
        name = _EVALUATIONS.get(entry["protocol"]["protocol"], entry["protocol"]["protocol"])
        figures[name] = f"{100 * entry['metrics']['top1']:.1f} %"
    for name, value in result["baselines"].items():
        figures[f"k-NN, {name}"] = f"{100 * value:.1f} %"
    path = write_report(
        folder / "report.html",
        f"{result['method']} on {os.path.basename(str(config['data']))}",
        log,
        figures=figures,
        config=config,
        pictures=pictures,
        baselines=result["baselines"],
        evaluations=result["evaluations"],
        embedding={
            "points": visualization.embedding_map(vectors, method),
            "images": images,
            "groups": groups,
            "names": names,
            "class_names": data.class_names,
            "method": method,
        },
    )
    say(f"Report: {path}")
    return path


_EVALUATIONS = {"knn": "k-NN accuracy", "linear_probe": "linear accuracy"}
_CAPTIONS = {
    "views": "Pictures and their views, as the model gets them",
    "reconstruction": "Picture, what the model saw of it, and what it painted",
    "attention": "Pictures and the attention of each head",
}


def data_uri(picture: Image.Image, kind: str = "png") -> str:
    """A picture as a data URI, `"png"` or `"jpeg"` (smaller, for photographs)."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def _plain(value):
    return value if isinstance(value, str) else json.dumps(value)


def _charts(log, baselines):
    known = set(_HIDDEN)
    for title, columns, percent in _CHARTS:
        known.update(columns)
        series = {label: _curve(log, name) for name, label in columns.items()}
        levels = {}
        if percent:
            levels = {f"k-NN, {name}": value for name, value in baselines.items()}
            if not any(_finite(points) for points in series.values()):
                continue
        yield line_chart(title, series, percent, levels)
    names = dict.fromkeys(name for row in log for name in row)
    for name in names:
        if name not in known:
            yield line_chart(name.replace("_", " "), {name: _curve(log, name)})


def _curve(log, name):
    return [(row["epoch"], row[name]) for row in log if name in row]


def _finite(points):
    return any(math.isfinite(y) for _, y in points)


def _map(points, images, groups, names, class_names=(), method="pca"):
    side = _THUMBNAIL
    columns = math.ceil(math.sqrt(len(images)))
    sheet = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "white")
    for i, image in enumerate(images):
        thumbnail = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (side * (i % columns), side * (i // columns)))
    sprite = data_uri(sheet, "jpeg")
    seen = json.dumps({"side": side, "columns": columns, "names": [str(n) for n in names]})
    legend = "".join(
        f'<li><i style="background:{colour(i)}"></i>{html.escape(str(name))}</li>'
        for i, name in enumerate(class_names)
    )
    how = {
        "pca": "the two directions of greatest variance of the unit vectors (PCA)",
        "tsne": "t-SNE: neighbourhoods are kept, distances between clusters mean nothing",
    }[method]
    return [
        "<h2>Map of the embeddings</h2>",
        f'<p class="note">{len(images)} pictures that were not trained on where there are such; '
        f"{how}. Move over a point to see its picture.</p>",
        f'<div class="row">{scatter(points, groups)}<ul class="legend">{legend}</ul></div>',
        f"<style>#sprite {{ display: none; background-image: url({sprite}); }}</style>",
        '<div id="sprite"></div><div id="look"><div></div><span></span></div>',
        # "<" in a name could end the element early.
        f'<script type="application/json" id="seen">{seen.replace("<", chr(92) + "u003c")}'
        "</script>",
    ]


def _neighbours(images, vectors, queries, count=8):
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = unit[queries] @ unit.T
    similarity[np.arange(len(queries)), queries] = np.inf  # itself first
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : count + 1]
    zoom = max(1, 64 // images.shape[1])
    return visualization.picture_grid(images[order.reshape(-1)], columns=order.shape[1], zoom=zoom)


def _newest_pictures(folder):
    newest = {}
    for path in sorted(folder.glob("*_*.png")) if folder.is_dir() else ():
        kind, _, epoch = path.stem.rpartition("_")
        newest[kind] = (kind, int(epoch), path)
    return list(newest.values())


def _evaluations(evaluations):
    rows = []
    for entry in evaluations:
        protocol = dict(entry["protocol"])
        name = f"{protocol.pop('protocol')} (version {protocol.pop('version')})"
        metrics = ", ".join(f"{k} {100 * v:.2f} %" for k, v in entry["metrics"].items())
        options = ", ".join(f"{k}={v}" for k, v in protocol.items())
        sizes = ", ".join(f"{v} {k}" for k, v in entry["data"].items())
        cells = (name, metrics, options, sizes)
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th>{c}</th>" for c in ("protocol", "figures", "choices", "data"))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
