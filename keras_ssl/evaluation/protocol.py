"""What all evaluation protocols share: options as a dict, checked data, comparable results."""

import dataclasses
import time

import numpy as np

from keras_ssl.evaluation.few_labels import label_fraction as rows_of_fraction


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Figures of one evaluation together with everything they depend on.

    Attributes:
        protocol: the protocol's `to_dict()`.
        metrics: name to value; accuracies are in [0, 1].
        data: sizes of the data: `train`, `test`, `features`, `classes`; and `label_fraction`,
            `label_seed` where only a share of the train labels was used.
        seconds: duration without the extraction of features.
        details: anything else the protocol reports (curves, the chosen learning rate).
    """

    protocol: dict
    metrics: dict
    data: dict
    seconds: float
    details: dict = dataclasses.field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return self.metrics["top1"]

    @property
    def top5(self) -> float:
        """Top-5 accuracy in [0, 1]."""
        return self.metrics["top5"]

    def comparable_with(self, other: "EvaluationResult") -> bool:
        """Whether both figures come from the same protocol on data of the same size and classes.

        The width of the features may differ: that is what is compared.
        """
        sizes = [{k: v for k, v in r.data.items() if k != "features"} for r in (self, other)]
        return self.protocol == other.protocol and sizes[0] == sizes[1]

    def to_dict(self) -> dict:
        """Everything as plain Python values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "EvaluationResult":
        """The result whose `to_dict()` is given."""
        return cls(**values)

    def __str__(self):
        plain = Protocol._classes.get(self.protocol["protocol"], Protocol).plain_metrics
        figures = "  ".join(
            f"{name} {value:.4g}" if name in plain else f"{name} {100 * value:.2f} %"
            for name, value in self.metrics.items()
        )
        options = ", ".join(
            f"{key}={value}"
            for key, value in self.protocol.items()
            if key not in ("protocol", "version")
        )
        data = ", ".join(f"{value} {key}" for key, value in self.data.items())
        head = f"{self.protocol['protocol']} (version {self.protocol['version']})"
        return f"{head}: {figures}\n  {options}\n  {data}, {self.seconds:.1f} s"


class Protocol:
    """Base of evaluation protocols: an immutable set of choices and a version.

    A subclass names itself in `name`, lists its option names in `options`, the figures it gives in
    `metrics` and the versions of its definition that it can run in `versions` (the last is the
    default), and implements `_run`.
    Two results may be compared when their protocols are equal.
    """

    name = "protocol"
    options: tuple = ()
    metrics: tuple = ("top1", "top5")
    plain_metrics: tuple = ()  # those of them that are not shares of 1
    versions: tuple = ("1",)
    _classes: dict = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Protocol._classes[cls.name] = cls

    def _set(self, version, **values):
        version = self.versions[-1] if version is None else str(version)
        if version not in self.versions:
            raise ValueError(
                f"`version` of the {self.name} protocol must be one of {list(self.versions)}; "
                f"another one needs another release. Received: version={version!r}"
            )
        self.version = version
        for option in self.options:
            setattr(self, option, values[option])

    def to_dict(self) -> dict:
        """Every choice, as plain Python values ready for JSON."""
        values = {option: getattr(self, option) for option in self.options}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"protocol": self.name, "version": self.version, **values}

    @staticmethod
    def from_dict(values: dict) -> "Protocol":
        """The protocol whose `to_dict()` is given, of whichever class.

        Raises:
            ValueError: for the name of an unknown protocol.
        """
        values = dict(values)
        name = values.pop("protocol", None)
        if name not in Protocol._classes:
            raise ValueError(
                f"`protocol` must be one of {sorted(Protocol._classes)}. "
                f"Received: protocol={name!r}"
            )
        return Protocol._classes[name](**values)

    def __eq__(self, other):
        return isinstance(other, Protocol) and self.to_dict() == other.to_dict()

    def __hash__(self):
        return hash(repr(self))

    def __repr__(self):
        options = ", ".join(f"{option}={getattr(self, option)!r}" for option in self.options)
        return f"{type(self).__name__}({options}, version={self.version!r})"

    def evaluate(
        self,
        model=None,
        *,
        train,
        test,
        batch_size: int = 256,
        label_fraction: float | None = None,
        label_seed: int = 0,
    ) -> EvaluationResult:
        """Measures how well frozen features tell the classes of the test set.

        Args:
            model: where the features come from: anything with `predict` (`predict(images)` gives
                `(N, D)`), a function of the images, `"pixels"` for the raw pixels, or None when
                `train` and `test` hold features already.
            train: `(x, y)`: images or features, and integer labels `(N,)` or `(N, 1)`.
            test: `(x, y)` likewise.
            batch_size: batch size of `model.predict`.
            label_fraction: share of the train set to use, in (0, 1], drawn in every class alike
                (`keras_ssl.evaluation.label_fraction`); None for all of it.
            label_seed: int, which samples those are.

        Returns:
            An `EvaluationResult`.

        Raises:
            ValueError: for empty or unequal sets, features that are not finite or not
                two-dimensional, or labels of a wrong shape, dtype or range.
        """
        share = {}
        if label_fraction is not None:
            images, labels = _checked_pair(train, "train")
            rows = rows_of_fraction(labels, label_fraction, label_seed)
            train = (np.asarray(images)[rows], labels[rows])
            share = {"label_fraction": label_fraction, "label_seed": label_seed}
        x_train, y_train = _labelled(train, "train", model, batch_size)
        x_test, y_test = _labelled(test, "test", model, batch_size)
        if x_train.shape[1] != x_test.shape[1]:
            raise ValueError(
                "Features of the train and test sets must have the same width. Received: "
                f"{x_train.shape[1]} and {x_test.shape[1]}"
            )
        classes = int(y_train.max()) + 1
        if y_test.max() >= classes:
            raise ValueError(
                "Labels of the test set must occur in the train set, whose greatest label is "
                f"{classes - 1}. Received: a test label {int(y_test.max())}"
            )
        start = time.perf_counter()
        metrics, details = self._run(x_train, y_train, x_test, y_test, classes)
        return EvaluationResult(
            protocol=self.to_dict(),
            metrics=metrics,
            data={
                "train": len(x_train),
                "test": len(x_test),
                "features": x_train.shape[1],
                "classes": classes,
                **share,
            },
            seconds=time.perf_counter() - start,
            details=details,
        )

    def _run(self, x_train, y_train, x_test, y_test, classes):
        raise NotImplementedError


