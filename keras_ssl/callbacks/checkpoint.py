"""Checkpoints from which a run goes on exactly as if it had never stopped."""

import os
import pathlib
import re

import keras

_NAME = re.compile(r"checkpoint-(\d{5})\.keras")


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole run after every epoch, so that a killed one goes on with equal numbers.

    `checkpoint-<epochs done>.keras` holds the model with its teacher, queue, counters and random
    streams, and the optimizer with its moments and place in the schedule. It is written beside its
    name and renamed, so whenever the process dies there is a whole file; older ones go once the
    new one is in place.

    The order of an array's rows depends on the model's `seed` and the epoch: give the model a
    seed, and `fit` the `initial_epoch` that `latest` returns. Put the callback last in the list.

    Args:
        folder: where the checkpoints are.
        every: save after every so many epochs, and after the last one always.
        keep: how many of the newest stay.

    Example:

    ```python
    found = keras_ssl.callbacks.Checkpoint.latest("run")
    model = keras.saving.load_model(found[0]) if found else make_model()
    model.fit(
        images,
        epochs=100,
        initial_epoch=found[1] if found else 0,
        callbacks=[keras_ssl.callbacks.Checkpoint("run")],
    )
    ```
    """

    def __init__(self, folder: str | os.PathLike, every: int = 1, keep: int = 1):
        super().__init__()
        if every < 1 or keep < 1:
            raise ValueError(
                f"`every` and `keep` must be >= 1. Received: every={every}, keep={keep}"
            )
        self.folder = pathlib.Path(folder)
        self.every = every
        self.keep = keep

    def on_epoch_end(self, epoch, logs=None):
        done = epoch + 1
        if done % self.every == 0 or done == (self.params or {}).get("epochs"):
            self.save(done)

    def save(self, epochs_done: int) -> pathlib.Path:
        """Writes the checkpoint of the model as it is now, and returns its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"checkpoint-{epochs_done:05d}.keras"
        unfinished = self.folder / f".unfinished-{os.getpid()}.keras"
        try:
            self.model.save(unfinished)
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())  # the rename must not reach the disk before the content
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        for old in _found(self.folder)[: -self.keep]:
            old[0].unlink(missing_ok=True)
        return path

    @staticmethod
    def latest(folder: str | os.PathLike) -> tuple[pathlib.Path, int] | None:
        """The newest checkpoint of a folder and the epochs it has done; None if there is none."""
        found = _found(pathlib.Path(folder))
        return found[-1] if found else None


def _found(folder):
    names = os.listdir(folder) if folder.is_dir() else []
    matches = filter(None, map(_NAME.fullmatch, names))
    return sorted(((folder / m[0], int(m[1])) for m in matches), key=lambda item: item[1])
