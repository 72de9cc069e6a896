"""Linear classification of frozen features, with several learning rates trained side by side."""

import math

import numpy as np
from keras import ops

from keras_ssl.evaluation.protocol import Protocol, chunks
from keras_ssl.training.compilation import compile_function

_EVALUATION_CHUNK = 2048


def _standardized(x, mean, variance, epsilon):
    return (x - mean) * ops.rsqrt(variance + epsilon)


def _train_epoch(state, x, y, order, rates, options, optimizer, standardize):
    """One epoch over the batches `order` (steps, B), with the rates `(steps, L)`.

    Args:
        state: kernel `(D, L, C)`, bias `(L, C)`, their momenta, running mean and variance `(D,)`.
        options: `(weight_decay, momentum, epsilon)`.
    """
    weight_decay, momentum, epsilon = options
    dim, lanes, classes = state[0].shape
    batch = order.shape[1]

    def step(i, state):
        kernel, bias, kernel_momentum, bias_momentum, mean, variance = state
        index = order[i]
        inputs, targets = ops.take(x, index, axis=0), ops.take(y, index, axis=0)
        if standardize == "batch":
            batch_mean, batch_variance = ops.moments(inputs, axes=[0])
            inputs = _standardized(inputs, batch_mean, batch_variance, epsilon)
            unbiased = batch_variance * (batch / max(batch - 1, 1))
            mean = 0.9 * mean + 0.1 * batch_mean
            variance = 0.9 * variance + 0.1 * unbiased
        logits = ops.matmul(inputs, ops.reshape(kernel, (dim, lanes * classes)))
        logits = ops.reshape(logits, (batch, lanes, classes)) + bias
        # The gradient of the mean cross entropy of each lane, in closed form.
        residual = ops.softmax(logits, axis=-1) - ops.one_hot(targets, classes)[:, None, :]
        residual = residual / batch
        kernel_gradient = ops.matmul(
            ops.transpose(inputs), ops.reshape(residual, (batch, lanes * classes))
        )
        kernel_gradient = ops.reshape(kernel_gradient, (dim, lanes, classes))
        kernel_gradient = kernel_gradient + weight_decay * kernel
        bias_gradient = ops.sum(residual, axis=0)
        if optimizer == "lars":  # of each lane's kernel; the bias is a vector and exempt
            kernel_norm = ops.sqrt(ops.sum(ops.square(kernel), axis=(0, 2)))
            gradient_norm = ops.sqrt(ops.sum(ops.square(kernel_gradient), axis=(0, 2)))
            adaptable = ops.logical_and(kernel_norm > 0, gradient_norm > 0)
            trust = 0.001 * kernel_norm / ops.where(adaptable, gradient_norm, 1.0)
            kernel_gradient = kernel_gradient * ops.where(adaptable, trust, 1.0)[:, None]
        rate = rates[i][:, None]
        kernel_momentum = momentum * kernel_momentum + kernel_gradient
        bias_momentum = momentum * bias_momentum + bias_gradient
        kernel = kernel - rate * kernel_momentum
        bias = bias - rate * bias_momentum
        return kernel, bias, kernel_momentum, bias_momentum, mean, variance

    return ops.fori_loop(0, order.shape[0], step, state)


def _ranks(kernel, bias, mean, variance, epsilon, x, y, standardize):
    """Rank of the true class, 0 for the first, for every sample and lane: (N, L)."""
    dim, lanes, classes = kernel.shape
    if standardize is not None:
        x = _standardized(x, mean, variance, epsilon)
    logits = ops.matmul(x, ops.reshape(kernel, (dim, lanes * classes)))
    logits = ops.reshape(logits, (-1, lanes, classes)) + bias
    own = ops.cast(ops.one_hot(y, classes), "bool")[:, None, :]
    true = ops.sum(ops.where(own, logits, 0.0), axis=-1, keepdims=True)
    smaller_label = ops.arange(classes)[None, :] < y[:, None]
    # "not <=" and not ">": a lane that diverged to NaN must lose, not win.
    ahead = ops.logical_not(logits <= true)
    tied = ops.logical_and(logits == true, smaller_label[:, None, :])
    return ops.sum(ops.cast(ops.logical_or(ahead, tied), "int32"), axis=-1)


_compiled_epoch = compile_function(_train_epoch, static=("optimizer", "standardize"))
_compiled_ranks = compile_function(_ranks, static=("standardize",))


