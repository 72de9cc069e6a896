"""What a pretraining run depends on, as plain data that a YAML file can hold."""

import dataclasses
import os
import pathlib

from keras_ssl.runs.builders import suggestion
from keras_ssl.safe_files import whole_file


@dataclasses.dataclass
class PretrainConfig:
    """Everything that `pretrain` needs to know; saved with the run as `config.yaml`.

    `None` and `"auto"` are filled in by `pretrain`, and the saved configuration holds what was
    taken.

    Args:
        method: `keras_ssl.runs.list_methods()`: `"simclr"`, `"mae"`, `"dino"`, ...
        backbone: `keras_ssl.runs.list_backbones()`: `"vit_nano"`, `"small_resnet"`, ...; or a
            preset (a shipped name, a folder, `hf://...`) to continue from.
        data: as for `keras_ssl.runs.load_data`: `"emoji"`, `"cifar10"`, a folder, an archive,
            `"tfds:<name>"`.
        output: folder of the run.
        epochs: passes over the data.
        batch_size: images in a step.
        image_size: side in pixels of what the model sees; None for 32 with the small sets,
            the side of a folder's pictures (at most 224), and 224 otherwise.
        patch_size: of a vision transformer; None for 4, 8 or 16, by the image size.
        learning_rate: for a batch of 256; None for the paper's.
        precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.
        backend: `"jax"`, `"tensorflow"` or `"torch"`; it is chosen when Keras is imported, so
            here it only records which one ran.
        seed: of everything that is drawn.
        views: a recipe of `keras_ssl.augmentation.RECIPES`; `"auto"` for the paper's (without blur
            for pictures up to 64 pixels).
        options: of the method's class, e.g. `{"temperature": 0.2}`.
        backbone_options: of the backbone's class.
        holdout: share of labelled pictures kept for evaluation where the data has no test part.
        knn_every: k-NN accuracy after every so many epochs; 0 for the last one only.
        knn_images: labelled pictures of the bank; a fifth as many are tested.
        linear_every: linear probe after every so many epochs; 0 for the end only.
        monitor: watch for collapse.
        pictures_every: views, reconstructions or attention after every so many epochs; 0 for none.
        checkpoint_every: save the whole run after every so many epochs.
        tensorboard: write `output/tensorboard`.
        wandb: a project of Weights & Biases, or None.
        report: write `output/report.html`.
        non_finite: when the loss, weights or state become NaN or infinite: `"stop"` and name the
            batch, `"skip"` such batches and count them, or None to go on.
        memory_gb: pictures that need more stay on the disk and are decoded batch by batch.
    """

    method: str = "simclr"
    backbone: str = "vit_nano"
    data: str = "emoji"
    output: str = "run"
    epochs: int = 20
    batch_size: int = 128
    image_size: int | None = None
    patch_size: int | None = None
    learning_rate: float | None = None
    precision: str = "float32"
    backend: str | None = None
    seed: int = 0
    views: str = "auto"
    options: dict = dataclasses.field(default_factory=dict)
    backbone_options: dict = dataclasses.field(default_factory=dict)
    holdout: float = 0.1
    knn_every: int = 1
    knn_images: int = 5000
    linear_every: int = 0
    monitor: bool = True
    pictures_every: int = 10
    checkpoint_every: int = 1
    tensorboard: bool = False
    wandb: str | None = None
    report: bool = True
    non_finite: str | None = "stop"
    memory_gb: float = 4.0

    def __post_init__(self):
        positive = ("epochs", "batch_size", "knn_images", "checkpoint_every", "memory_gb")
        optional = ("image_size", "patch_size", "learning_rate")
        not_negative = ("knn_every", "linear_every", "pictures_every", "seed")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and "None" in str(field.type):
                continue
            if not _fits(value, str(field.type)):
                raise ValueError(
                    f"`{field.name}` must be {field.type}. Received: {field.name}={value!r}"
                )
            if field.name in positive + optional and not value > 0:
                raise ValueError(f"`{field.name}` must be > 0. Received: {field.name}={value}")
            if field.name in not_negative and value < 0:
                raise ValueError(f"`{field.name}` must be >= 0. Received: {field.name}={value}")
        for name, allowed in (
            ("precision", ("float32", "mixed_bfloat16", "mixed_float16")),
            ("backend", (None, "jax", "tensorflow", "torch")),
            ("non_finite", (None, "stop", "skip")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {[a for a in allowed if a]}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        if not 0 < self.holdout < 1:
            raise ValueError(f"`holdout` must lie in (0, 1). Received: holdout={self.holdout}")

    @classmethod
    def from_dict(cls, values: dict) -> "PretrainConfig":
        """The configuration with these values; unknown names are refused, with a suggestion."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(
                    f"The configuration has no {name!r}. {suggestion(name, known)}It has {known}. "
                    f"Received: {name!r}"
                )
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike, **overrides) -> "PretrainConfig":
        """The configuration of a YAML file, with some values replaced.

        `options` and `backbone_options` among the overrides are merged into those of the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not YAML, not a table of names and values, or has unknown names.
        """
        values = read_yaml(path)
        for name, value in overrides.items():
            nested = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if nested else value
        return cls.from_dict(values)

    def to_dict(self) -> dict:
        """Every choice as plain values."""
        return dataclasses.asdict(self)

    def to_yaml(self, path: str | os.PathLike) -> None:
        """Writes every choice to a YAML file."""
        import yaml

        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        with whole_file(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def _fits(value, declared: str) -> bool:
    """Whether a value is of a declared type such as `int | None`; an int passes for a float."""
    kind = declared.split(" |")[0].removeprefix("<class '").removesuffix("'>")
    if isinstance(value, bool):
        return kind == "bool"
    if kind == "float":
        return isinstance(value, (int, float))
    return type(value).__name__ == kind


def read_yaml(path: str | os.PathLike) -> dict:
    """The table in a YAML file, as plain data; nothing in the file is executed."""
    import yaml

    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no such file. Received: {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"This is not YAML: {error}. Received: {path}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"The file must hold `name: value` lines. Received: {path}")
    return values
