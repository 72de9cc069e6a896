"""Linear segmentation and depth estimation from frozen patch features."""

import time

import numpy as np
from keras import ops

from keras_ssl.augmentation.functional import resize_matrix
from keras_ssl.evaluation.linear_probe import LinearProbeProtocol
from keras_ssl.evaluation.patches import patch_features
from keras_ssl.evaluation.protocol import EvaluationResult, pixel_features
from keras_ssl.training.compilation import compile_function


def _upsampled_logits(x, kernel, bias, mean, variance, epsilon, rows, columns, standardize):
    """Logits of every pixel, `(N, H, W, C)`, from maps `(N, h, w, D)` of features."""
    if standardize is not None:
        x = (x - mean) * ops.rsqrt(variance + epsilon)
    logits = ops.matmul(x, kernel) + bias  # (N, h, w, C)
    _, height, width, classes = logits.shape
    logits = ops.matmul(rows, ops.reshape(logits, (-1, height, width * classes)))
    logits = ops.reshape(logits, (-1, rows.shape[0], width, classes))
    return ops.matmul(columns, logits)


def _classes(values, *inputs, standardize):
    """The class of every pixel, `(N, H, W)`."""
    return ops.cast(ops.argmax(_upsampled_logits(*inputs, standardize), axis=-1), "float32")


def _expectation(values, *inputs, standardize):
    """Mean of the bins' values under the softmax of every pixel, `(N, H, W)`."""
    probabilities = ops.softmax(_upsampled_logits(*inputs, standardize), axis=-1)
    return ops.matmul(probabilities, values[:, None])[..., 0]


