"""Evaluation protocols while a model trains."""

import time

from keras_ssl.callbacks.schedule import ScheduledCallback
from keras_ssl.evaluation.protocol import EvaluationResult, Protocol


class OnlineEvaluation(ScheduledCallback):
    """Runs a protocol at chosen epochs on labelled data apart from the training stream.

    The labelled sets are only read by the protocol, on frozen features of `model.predict`: no
    gradient, no state and no random number of the run is touched, so a run with the callback ends
    in the same weights as one without it.

    The figures go into the epoch's logs as `<name>_<metric>`, for example `knn_top1`, where
    `History`, `CSVLogger`, `TensorBoard` and the progress bar find them. Every epoch logs the same
    keys: between evaluations the last figures, before the first one NaN. The last epoch is always
    evaluated.

    Args:
        protocol: a `keras_ssl.evaluation.Protocol`.
        train: `(images, labels)` as for `protocol.evaluate`: what the classifier learns from.
        test: `(images, labels)`: what it is measured on.
        name: prefix of the logged names.
        every: evaluate after every so many epochs; or
        epochs: the epochs to evaluate after, counted from 1, instead of `every`.
        label_fraction: share of the train labels to use, in (0, 1], as in `protocol.evaluate`.
        batch_size: of `model.predict`.

    Attributes:
        results: `{epoch: EvaluationResult}`, epochs counted from 1.
        seconds: time spent so far.

    Raises:
        ValueError: for data that is not two pairs of equal length, or epochs out of range.

    Example:

    ```python
    probe = OnlineEvaluation(KNNProtocol(k=5), train=(x, y), test=(x_test, y_test), name="knn5")
    model.fit(unlabelled, epochs=100, callbacks=[probe])
    ```
    """

    def __init__(
        self,
        protocol: Protocol,
        train,
        test,
        name: str | None = None,
        every: int = 1,
        epochs=None,
        label_fraction: float | None = None,
        batch_size: int = 256,
    ):
        super().__init__(every, epochs)
        for argument, pair in (("train", train), ("test", test)):
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
                raise ValueError(
                    f"`{argument}` must be a pair (images, labels). "
                    f"Received: {argument} of type {type(pair).__name__}"
                )
            if len(pair[0]) != len(pair[1]) or not len(pair[0]):
                raise ValueError(
                    f"`{argument}` must have one label for each image. Received: "
                    f"{len(pair[0])} images, {len(pair[1])} labels"
                )
        self.protocol = protocol
        self.train = train
        self.test = test
        self.name = name or protocol.name
        self.label_fraction = label_fraction
        self.batch_size = batch_size
        self.results: dict[int, EvaluationResult] = {}
        self.seconds = 0.0

    def evaluate(self, model) -> EvaluationResult:
        """The protocol's result for a model as it is now, without logging it."""
        return self.protocol.evaluate(
            model,
            train=self.train,
            test=self.test,
            batch_size=self.batch_size,
            label_fraction=self.label_fraction,
        )

    def on_epoch_end(self, epoch, logs=None):
        epoch += 1
        if self.is_due(epoch):
            start = time.perf_counter()
            self.results[epoch] = self.evaluate(self.model)
            self.seconds += time.perf_counter() - start
        if logs is not None:
            logs.update(self._logged())

    def _logged(self) -> dict[str, float]:
        if self.results:
            values = self.results[max(self.results)].metrics
        else:
            values = dict.fromkeys(self.protocol.metrics, float("nan"))
        return {f"{self.name}_{metric}": value for metric, value in values.items()}