def pixel_features(images) -> np.ndarray:
    """Raw pixels as features: `(N, H, W, C)` to float32 `(N, H * W * C)`, divided by 255.

    The baseline that any representation has to beat.
    """
    images = np.asarray(images)
    return np.reshape(images, (len(images), -1)).astype("float32") / 255


def extract_features(model, images, batch_size: int = 256) -> np.ndarray:
    """Features of images as a float32 array `(N, D)`.

    Args:
        model: anything with `predict`, a function of the images, `"pixels"`, or None (the images
            are features already).
        images: array of images (or of features).
        batch_size: batch size of `model.predict`.

    Returns:
        A float32 NumPy array `(N, D)`.

    Raises:
        ValueError: when the features are not two-dimensional.
        TypeError: when `model` is none of the above.
    """
    if model is None:
        features = images
    elif isinstance(model, str) and model == "pixels":
        features = pixel_features(images)
    elif hasattr(model, "predict"):
        features = model.predict(images, batch_size=batch_size, verbose=0)
    elif callable(model):
        features = model(images)
    else:
        raise TypeError(
            '`model` must have a `predict` method, be a function of the images, "pixels" or '
            f"None. Received: model={model!r}"
        )
    if isinstance(features, (dict, list, tuple)):
        raise ValueError(
            "Features must be one array (N, D); the model returned several. "
            f"Received: {type(features).__name__} of {len(features)}"
        )
    if hasattr(features, "detach"):  # a PyTorch tensor, perhaps on another device
        features = features.detach().cpu()
    features = np.asarray(features)
    if features.ndim != 2:
        hint = ' Use model="pixels" for raw pixels.' if model is None else " Pool them first."
        raise ValueError(
            f"Features must have the shape (N, D).{hint} Received: shape {features.shape}"
        )
    return features.astype("float32")


def _checked_pair(data, argument):
    """Images or features, and their labels `(N,)`, as they should be."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise ValueError(
            f"`{argument}` must be a pair (x, y) of arrays. Received: {type(data).__name__}"
        )
    x, y = data
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:  # keras.datasets' form
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(
            f"Labels of `{argument}` must have the shape (N,) or (N, 1), not one-hot. "
            f"Received: shape {y.shape}"
        )
    if len(x) == 0 or len(y) == 0:
        raise ValueError(
            f"`{argument}` must not be empty. Received: {len(x)} samples, {len(y)} labels"
        )
    if len(x) != len(y):
        raise ValueError(
            f"`{argument}` must have one label for each sample. Received: {len(x)} samples, "
            f"{len(y)} labels"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"Labels of `{argument}` must be integers. Received: dtype {y.dtype}")
    if y.min() < 0:
        raise ValueError(
            f"Labels of `{argument}` must be >= 0; drop unlabelled samples first. "
            f"Received: a label {int(y.min())}"
        )
    return x, y


def _labelled(data, argument, model, batch_size):
    x, y = _checked_pair(data, argument)
    features = extract_features(model, x, batch_size)
    if len(features) != len(y):
        raise ValueError(
            f"The model must give one feature vector for each sample of `{argument}`. "
            f"Received: {len(features)} for {len(y)} samples"
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"Features of `{argument}` must be finite. Received: NaN or infinity in "
            f"{int((~finite).sum())} of {len(features)} rows, the first is row "
            f"{int(np.argmin(finite))}"
        )
    return features, y.astype("int32")


def chunks(array: np.ndarray, size: int):
    """Yields pieces of `size` rows, the last filled up with zeros, and their true lengths.

    Equal shapes: compiled code is traced once.
    """
    for start in range(0, len(array), size):
        piece = array[start : start + size]
        length = len(piece)
        if length < size:
            piece = np.concatenate(
                [piece, np.zeros((size - length, *array.shape[1:]), array.dtype)]
            )
        yield piece, length