class _DenseProbe:
    """A linear layer on patch features, trained on pixels; left of `LinearProbeProtocol`.

    Enlarging the layer's output bilinearly is the same as applying it to enlarged features, since
    the weights of an interpolation sum to one. So a pixel's features are interpolated ones, and
    the classifier of a pixel is `LinearProbeProtocol`'s of an image: its learning rates side by
    side, its optimizers, its schedule.
    """

    options = (*LinearProbeProtocol.options, "pixels_per_image")

    def _set(self, version, **values):
        own = {name: getattr(self, name) for name in self.options if name not in values}
        super()._set(version, **values, **own)

    def evaluate(self, model=None, *, train, test, batch_size: int = 64) -> EvaluationResult:
        """Measures what a linear layer reads from frozen patch features.

        Args:
            model: where the features come from: whatever `patch_features` takes, `"pixels"` for
                the colours of the pixels, a function from images to maps, or `None` when
                `train` and `test` hold maps `(N, rows, columns, D)` already.
            train: `(images, targets)`, targets `(N, height, width)`.
            test: `(images, targets)` likewise.
            batch_size: images at a time.

        Returns:
            An `EvaluationResult`.

        Raises:
            ValueError: for sets that are empty or do not fit, or features that are not finite.
        """
        x_train, x_test = (
            _feature_maps(model, part[0], name, batch_size)
            for part, name in ((train, "train"), (test, "test"))
        )
        if x_train.shape[-1] != x_test.shape[-1]:
            raise ValueError(
                "Features of the train and test sets must have the same width. Received: "
                f"{x_train.shape[-1]} and {x_test.shape[-1]}"
            )
        y_train, y_test = (
            _target_maps(part[1], name, len(x))
            for part, name, x in ((train, "train", x_train), (test, "test", x_test))
        )
        start = time.perf_counter()
        known_train, known_test = self._known(y_train), self._known(y_test)
        if not known_train.any() or not known_test.any():
            raise ValueError("There is no pixel with a known target. Received: none in a set")
        labels, values = self._bins(y_train, known_train, y_test, known_test)
        usable = np.flatnonzero(known_train.any(axis=(1, 2)))
        train = (x_train[usable], y_train[usable], labels[usable])
        metrics, details = self._train(*train, values, (x_test, y_test))
        return EvaluationResult(
            protocol=self.to_dict(),
            metrics=metrics,
            data={
                "train": len(x_train),
                "test": len(x_test),
                "features": x_train.shape[-1],
                "classes": len(values),
            },
            seconds=time.perf_counter() - start,
            details={"grid": list(x_test.shape[1:3]), **details},
        )

    def _train(self, x, y, labels, values, test):
        """Trains on `(x, labels)`, chooses the learning rate, and measures on `test`."""
        rng = np.random.default_rng(self.seed)
        held_out = int(len(x) * self.validation_fraction)
        choice, known = test, self._known(y)
        if held_out:
            order = rng.permutation(len(x))
            out, kept = order[:held_out], order[held_out:]
            choice = (x[out], y[out])
            x, labels, known = x[kept], labels[kept], known[kept]
        state, options = self._begin(rng, x.reshape(-1, x.shape[-1]), len(values))
        maps = x
        if self.standardize == "dataset":
            maps = self._standardize(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        count = len(maps) * self.pixels_per_image
        batch = min(self.batch_size, count)
        steps = count // batch
        rates = self._rates(steps, batch)
        for epoch in range(self.epochs):  # other pixels in every epoch
            pixels, classes = self._draw(rng, maps, labels, known)
            order = rng.permutation(count)[: steps * batch].reshape(steps, batch)
            state = self._epoch(
                state,
                ops.convert_to_tensor(pixels),
                ops.convert_to_tensor(classes),
                order,
                rates[epoch * steps : (epoch + 1) * steps],
                options,
            )
        lanes = [self._measure(state, i, values, *choice) for i in range(len(self.learning_rates))]
        score = [lane[0][self.criterion] for lane in lanes]
        score = np.where(np.isfinite(score), score, -np.inf if self.higher_is_better else np.inf)
        lane = int(np.argmax(score) if self.higher_is_better else np.argmin(score))
        metrics, details = self._measure(state, lane, values, *test) if held_out else lanes[lane]
        by_rate = dict(zip(map(str, self.learning_rates), (float(s) for s in score), strict=True))
        return metrics, {
            "learning_rate": self.learning_rates[lane],
            f"{self.criterion}_by_learning_rate": by_rate,
            **details,
        }

    def _draw(self, rng, maps, labels, known):
        """`pixels_per_image` known pixels of each image: features `(P, D)` and labels `(P,)`."""
        n, p = len(maps), self.pixels_per_image
        # The pixels with the smallest random numbers, unknown ones last; where an image has
        # fewer known ones than are wanted, they are repeated.
        order = np.where(known, rng.random(known.shape), 2.0).reshape(n, -1)
        p_known = np.minimum(known.sum(axis=(1, 2)), p)
        chosen = np.argpartition(order, min(p, order.shape[1]) - 1, axis=1)[:, :p]
        chosen = np.take_along_axis(
            chosen, np.argsort(np.take_along_axis(order, chosen, 1), axis=1), axis=1
        )
        chosen = np.take_along_axis(chosen, np.arange(p)[None] % p_known[:, None], axis=1)
        row, column = np.unravel_index(chosen, known.shape[1:])  # (N, P)
        rows, columns = _resize_matrices(maps.shape[1:3], known.shape[1:])
        weights = rows[row][..., :, None] * columns[column][..., None, :]  # (N, P, h, w)
        pixels = weights.reshape(n, p, -1) @ maps.reshape(n, -1, maps.shape[-1])
        classes = np.take_along_axis(labels.reshape(n, -1), chosen, axis=1)
        return pixels.reshape(n * p, -1).astype("float32"), classes.reshape(-1).astype("int32")

    def _measure(self, state, lane, values, x, y):
        """Metrics of one learning rate's layer on whole images."""
        kernel, bias, _, _, mean, variance = state
        rows, columns = _resize_matrices(x.shape[1:3], y.shape[1:])
        inputs = [kernel[:, lane], bias[lane], mean, variance, np.float32(self.epsilon)]
        inputs = [ops.convert_to_tensor(a) for a in (*inputs, rows, columns)]
        # At most 32 million logits at a time.
        size = max(1, min(len(x), 2**25 // (y[0].size * len(values))))
        predictions = []
        for start in range(0, len(x), size):
            piece = np.resize(x[start : start + size], (size, *x.shape[1:]))  # one shape: one trace
            outputs = self._compiled(
                ops.convert_to_tensor(values.astype("float32")),
                ops.convert_to_tensor(piece),
                *inputs,
                standardize=self.standardize,
            )
            predictions.append(np.asarray(ops.convert_to_numpy(outputs)))
        return self._score(np.concatenate(predictions)[: len(x)], y, self._known(y))


class LinearSegmentationProtocol(_DenseProbe, LinearProbeProtocol):
    """A linear classifier of pixels on frozen patch features: mean intersection over union.

    `logits = upsample(W f + b)`, bilinear from the patches to the size of the labels. Training
    minimises the cross entropy of random pixels, other ones in every epoch; see
    `LinearProbeProtocol` for the learning rates that are trained side by side (the one with the
    best mean IoU on held-out train images is reported).

    Args:
        optimizer: this and the options of the same names as in `LinearProbeProtocol`; a batch is
            of pixels.
        pixels_per_image: pixels drawn of each image in each epoch.
        ignore_label: pixels with this label do not count.

    Metrics: `miou`, the mean over the classes that occur in the test labels or predictions of
    `|prediction and label| / |prediction or label|`, counted over all pixels; and
    `pixel_accuracy`. Details: `iou_by_class`, `learning_rate`.

    Example:

    ```python
    protocol = keras_ssl.evaluation.LinearSegmentationProtocol(epochs=10)
    result = protocol.evaluate(model, train=(images, labels), test=(test_images, test_labels))
    print(result.metrics["miou"])
    ```

    Reference:
        Oquab et al. (DINOv2), 2023, section 7.4, "linear".
    """

    name = "linear_segmentation"
    options = (*_DenseProbe.options, "ignore_label")
    metrics = ("miou", "pixel_accuracy")
    criterion, higher_is_better = "miou", True
    _compiled = staticmethod(compile_function(_classes, static=("standardize",)))

    def __init__(
        self,
        optimizer: str = "sgd",
        learning_rates: tuple = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        batch_size: int = 1024,
        epochs: int = 20,
        warmup_epochs: float = 1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        standardize: str | None = "dataset",
        validation_fraction: float = 0.1,
        seed: int = 0,
        pixels_per_image: int = 64,
        ignore_label: int = 255,
        version: str | None = None,
    ):
        self.pixels_per_image = _positive("pixels_per_image", pixels_per_image)
        self.ignore_label = int(ignore_label)
        super().__init__(
            optimizer,
            learning_rates,
            batch_size,
            epochs,
            warmup_epochs,
            momentum,
            weight_decay,
            standardize,
            validation_fraction,
            seed,
            version,
        )

    def _known(self, labels):
        return labels != self.ignore_label

    def _bins(self, y_train, known_train, y_test, known_test):
        for name, y, known in (("train", y_train, known_train), ("test", y_test, known_test)):
            if not np.issubdtype(y.dtype, np.integer) or y[known].min() < 0:
                raise ValueError(
                    f"Labels of `{name}` must be integers >= 0. Received: dtype {y.dtype}, "
                    f"smallest {y[known].min()}"
                )
        classes = int(y_train[known_train].max()) + 1
        if y_test[known_test].max() >= classes:
            raise ValueError(
                "Labels of the test set must occur in the train set, whose greatest label is "
                f"{classes - 1}. Received: a test label {int(y_test[known_test].max())}"
            )
        return np.where(known_train, y_train, 0), np.arange(classes)

    def _score(self, predictions, labels, known):
        predictions, labels = predictions[known].astype("int64"), labels[known].astype("int64")
        classes = int(max(predictions.max(), labels.max())) + 1
        counts = np.bincount(labels * classes + predictions, minlength=classes**2)
        counts = counts.reshape(classes, classes).astype("float64")
        hits = np.diag(counts)
        union = counts.sum(0) + counts.sum(1) - hits
        iou = np.divide(hits, union, out=np.full(classes, np.nan), where=union > 0)
        metrics = {
            "miou": float(np.nanmean(iou)),
            "pixel_accuracy": float(hits.sum() / counts.sum()),
        }
        by_class = {str(i): float(v) for i, v in enumerate(iou) if not np.isnan(v)}
        return metrics, {"iou_by_class": by_class}


class LinearDepthProtocol(_DenseProbe, LinearProbeProtocol):
    """A linear layer that reads depth from frozen patch features, as a mean over bins.

    The range of depths is cut into `bins` equal parts with the centres `c[k]`. A linear layer on
    the features, enlarged bilinearly, is trained to classify each pixel's bin, and the depth is
    `sum_k softmax(logits)[k] c[k]`. The rest is as in `LinearSegmentationProtocol`; the learning
    rate with the smallest error on held-out train images is reported.

    Args:
        optimizer: this and the options of the same names as in `LinearProbeProtocol`; a batch is
            of pixels.
        pixels_per_image: pixels drawn of each image in each epoch.
        bins: number of bins; 256 in the paper.
        min_depth: smallest depth of the bins, in the data's unit; the train set's when `None`.
        max_depth: greatest depth of the bins; the train set's when `None`.

    Depths are greater than 0; a pixel with 0 or less, or that is not finite, has no known depth
    and does not count. Metrics: `rmse`, the root of the mean squared error over all pixels in the
    data's unit; `delta1`, the share of pixels with
    `max(predicted / true, true / predicted) < 1.25`; `abs_rel`, the mean of `|error| / true`.

    Example:

    ```python
    protocol = keras_ssl.evaluation.LinearDepthProtocol(bins=64, epochs=10)
    result = protocol.evaluate(model, train=(images, depths), test=(test_images, test_depths))
    print(result.metrics["rmse"], result.metrics["delta1"])
    ```

    Reference:
        Oquab et al. (DINOv2), 2023, section 7.4 ("lin. 1", there with a linear normalisation of
        the bins in place of the softmax); Bhat et al., AdaBins, 2021.
    """

    name = "linear_depth"
    options = (*_DenseProbe.options, "bins", "min_depth", "max_depth")
    metrics = ("rmse", "delta1", "abs_rel")
    plain_metrics = ("rmse",)
    criterion, higher_is_better = "rmse", False
    _compiled = staticmethod(compile_function(_expectation, static=("standardize",)))

    def __init__(
        self,
        optimizer: str = "sgd",
        learning_rates: tuple = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        batch_size: int = 1024,
        epochs: int = 20,
        warmup_epochs: float = 1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        standardize: str | None = "dataset",
        validation_fraction: float = 0.1,
        seed: int = 0,
        pixels_per_image: int = 64,
        bins: int = 256,
        min_depth: float | None = None,
        max_depth: float | None = None,
        version: str | None = None,
    ):
        self.pixels_per_image = _positive("pixels_per_image", pixels_per_image)
        self.bins = _positive("bins", bins)
        low, high = min_depth or 0.0, np.inf if max_depth is None else max_depth
        if not 0 <= low < high:
            raise ValueError(
                "Depths must be 0 <= min_depth < max_depth. "
                f"Received: min_depth={min_depth}, max_depth={max_depth}"
            )
        self.min_depth, self.max_depth = min_depth, max_depth
        super().__init__(
            optimizer,
            learning_rates,
            batch_size,
            epochs,
            warmup_epochs,
            momentum,
            weight_decay,
            standardize,
            validation_fraction,
            seed,
            version,
        )

    def _known(self, depths):
        return np.isfinite(depths) & (depths > 0)

    def _bins(self, y_train, known_train, y_test, known_test):
        low = y_train[known_train].min() if self.min_depth is None else self.min_depth
        high = y_train[known_train].max() if self.max_depth is None else self.max_depth
        width = max(high - low, 1e-6) / self.bins
        depths = np.where(known_train, y_train, low)
        labels = np.clip((depths - low) / width, 0, self.bins - 1).astype("int32")
        return labels, low + (np.arange(self.bins) + 0.5) * width

    def _score(self, predictions, depths, known):
        predicted, true = predictions[known].astype("float64"), depths[known].astype("float64")
        ratio = np.maximum(predicted / true, true / np.maximum(predicted, 1e-12))
        return {
            "rmse": float(np.sqrt(np.mean((predicted - true) ** 2))),
            "delta1": float(np.mean(ratio < 1.25)),
            "abs_rel": float(np.mean(np.abs(predicted - true) / true)),
        }, {}


def _positive(name, value):
    if not (isinstance(value, (int, np.integer)) and value >= 1):
        raise ValueError(f"`{name}` must be an int >= 1. Received: {name}={value!r}")
    return int(value)


def _resize_matrices(grid, size):
    """Bilinear interpolation of a grid as a matrix for the rows and one for the columns."""
    return [
        resize_matrix(0, old, old, new, "bilinear", antialias=False)
        for old, new in zip(grid, size, strict=True)
    ]


def _feature_maps(model, images, name, batch_size):
    if model is None:
        maps = np.asarray(images, "float32")
    elif isinstance(model, str) and model == "pixels":
        images = np.asarray(images)
        maps = pixel_features(images).reshape(images.shape)
    elif hasattr(model, "predict"):
        maps = patch_features(model, images, batch_size=batch_size)
    elif callable(model):
        maps = np.asarray(ops.convert_to_numpy(model(images)), "float32")
    else:
        raise TypeError(
            '`model` must be a model, a function from images to maps, "pixels" or None. '
            f"Received: model={model!r}"
        )
    if maps.ndim != 4 or not len(maps):
        raise ValueError(
            f"Features of `{name}` must be maps (N, rows, columns, D), at least one. "
            f"Received: shape {maps.shape}"
        )
    if not np.isfinite(maps).all():
        raise ValueError(f"Features of `{name}` must be finite. Received: NaN or infinity")
    return maps


def _target_maps(targets, name, count):
    targets = np.asarray(targets)
    if targets.ndim != 3 or len(targets) != count:
        raise ValueError(
            f"`{name}` needs one target for each pixel, (N, height, width). "
            f"Received: shape {targets.shape} for {count} images"
        )
    return targets
