"""The commands of `keras-ssl`: each a thin shell over a function of the package."""

import dataclasses
import json
import pathlib
import sys
from typing import Annotated

import typer

from keras_ssl_cli.shell import (
    Settings,
    choose_backend,
    friendly,
    installed,
    say,
    settings_of,
    short,
    table,
)

app = typer.Typer(
    name="keras-ssl",
    help="Self-supervised vision: pretrain on your own pictures, evaluate, embed, search.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Backend = Annotated[
    str | None,
    typer.Option(help="jax, tensorflow or torch; KERAS_BACKEND or Keras' own setting otherwise."),
]
Preset = Annotated[
    str, typer.Argument(help="A shipped preset, a preset's or run's folder, or hf://user/name.")
]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
):
    Settings.debug = debug
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files may be no text
            stream.reconfigure(errors="backslashreplace")


@app.command()
@friendly
def pretrain(
    method: Annotated[
        str | None, typer.Argument(help="simclr, mae, dino, byol, ...; `methods` lists them.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A folder or archive of pictures, emoji, cifar10, or tfds:NAME."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder of the run.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="vit_nano, small_resnet, ..., or a preset to go on from.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures in a step.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="Of a vision transformer.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="For a batch of 256; the paper's otherwise.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, mixed_bfloat16 or mixed_float16.")
    ] = None,
    views: Annotated[str | None, typer.Option(help="A recipe of augmentation.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    knn_every: Annotated[
        int | None, typer.Option(help="k-NN accuracy after every so many epochs.")
    ] = None,
    linear_every: Annotated[
        int | None, typer.Option(help="Linear probe after every so many epochs.")
    ] = None,
    pictures_every: Annotated[
        int | None, typer.Option(help="Pictures after every so many epochs.")
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Write for TensorBoard.")
    ] = None,
    wandb: Annotated[str | None, typer.Option(help="A project of Weights & Biases.")] = None,
    report: Annotated[
        bool | None, typer.Option("--report/--no-report", help="Write report.html at the end.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An option of the method (temperature=0.2), of the backbone "
            "(backbone.width=16), or any name of the configuration.",
        ),
    ] = None,
    config: Annotated[
        pathlib.Path | None, typer.Option(help="A YAML file; options given here win.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the output folder.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away a run that is there.")
    ] = False,
    backend: Backend = None,
):
    """Pretrain on pictures without labels.

    Examples:

        keras-ssl pretrain simclr --data photos --backbone small_resnet --image-size 64 -o runs/a

        keras-ssl pretrain mae --data cifar10.tar.gz --image-size 32 --set mask_ratio=0.6 -o runs/b

        keras-ssl pretrain -o runs/a --resume            # after a kill: the same numbers

        keras-ssl pretrain --config runs/a/config.yaml --epochs 200 -o runs/c
    """
    given = dict(
        method=method,
        data=data,
        output=output,
        backbone=backbone,
        epochs=epochs,
        batch_size=batch_size,
        image_size=image_size,
        patch_size=patch_size,
        learning_rate=learning_rate,
        precision=precision,
        views=views,
        seed=seed,
        knn_every=knn_every,
        linear_every=linear_every,
        pictures_every=pictures_every,
        tensorboard=tensorboard,
        wandb=wandb,
        report=report,
        backend=backend,
    )
    given = {name: value for name, value in given.items() if value is not None}
    saved = pathlib.Path(output or "run") / "config.yaml"
    if resume and config is None and saved.exists():
        config = saved
    choose_backend(backend or _backend_in(config))

    from keras_ssl.runs import PretrainConfig
    from keras_ssl.runs import pretrain as run

    names = {field.name for field in dataclasses.fields(PretrainConfig)}
    for name, value in settings_of(set_ or []).items():
        if name.startswith("backbone."):
            given.setdefault("backbone_options", {})[name.removeprefix("backbone.")] = value
        elif name in names:
            given[name] = value
        else:
            given.setdefault("options", {})[name] = value
    if config is not None:
        settings = PretrainConfig.from_yaml(config, **given)
    else:
        settings = PretrainConfig.from_dict(given)
    try:
        result = run(settings, resume=resume, overwrite=overwrite, say=say)
    except KeyboardInterrupt:
        say(f"\nStopped. `keras-ssl pretrain -o {settings.output} --resume` goes on.")
        raise typer.Exit(130) from None
    except FileExistsError:
        raise FileExistsError(
            f"{settings.output} holds a run: go on with it by --resume, throw it away by "
            "--overwrite, or choose another folder with --output."
        ) from None
    say(f"The run is in {result.folder}; its preset in {result.folder / 'preset'}.")


def _backend_in(config):
    """The backend that a configuration asks for, read before Keras is imported."""
    if config is None or not config.is_file():
        return None
    import yaml

    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None  # reported when the file is read in earnest
    return values.get("backend") if isinstance(values, dict) else None


@app.command()
@friendly
def evaluate(
    preset: Preset,
    data: Annotated[str, typer.Option(help="With labels: a folder, an archive, emoji, ...")],
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            "-p",
            help="knn, linear, zero-shot, retrieval, segmentation; again for more.",
        ),
    ] = None,
    k: Annotated[int, typer.Option(help="Neighbours of k-NN.")] = 20,
    linear_epochs: Annotated[int, typer.Option(help="Of the linear probe.")] = 50,
    templates: Annotated[
        str, typer.Option(help="Of zero-shot: name, simple, imagenet_7 or imagenet_80.")
    ] = "simple",
    label_fraction: Annotated[
        float | None, typer.Option(help="Share of the labels to use: 0.01, 0.1; stratified.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Most pictures to learn on; a fifth to measure on.")
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Measure raw pixels as well, to compare.")
    ] = False,
    json_file: Annotated[
        pathlib.Path | None, typer.Option("--json", help="Write figures and protocols here.")
    ] = None,
    backend: Backend = None,
):
    """Measure a preset: k-NN, linear probe, zero-shot, retrieval, attention against masks.

    Examples:

        keras-ssl evaluate runs/a --data photos

        keras-ssl evaluate mae_vit_nano_cifar10 --data cifar10.tar.gz -p linear --label-fraction 0.1

        keras-ssl evaluate runs/a --data emoji -p knn -p segmentation --json figures.json
    """
    choose_backend(backend)
    from keras_ssl import runs

    protocols = protocol or ["knn", "linear"]
    model = runs.load_model(preset)
    loaded = runs.load_data(data, runs.model_image_size(model)[0])
    say(repr(loaded))
    options = dict(
        k=k,
        linear_epochs=linear_epochs,
        templates=templates,
        label_fraction=label_fraction,
        limit=limit,
    )
    results = {preset: runs.evaluate(model, loaded, protocols, **options)}
    if pixels:
        plain = [name for name in protocols if name in ("knn", "linear")]
        results["raw pixels"] = runs.evaluate("pixels", loaded, plain, **options)
    rows = [
        [
            name,
            r.protocol["protocol"],
            ", ".join(f"{metric} {100 * value:.2f} %" for metric, value in r.metrics.items()),
        ]
        for name, found in results.items()
        for r in found
    ]
    table(loaded.name, ["features", "protocol", "figures"], rows)
    for result in results[preset]:
        say(str(result))
    if json_file is not None:
        values = {name: [r.to_dict() for r in found] for name, found in results.items()}
        json_file.write_text(json.dumps(values, indent=1), encoding="utf-8")
        say(f"Written: {json_file}")


