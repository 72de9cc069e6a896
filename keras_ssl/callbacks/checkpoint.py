"""Checkpoints from which a run goes on exactly as if it had never stopped."""

import os
import pathlib
import re
import warnings
import zipfile

import keras

from keras_ssl.safe_files import check_room, whole_file
from keras_ssl.training.replicas import alone
from keras_ssl.training.saving import file_size, same_names, saved_variables

_NAME = re.compile(r"checkpoint-(\d{5,})\.keras")


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole run after every epoch, so that a killed one goes on with equal numbers.

    `checkpoint-<epochs done>.keras` holds the model with its teacher, queue, counters and random
    streams, and the optimizer with its moments and place in the schedule. It is written beside its
    name and renamed, so whenever the process dies or the disk is full there is a whole file; older
    ones go once the new one is in place.

    The order of an array's rows depends on the model's `seed` and the epoch: give the model a
    seed, and `fit` the `initial_epoch` that `latest` returns. Put the callback last in the list.

    Of several processes that train together, the first one saves.

    Args:
        folder: where the checkpoints are.
        every: save after every so many epochs, and after the last one always.
        keep: how many of the newest stay. With two there is one to fall back on, should the disk
            damage the last.

    A folder is of one run: a new one does not begin where an older one is further.

    Raises:
        ValueError: when training begins, if the folder holds whole checkpoints with more epochs
            done than this run has. Nothing is trained, saved or removed then.
        OSError: while training, when a checkpoint cannot be written (a full disk). Those before it
            are whole.

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

    first_process_only = True

    def __init__(self, folder: str | os.PathLike, every: int = 1, keep: int = 2):
        super().__init__()
        if every < 1 or keep < 1:
            raise ValueError(
                f"`every` and `keep` must be >= 1. Received: every={every}, keep={keep}"
            )
        self.folder = pathlib.Path(folder)
        self.every = every
        self.keep = keep
        self._begins = True

    def on_train_begin(self, logs=None):
        self._begins = True

    def on_epoch_begin(self, epoch, logs=None):  # the first that says where `fit` begins
        if self._begins:
            self._begins = False
            self._refuse_other_run(epoch)

    def _refuse_other_run(self, done):
        """Damaged ones further on are of this run: `latest` passed over them."""
        further = [path.name for path, epochs in _found(self.folder) if epochs > done]
        further = [name for name in further if _why_damaged(self.folder / name) is None]
        if further:
            raise ValueError(
                f"The folder holds checkpoints that are further than epoch {done}, where this "
                f"training begins: {', '.join(further)}. To go on with that run, load what "
                "`Checkpoint.latest(folder)` gives and pass its epochs as `initial_epoch` to "
                "`fit`; for a new run choose another folder, or remove them. "
                f"Received: folder={os.fspath(self.folder)!r}, initial_epoch={done}"
            )

    def on_epoch_end(self, epoch, logs=None):
        done = epoch + 1
        if done % self.every == 0 or done == (self.params or {}).get("epochs"):
            self.save(done)

    def save(self, epochs_done: int) -> pathlib.Path:
        """Writes the checkpoint of the model as it is now, and returns its path."""
        path = self.folder / f"checkpoint-{epochs_done:05d}.keras"
        try:
            with whole_file(path) as unfinished, alone(), same_names():
                check_room(self.folder, *_sizes(self.model))
                self.model.save(unfinished)
        except (OSError, RuntimeError, ValueError) as error:  # h5py and zipfile, on a full disk
            found = _found(self.folder)
            last = f"{found[-1][0].name} is whole" if found else "there is none before it"
            raise OSError(
                f"The checkpoint of epoch {epochs_done} cannot be written: {error}. {last}; make "
                f"room and go on from there. Received: folder={os.fspath(self.folder)!r}"
            ) from error
        # What is further on is damaged and was passed over, or not of this run.
        older = [path for path, done in _found(self.folder) if done <= epochs_done]
        for old in older[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    @staticmethod
    def latest(folder: str | os.PathLike) -> tuple[pathlib.Path, int] | None:
        """The newest whole checkpoint of a folder and the epochs it has done, or None.

        Every byte is checked against its checksum. A damaged file is named in a warning and passed
        over for the one before it.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        found = _found(pathlib.Path(folder))
        reasons = []
        for path, done in reversed(found):
            why = _why_damaged(path)
            if why is None:
                return path, done
            reasons.append(f"{path.name}: {why}")
            if len(reasons) < len(found):
                warnings.warn(
                    f"The checkpoint {path} is damaged ({why}): the run goes on from the one "
                    "before it.",
                    stacklevel=2,
                )
        if found:
            raise ValueError(
                "None of the checkpoints is whole. Restore one, or remove them to begin again. "
                f"Received: folder={os.fspath(folder)!r} with {'; '.join(reasons)}"
            )
        return None


def _sizes(model) -> list[int]:
    """Bytes of the files that saving a model writes.

    Keras collects the weights in memory. Where that is short it writes them to the disk, and then
    once more into the checkpoint: above half of the memory that is available, or of 1 GB where it
    does not know.
    """
    optimizer = getattr(model, "optimizer", None)
    size = file_size([*saved_variables(model), *(optimizer.variables if optimizer else ())])
    try:
        import psutil

        memory = psutil.virtual_memory().available
    except ImportError:
        memory = 2**30
    return [size] if size < memory // 4 else [size, size]


def _found(folder):
    names = os.listdir(folder) if folder.is_dir() else []
    matches = filter(None, map(_NAME.fullmatch, names))
    return sorted(((folder / m[0], int(m[1])) for m in matches), key=lambda item: item[1])


def _why_damaged(path) -> str | None:
    try:
        with zipfile.ZipFile(path) as file:
            missing = {"config.json", "metadata.json", "model.weights.h5"} - set(file.namelist())
            if missing:
                return f"it has no {', '.join(sorted(missing))}"
            wrong = file.testzip()
        return None if wrong is None else f"the checksum of {wrong} does not fit"
    except Exception as error:  # whatever zipfile and zlib make of damaged headers
        return str(error) or type(error).__name__