class LinearProbeProtocol(Protocol):
    """A linear classifier on frozen features, trained with several learning rates at once.

    Softmax regression by SGD with momentum, or by LARS: linear warm-up, then a cosine to 0, both
    per step. All learning rates share initialisation, batches and statistics, and differ in
    nothing else; they are lanes of one matrix product. The learning rate whose *last* epoch is
    best on held-out train samples is reported: `top1` and `top5` of its last epoch, and `best_top1`
    of its best epoch.

    Every number that is drawn (initial weights, held-out samples, batches) comes from NumPy with
    the given seed, so the same run takes place on every backend.

    Args:
        optimizer: "sgd" or "lars" (trust coefficient 0.001, bias exempt).
        learning_rates: for a batch of 256; multiplied by `batch_size / 256`.
        batch_size: at most the size of the train set. An incomplete last batch is left out, and
            other samples in every epoch.
        epochs: number of epochs.
        warmup_epochs: epochs of linear warm-up; may be fractional.
        momentum: float in [0, 1).
        weight_decay: float >= 0, L2 on the kernel.
        standardize: "dataset": features minus mean over standard deviation of the train set;
            "batch": batch normalisation without affine parameters, as MAE puts before its
            classifier (statistics of the batch in training, running averages in the test);
            None: features as they are.
        validation_fraction: part of the train set that is held out to choose the learning rate.
            0: all is trained on and the choice is made on the test set, as MAE, DINO and DINOv2
            do, which is slightly optimistic.
        seed: int.
        version: of this definition. None: the newest.

    Raises:
        ValueError: for options out of range.

    Example:

    ```python
    result = LinearProbeProtocol().evaluate(model, train=(x_train, y_train), test=(x_test, y_test))
    print(result, result.details["learning_rate"])
    ```

    Reference:
        He et al. (MAE), 2021, table 10; Caron et al. (DINO), 2021, `eval_linear`.
    """

    name = "linear_probe"
    metrics = ("top1", "top5", "best_top1")
    options = (
        "optimizer",
        "learning_rates",
        "batch_size",
        "epochs",
        "warmup_epochs",
        "momentum",
        "weight_decay",
        "standardize",
        "validation_fraction",
        "seed",
    )
    epsilon = 1e-6

    def __init__(
        self,
        optimizer: str = "sgd",
        learning_rates: tuple = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        batch_size: int = 256,
        epochs: int = 50,
        warmup_epochs: float = 5,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        standardize: str | None = "dataset",
        validation_fraction: float = 0.1,
        seed: int = 0,
        version: str | None = None,
    ):
        learning_rates = tuple(float(rate) for rate in np.atleast_1d(learning_rates))
        requirements = {
            "optimizer": (optimizer, optimizer in ("sgd", "lars"), 'must be "sgd" or "lars"'),
            "learning_rates": (
                learning_rates,
                bool(learning_rates) and all(0 < rate < math.inf for rate in learning_rates),
                "must be one or more numbers greater than 0",
            ),
            "batch_size": (batch_size, batch_size >= 1, "must be >= 1"),
            "epochs": (epochs, epochs >= 1, "must be >= 1"),
            "warmup_epochs": (
                warmup_epochs,
                0 <= warmup_epochs <= epochs,
                "must be in [0, epochs]",
            ),
            "momentum": (momentum, 0 <= momentum < 1, "must be in [0, 1)"),
            "weight_decay": (weight_decay, weight_decay >= 0, "must be >= 0"),
            "standardize": (
                standardize,
                standardize in ("dataset", "batch", None),
                'must be "dataset", "batch" or None',
            ),
            "validation_fraction": (
                validation_fraction,
                0 <= validation_fraction < 1,
                "must be in [0, 1)",
            ),
        }
        for argument, (value, met, requirement) in requirements.items():
            if not met:
                raise ValueError(f"`{argument}` {requirement}. Received: {argument}={value!r}")
        self._set(
            version,
            optimizer=optimizer,
            learning_rates=learning_rates,
            batch_size=int(batch_size),
            epochs=int(epochs),
            warmup_epochs=warmup_epochs,
            momentum=float(momentum),
            weight_decay=float(weight_decay),
            standardize=standardize,
            validation_fraction=float(validation_fraction),
            seed=int(seed),
        )

    @classmethod
    def mae(cls, **options) -> "LinearProbeProtocol":
        """MAE's recipe (table 10): LARS, base rate 0.1, batch 16384, 90 epochs, batch norm.

        On its own images MAE also draws random crops; here the features are frozen.
        """
        recipe = {
            "optimizer": "lars",
            "learning_rates": (0.1,),
            "batch_size": 16384,
            "epochs": 90,
            "warmup_epochs": 10,
            "standardize": "batch",
            "validation_fraction": 0.0,
        }
        return cls(**{**recipe, **options})

    @classmethod
    def dino(cls, **options) -> "LinearProbeProtocol":
        """DINO's recipe: SGD, base rate 0.001, batch 1024, 100 epochs, features as they are."""
        recipe = {
            "optimizer": "sgd",
            "learning_rates": (0.001,),
            "batch_size": 1024,
            "epochs": 100,
            "warmup_epochs": 0,
            "standardize": None,
            "validation_fraction": 0.0,
        }
        return cls(**{**recipe, **options})

    def _rates(self, steps, batch):
        """Learning rate of every step and lane: (epochs * steps, L)."""
        step = np.arange(self.epochs * steps)
        total, warmup = self.epochs * steps, self.warmup_epochs * steps
        cosine = (1 + np.cos(np.pi * (step - warmup) / max(total - warmup, 1))) / 2
        factor = np.where(step < warmup, step / max(warmup, 1), cosine)
        rates = factor[:, None] * np.array(self.learning_rates) * batch / 256
        return rates.astype("float32")

    def _begin(self, rng, x, classes):
        """What `_train_epoch` starts from, for train features `(N, D)`: `(state, options)`."""
        dim, lanes = x.shape[1], len(self.learning_rates)
        kernel = np.repeat(rng.normal(0, 0.01, (dim, 1, classes)), lanes, axis=1)
        mean, variance = np.zeros(dim), np.ones(dim)
        if self.standardize == "dataset":
            mean, variance = x.mean(0, dtype="float64"), x.var(0, dtype="float64")
        arrays = [kernel, *np.zeros((1, lanes, classes)), np.zeros_like(kernel)]
        arrays += [*np.zeros((1, lanes, classes)), mean, variance]
        state = tuple(ops.convert_to_tensor(a.astype("float32")) for a in arrays)
        options = tuple(
            ops.convert_to_tensor(np.float32(value))
            for value in (self.weight_decay, self.momentum, self.epsilon)
        )
        return state, options

    def _standardize(self, x):
        """Features `(N, D)` of the train set, minus their mean and over their deviation."""
        mean, variance = x.mean(0, dtype="float64"), x.var(0, dtype="float64")
        return ((x - mean) / np.sqrt(variance + self.epsilon)).astype("float32")

    def _epoch(self, state, x, y, order, rates, options):
        """One epoch over the batches `order` (steps, B); a "dataset" is standardised already."""
        return _compiled_epoch(
            state,
            x,
            y,
            ops.convert_to_tensor(order.astype("int32")),
            ops.convert_to_tensor(rates),
            options,
            optimizer=self.optimizer,
            standardize="batch" if self.standardize == "batch" else None,
        )

    def _run(self, x_train, y_train, x_test, y_test, classes):
        rng = np.random.default_rng(self.seed)
        held_out = int(len(x_train) * self.validation_fraction)
        if held_out:
            order = rng.permutation(len(x_train))
            x_valid, y_valid = x_train[order[:held_out]], y_train[order[:held_out]]
            x_train, y_train = x_train[order[held_out:]], y_train[order[held_out:]]
        batch = min(self.batch_size, len(x_train))
        steps = len(x_train) // batch
        state, options = self._begin(rng, x_train, classes)
        if self.standardize == "dataset":
            x_train = self._standardize(x_train)
        x, y = ops.convert_to_tensor(x_train), ops.convert_to_tensor(y_train)
        rates = self._rates(steps, batch)
        curves = {"test": [], "test_top5": [], "validation": []}
        for epoch in range(self.epochs):
            order = rng.permutation(len(x_train))[: steps * batch].reshape(steps, batch)
            now = rates[epoch * steps : (epoch + 1) * steps]
            state = self._epoch(state, x, y, order, now, options)
            ranks = self._ranks(state, options, x_test, y_test)
            curves["test"].append((ranks < 1).mean(0))
            curves["test_top5"].append((ranks < 5).mean(0))
            if held_out:
                ranks = self._ranks(state, options, x_valid, y_valid)
                curves["validation"].append((ranks < 1).mean(0))
        test, top5 = np.array(curves["test"]), np.array(curves["test_top5"])
        choice = np.array(curves["validation"]) if held_out else test
        lane = int(np.argmax(choice[-1]))  # the smallest of equally good rates
        metrics = {
            "top1": float(test[-1, lane]),
            "top5": float(top5[-1, lane]),
            "best_top1": float(test[:, lane].max()),
        }
        details = {
            "learning_rate": self.learning_rates[lane],
            "best_epoch": int(test[:, lane].argmax()) + 1,
            "top1_by_learning_rate": {
                str(rate): {"last": float(test[-1, i]), "best": float(test[:, i].max())}
                for i, rate in enumerate(self.learning_rates)
            },
            "top1_by_epoch": test[:, lane].tolist(),
        }
        return metrics, details

    def _ranks(self, state, options, x, y):
        kernel, bias, _, _, mean, variance = state
        size = min(_EVALUATION_CHUNK, len(x))
        ranks = []
        for (inputs, length), (targets, _) in zip(chunks(x, size), chunks(y, size), strict=True):
            piece = _compiled_ranks(
                kernel,
                bias,
                mean,
                variance,
                options[2],
                ops.convert_to_tensor(inputs),
                ops.convert_to_tensor(targets),
                standardize=self.standardize,
            )
            ranks.append(np.asarray(ops.convert_to_numpy(piece))[:length])
        return np.concatenate(ranks)