@app.command()
@friendly
def embed(
    preset: Preset,
    source: Annotated[str, typer.Argument(help="A folder or archive of pictures.")],
    output: Annotated[pathlib.Path, typer.Argument(help="A .npz or .parquet file.")],
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 128,
    backend: Backend = None,
):
    """Turn every picture below a folder into a vector.

    Example:

        keras-ssl embed runs/a photos photos.npz
    """
    if output.suffix not in (".npz", ".parquet"):
        raise ValueError(f"The output must end in .npz or .parquet. Received: {output}")
    choose_backend(backend)
    from keras_ssl import runs

    found = runs.embed_folder(runs.load_model(preset), source, batch_size, preset, say)
    found.save(output)
    say(f"{len(found)} vectors of {found.vectors.shape[1]} numbers: {output}")


@app.command()
@friendly
def search(
    index: Annotated[pathlib.Path, typer.Argument(help="A file that `embed` wrote.")],
    picture: Annotated[
        pathlib.Path | None, typer.Option(help="Find pictures like this one.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Find pictures of this; needs an image-text model.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many.")] = 5,
    preset: Annotated[
        str | None, typer.Option(help="The model, where it is no longer where it was.")
    ] = None,
    grid: Annotated[
        pathlib.Path | None, typer.Option(help="Write what was found as a picture, .png.")
    ] = None,
    backend: Backend = None,
):
    """Find the pictures most like a picture, or a text.

    Examples:

        keras-ssl search photos.npz --picture cat.jpg --grid found.png

        keras-ssl search photos.npz --text "a cat on a sofa"
    """
    if (picture is None) == (text is None):
        raise ValueError("Give either --picture or --text.")
    choose_backend(backend)
    from keras_ssl import runs

    found = runs.Embeddings.load(index)
    model = runs.load_model(preset or found.model)
    query = runs.embed_text(model, text) if text else runs.embed_pictures(model, [picture])
    rows, similarity = found.search(query, count)
    table(
        f"like {text!r}" if text else f"like {picture}",
        ["similarity", "file"],
        [
            [f"{s:.3f}", short(found.path(row))]
            for row, s in zip(rows[0], similarity[0], strict=True)
        ],
    )
    if grid is not None:
        runs.result_grid(found, rows[0], picture).save(grid)
        say(f"Written: {grid}")


