"""A pretraining run from a configuration: data, model, evaluation, checkpoints, report."""

import dataclasses
import json
import pathlib
import time

import keras
import numpy as np

from keras_ssl import callbacks as cb
from keras_ssl.evaluation import LinearProbeProtocol
from keras_ssl.models import MAE
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.runs.builders import _TWO_VIEWS, SMALL, build_model, default_patch_size, method_name
from keras_ssl.runs.config import PretrainConfig, read_yaml
from keras_ssl.runs.data import RunData, default_image_size, load_data
from keras_ssl.safe_files import whole_file
from keras_ssl.training.data import ArrayBatches

# May differ when a run is resumed: the numbers do not depend on them.
_FREE = ("output", "backend", "tensorboard", "wandb", "report", "memory_gb", "non_finite")


@dataclasses.dataclass
class PretrainResult:
    """What a run gave.

    Attributes:
        model: trained.
        folder: of the run: `config.yaml`, `log.csv`, `result.json`, `preset/`, `report.html`, ...
        figures: what is in `result.json`.
    """

    model: SSLTask
    folder: pathlib.Path
    figures: dict


def pretrain(
    config: PretrainConfig,
    resume: bool = False,
    overwrite: bool = False,
    say=print,
) -> PretrainResult:
    """Pretrains as a configuration says, watches the run, and leaves a folder with everything.

    The folder holds `config.yaml` (every choice), `data.json` (which pictures), `log.csv` (a row an
    epoch), `pictures/`, `checkpoint-<epochs>.keras`, and at the end `preset/`, `result.json` and
    `report.html`. A run that was killed goes on with `resume=True` and ends in the same numbers as
    if it had not been, on the same backend to the last bit.

    Args:
        config: a `PretrainConfig`.
        resume: go on with the run in `config.output`, from its last checkpoint; from the start if
            it has none. What the numbers depend on must be as it was: the choices, and the names
            and sizes of the pictures (`data.json` in the folder; without it any data is taken).
        overwrite: throw away a run that is there.
        say: called with each line of what is going on; `lambda line: None` for silence.

    Returns:
        A `PretrainResult`.

    Raises:
        FileExistsError: the folder holds a run, and neither `resume` nor `overwrite` is given.
        NonFiniteError: the loss or the weights became NaN or infinite (`config.non_finite`).
        ValueError: the configuration does not fit itself, the data, or the run to resume.

    Example:

    ```python
    from keras_ssl.runs import PretrainConfig, pretrain

    config = PretrainConfig(method="simclr", backbone="small_resnet", data="photos", epochs=2,
                            batch_size=8, image_size=32, output="runs/photos")
    result = pretrain(config)
    result.model.predict(images)
    ```
    """
    if resume and overwrite:
        raise ValueError("A run is either resumed or overwritten. Received: resume, overwrite")
    folder = pathlib.Path(config.output)
    config = resolve(config)
    found = _prepare_folder(folder, config, resume, overwrite)

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        if found:
            model = keras.saving.load_model(found[0])
            say(f"Going on after epoch {found[1]} of {config.epochs}.")
        else:
            keras.utils.set_random_seed(config.seed)
            model = build_model(
                config.method,
                config.backbone,
                config.image_size,
                config.patch_size,
                config.views,
                config.seed,
                config.backbone_options,
                **_tuples(config.options),
            )
            model.compile(learning_rate=config.learning_rate, epochs=config.epochs)
        model.watch_steps(config.non_finite)
    finally:
        keras.config.set_dtype_policy(before)
    say(
        f"{type(model).__name__} over {model.backbone.name}, {model.backbone.count_params():,} "
        f"parameters, {config.precision}, on {keras.backend.backend()}"
    )

    data = load_data(config.data, config.image_size, config.holdout, config.seed, config.memory_gb)
    say(repr(data))
    if len(data.train) < config.batch_size:
        raise ValueError(
            f"A batch is larger than the {len(data.train)} pictures to train on. "
            f"Received: batch_size={config.batch_size}"
        )
    if found:
        _check_data(folder / "data.json", data, config)
    if overwrite:
        _throw_away(folder)
    _write_json(folder / "data.json", data.fingerprint)
    config.to_yaml(folder / "config.yaml")  # what cannot begin leaves no run behind, nor ends one
    labelled = data.labelled(config.knn_images, config.seed)
    if labelled is None:
        say("No labels to measure with: watch the loss and the effective rank.")
    knn = None
    if labelled is not None:
        k = max(1, min(20, len(labelled[0][1]) // 2))
        every = config.knn_every or config.epochs
        knn = cb.KNNEvaluation(*labelled, k=k, every=every)
    baselines = _baselines(folder / "baselines.json", knn, model, fresh=not found)
    watchers = _watchers(config, folder, data, labelled, knn, model)
    clock = _Clock(folder / "seconds.json", fresh=not found)
    _fit(model, data, config, found[1] if found else 0, [clock, *watchers])

    model.save_to_preset(folder / "preset")
    log = cb.LogFile.read(folder / "log.csv")
    figures = {
        "method": type(model).__name__,
        "backbone": config.backbone,
        "parameters": model.backbone.count_params(),
        "data": repr(data),
        "backend": keras.backend.backend(),
        "epochs": config.epochs,
        "seconds": clock.seconds,
        "loss": log[-1]["loss"],
        "broken_files": len(data.broken_files),
        "baselines": baselines,
        "evaluations": [],
    }
    if knn is not None:
        protocols = (knn.protocol, LinearProbeProtocol(epochs=20, warmup_epochs=2))
        train, test = ((model.predict(x, batch_size=256, verbose=0), y) for x, y in labelled)
        figures["evaluations"] = [p.evaluate(train=train, test=test).to_dict() for p in protocols]
    _write_json(folder / "result.json", figures)
    if config.report:
        from keras_ssl.reports import run_report

        run_report(folder, model, data, say=say)
    for entry in figures["evaluations"]:
        name, top1 = entry["protocol"]["protocol"], entry["metrics"]["top1"]
        known = ", ".join(f"{k} {100 * v:.1f} %" for k, v in baselines.items())
        say(f"{name}: {100 * top1:.1f} %" + (f" ({known})" if name == "knn" and known else ""))
    return PretrainResult(model, folder, figures)


def resolve(config: PretrainConfig) -> PretrainConfig:
    """The configuration with everything filled in that was left open."""
    values = config.to_dict()
    method = values["method"] = method_name(config.method)
    size = values["image_size"] = config.image_size or default_image_size(config.data)
    if config.patch_size is None and config.backbone.startswith("vit_"):
        values["patch_size"] = default_patch_size(size)
    if config.views == "auto" and size <= SMALL and method in _TWO_VIEWS:
        values["views"] = "simclr_cifar"
    values["backend"] = keras.backend.backend()
    return PretrainConfig.from_dict(values)


def _prepare_folder(folder, config, resume, overwrite):
    """Makes the folder; gives the checkpoint to go on from, or None."""
    saved = folder / "config.yaml"
    if saved.exists() and not (resume or overwrite):
        raise FileExistsError(
            f"{folder} holds a run. Resume it, overwrite it, or choose another output folder. "
            f"Received: output={config.output}"
        )
    if saved.exists() and resume:
        known = PretrainConfig.from_dict(read_yaml(saved)).to_dict()
        other = {
            name: (known[name], value)
            for name, value in config.to_dict().items()
            if name not in _FREE and known[name] != value
        }
        if other:
            listed = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in other.items())
            raise ValueError(
                "A run is resumed with the choices it began with; start a new one for others. "
                f"Received: {listed}"
            )
        return cb.Checkpoint.latest(folder)
    if not overwrite and cb.Checkpoint.latest(folder):
        raise ValueError(
            f"{folder} holds checkpoints of a run whose config.yaml is gone. Put it back, "
            f"overwrite the run, or choose another output folder. Received: output={config.output}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return None


def _throw_away(folder):
    """The run that was here: its configuration first, so that none of it can be resumed."""
    records = ("log.csv", "baselines.json", "seconds.json", "data.json")
    for pattern in ("config.yaml", "checkpoint-*.keras", *records):
        for path in folder.glob(pattern):
            path.unlink()


def _check_data(path, data, config):
    """Refuses to go on with other pictures than the run began with."""
    if not path.exists():
        return
    known, now = json.loads(path.read_text(encoding="utf-8")), data.fingerprint
    if known == now:
        return
    what = f"{known['files']} pictures then, {now['files']} now"
    if known["files"] == now["files"]:
        what = f"{now['files']} pictures then and now, but not of the same names and sizes"
    raise ValueError(
        "The data is not what the run began with, so pictures that are held out now may have been "
        "trained on. Put it back as it was, or start a new run; to go on all the same, remove "
        f"{path}. Received: data={config.data}: {what}"
    )


def _tuples(options):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


class _Clock(keras.callbacks.Callback):
    """The duration of a run in all its sessions, in a file that survives a kill."""

    def __init__(self, path, fresh):
        super().__init__()
        self.path = path
        known = not fresh and path.exists()
        self.seconds = json.loads(path.read_text(encoding="utf-8")) if known else 0.0

    def on_train_begin(self, logs=None):
        self._begin = time.perf_counter() - self.seconds

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self._begin
        _write_json(self.path, self.seconds)

    def on_train_end(self, logs=None):  # with what the other callbacks did after the last epoch
        self.on_epoch_end(None)


def _baselines(path, knn, model, fresh):
    """k-NN accuracy of raw pixels and of the untrained model, measured once."""
    if knn is None:
        return {}
    if not fresh and path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    values = {"raw pixels": knn.evaluate("pixels").top1}
    if fresh:
        values["untrained"] = knn.evaluate(model).top1
        _write_json(path, values)
    return values


def _watchers(config, folder, data, labelled, knn, model):
    """Callbacks in the order in which they need each other."""
    watchers = [] if knn is None else [knn]
    if config.linear_every and labelled is not None:
        watchers.append(cb.LinearProbe(*labelled, every=config.linear_every))
    rows = np.linspace(0, len(data.train) - 1, min(256, len(data.train))).astype(int)
    shown = np.asarray(data.train[np.unique(rows)])
    if config.monitor:
        watchers.append(cb.CollapseMonitor(shown))
    plots = []
    if config.pictures_every:
        pictures, every = folder / "pictures", config.pictures_every
        plots.append(cb.ViewsPlot(shown[:6], pictures))
        if isinstance(model, MAE):
            plots.append(cb.ReconstructionPlot(shown[:12], pictures, every=every))
        elif getattr(model.backbone, "use_class_token", False):
            plots.append(cb.AttentionPlot(shown[:8], pictures, every=every))
    watchers += plots
    watchers.append(cb.Progress(config.batch_size))
    if config.tensorboard:
        images = shown if labelled is None else labelled[1][0][:500]
        names = None
        if labelled is not None:
            names = [data.class_names[i] for i in labelled[1][1][:500]]
        watchers.append(cb.TensorBoardLog(folder / "tensorboard", plots, images, names))
    if config.wandb:
        watchers.append(cb.WandbLog(config.wandb, config.to_dict(), plots))
    watchers.append(cb.LogFile(folder / "log.csv"))
    watchers.append(cb.Checkpoint(folder, every=config.checkpoint_every))
    return watchers


def _fit(model, data: RunData, config, done, watchers):
    if done >= config.epochs:
        return
    # Explicit batches: the same order for pictures in memory and on the disk.
    batches = ArrayBatches(data.train, config.batch_size, seed=config.seed, epoch=done)
    model.fit(
        batches,
        epochs=config.epochs,
        initial_epoch=done,
        shuffle=False,
        verbose=0,
        callbacks=watchers,
    )


def _write_json(path, values):
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(values, indent=1), encoding="utf-8")
