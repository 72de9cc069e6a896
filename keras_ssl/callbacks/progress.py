"""One line an epoch that says whether a run is worth its time."""

import math
import sys
import time

import keras


class Progress(keras.callbacks.Callback):
    """Prints loss, k-NN accuracy, effective rank, throughput and time left, a line an epoch.

    In a terminal the line of the running epoch is rewritten as it goes. Logs `images_per_second`
    (of training alone, without the first step, which compiles). Figures of other callbacks are
    shown if those come before this one in the list; use with `fit(verbose=0)`.

    Args:
        batch_size: images in a step, for the throughput.
        figures: what to show of the logs: `(name in the logs, label, format)`.
        file: where to print; `sys.stdout` when None.

    Example:

    ```python
    model.fit(
        images,
        batch_size=256,
        epochs=30,
        verbose=0,
        callbacks=[knn, monitor, keras_ssl.callbacks.Progress(256)],
    )
    # epoch  3/30  loss 4.7312  k-NN 54.2 %  rank 31.0  812 images/s  6:12 left
    ```
    """

    FIGURES = (
        ("loss", "loss", "{:.4f}"),
        ("val_loss", "held-out loss", "{:.4f}"),
        ("knn_top1", "k-NN", "{:.1%}"),
        ("linear_top1", "linear", "{:.1%}"),
        ("effective_rank", "rank", "{:.1f}"),
    )

    def __init__(self, batch_size: int, figures=FIGURES, file=None):
        super().__init__()
        self.batch_size = batch_size
        self.figures = figures
        self.file = file
        self.async_safe = True  # nothing here reads the logs of a batch: steps need not wait

    def on_train_begin(self, logs=None):
        self._begin = None
        self._epoch_seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        now = time.perf_counter()
        self._begin = now
        self._first = self._last = None
        self._steps, self._shown = 0, now

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        self._first = self._first or now
        self._last = now
        self._steps += 1
        out = self.file or sys.stdout
        if now - self._shown > 0.5 and out.isatty():
            self._shown = now
            steps = (self.params or {}).get("steps")
            left = ""
            if steps and self._steps > 1:
                rate = (now - self._first) / (self._steps - 1)
                left = f"  {_clock(rate * (steps - self._steps))} left in this epoch"
            print(f"\r  step {self._steps}/{steps or '?'}{left}   ", end="", file=out, flush=True)

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        if self._steps > 1 and self._last > self._first:
            speed = (self._steps - 1) * self.batch_size / (self._last - self._first)
        else:
            speed = float("nan")
        logs["images_per_second"] = speed
        self._epoch_seconds.append(time.perf_counter() - self._begin)
        epochs = (self.params or {}).get("epochs") or epoch + 1
        later = self._epoch_seconds[1:] or self._epoch_seconds
        left = (epochs - epoch - 1) * sum(later) / len(later)
        parts = [f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}"]
        for name, label, form in self.figures:
            if name in logs and not math.isnan(logs[name]):
                parts.append(f"{label} {form.format(logs[name])}")
        if not math.isnan(speed):
            parts.append(f"{speed:.0f} images/s")
        parts.append(f"{_clock(left)} left" if epoch + 1 < epochs else "done")
        out = self.file or sys.stdout
        start = "\r\x1b[K" if out.isatty() else ""
        print(start + "  ".join(parts), file=out, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