@app.command()
@friendly
def finetune(
    preset: Preset,
    data: Annotated[str, typer.Option(help="With labels: a folder for each class, ...")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the run.")],
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Pictures in a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of the last layer.")] = 1e-3,
    layer_decay: Annotated[float, typer.Option(help="Factor per layer downwards.")] = 0.75,
    label_fraction: Annotated[
        float | None, typer.Option(help="Share of the labels to use: 0.01, 0.1; stratified.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="New weights: what is pretraining worth?")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    backend: Backend = None,
):
    """Train a classifier from the encoder of a preset.

    Examples:

        keras-ssl finetune runs/b --data photos -o runs/classifier

        keras-ssl finetune runs/b --data photos --label-fraction 0.1 -o runs/few
    """
    choose_backend(backend)
    from keras_ssl import runs

    folder = pathlib.Path(preset) / "preset"
    result = runs.finetune(
        str(folder) if folder.is_dir() else preset,
        data,
        output,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        layer_decay=layer_decay,
        label_fraction=label_fraction,
        from_scratch=from_scratch,
        seed=seed,
        say=say,
    )
    say(f"The classifier is in {result.folder / 'preset'}.")


@app.command()
@friendly
def report(
    run: Annotated[pathlib.Path, typer.Argument(help="Folder of a run.")],
    map_: Annotated[str, typer.Option("--map", help="pca or tsne (needs scikit-learn).")] = "pca",
    backend: Backend = None,
):
    """Write the report of a finished run again.

    Example:

        keras-ssl report runs/a --map tsne
    """
    if not (run / "result.json").exists():
        raise FileNotFoundError(f"This is no folder of a finished run. Received: {run}")
    choose_backend(backend)
    from keras_ssl.reports import run_report

    run_report(run, method=map_, say=say)


@app.command()
@friendly
def convert(
    source: Annotated[
        str, typer.Argument(help="A folder in the transformers layout, a weight file, or a preset.")
    ],
    output: Annotated[str, typer.Argument(help="Folder to write.")],
    layout: Annotated[
        str | None,
        typer.Option(help="Of a weight file: mae, timm_vit, dino, moco, ...; else recognised."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Whose model a weight file holds, where you build it.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Of a weight file; else found by its shapes.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Of a weight file.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="Of a weight file.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the method, or of the backbone: backbone.NAME=.."),
    ] = None,
    to: Annotated[str, typer.Option(help="preset, or transformers.")] = "preset",
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Refuse missing and unexpected tensors.")
    ] = True,
    backend: Backend = None,
):
    """Turn released weights into a preset, or a preset into the transformers layout.

    Examples:

        keras-ssl convert dinov2-small presets/dinov2_small

        keras-ssl convert vit-s-300ep.pth.tar presets/moco_v3_small

        keras-ssl convert vit.npz presets/vit --set backbone.num_heads=5

        keras-ssl convert runs/b exported --to transformers
    """
    choose_backend(backend)
    from keras_ssl import runs

    options, backbone_options = {}, {}
    for name, value in settings_of(set_ or []).items():
        inner = name.removeprefix("backbone.")
        (options if inner == name else backbone_options)[inner] = value
    runs.convert(
        source,
        output,
        layout,
        method,
        backbone,
        image_size,
        patch_size,
        options,
        backbone_options,
        to,
        strict,
        say,
    )


@app.command()
@friendly
def presets(
    released: Annotated[
        bool, typer.Option("--released", help="Weights that others released, fetched when used.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    backend: Backend = None,
):
    """List presets by name: those that ship with keras_ssl, and released weights.

    Examples:

        keras-ssl presets

        keras-ssl presets --released
    """
    choose_backend(backend)
    import keras_ssl

    found = keras_ssl.list_presets(shipped=not released, released=released)
    if as_json:
        say(json.dumps(found, indent=1))
    elif released:
        columns = ["method", "architecture", "image_size", "licence", "figure", "source"]
        rows = [[name, *(about.get(c) or "" for c in columns)] for name, about in found.items()]
        table("Released weights", ["name", *columns], rows)
    else:
        rows = []
        for name, about in found.items():
            row = [name, about["method"]]
            if "figures" in about:  # of one that was just made there are none
                row += [about["data"], f"{about['parameters']['backbone']:,}"]
                row += [f"{about['bytes'] / 1e6:.1f} MB"]
                row += [f"{100 * about['figures'][kind]:.1f} %" for kind in ("knn", "linear")]
            rows.append(row + [""] * (7 - len(row)))
        columns = ["name", "method", "data", "parameters", "size", "k-NN", "linear"]
        table("Shipped presets", columns, rows)


@app.command()
@friendly
def methods(backend: Backend = None):
    """List methods and backbones."""
    choose_backend(backend)
    from keras_ssl import runs

    rows = [
        [name, cls.__name__, (cls.__doc__ or "").strip().splitlines()[0]]
        for name, cls in runs.list_methods().items()
    ]
    table("Methods", ["name", "class", "what it does"], rows)
    say("Backbones: " + ", ".join(runs.list_backbones()) + ", or any preset.")


@app.command()
@friendly
def doctor(backend: Backend = None):
    """Say which backend and devices there are, versions, and what is missing."""
    from keras_ssl_cli.doctor import examine

    raise typer.Exit(0 if examine(backend, table, say, installed) else 1)


def main() -> None:
    """Entry point of the command."""
    app()
