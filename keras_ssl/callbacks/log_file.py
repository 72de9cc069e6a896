"""The figures of every epoch in a file that survives a kill."""

import csv
import os
import pathlib

import keras

from keras_ssl.safe_files import whole_file


class LogFile(keras.callbacks.Callback):
    """Writes the logs of every epoch to a CSV file: `epoch` (from 1) and a column for each figure.

    Unlike `keras.callbacks.CSVLogger` it takes figures that appear later, and a resumed run goes
    on with the file: rows of epochs that are trained again are dropped. The file is
    replaced as a whole, so a kill leaves a whole one.

    Of several processes that train together, the first one writes.

    Args:
        path: the file.

    Example:

    ```python
    model.fit(images, epochs=10, callbacks=[knn, keras_ssl.callbacks.LogFile("run/log.csv")])
    history = keras_ssl.callbacks.LogFile.read("run/log.csv")
    ```
    """

    first_process_only = True

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = pathlib.Path(path)
        self._rows = None

    def on_train_begin(self, logs=None):
        self._rows = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._rows is None:
            rows = self.read(self.path) if self.path.exists() else []
            self._rows = [row for row in rows if row["epoch"] <= epoch]

    def on_epoch_end(self, epoch, logs=None):
        values = {name: float(value) for name, value in (logs or {}).items()}
        self._rows.append({"epoch": epoch + 1, **values})
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with (
            whole_file(self.path) as unfinished,
            open(unfinished, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns, restval="nan")
            writer.writeheader()
            writer.writerows(self._rows)

    @staticmethod
    def read(path: str | os.PathLike) -> list[dict]:
        """The rows of a log as dicts of numbers, `epoch` an int.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = [
                    {k: int(v) if k == "epoch" else float(v) for k, v in row.items()}
                    for row in csv.DictReader(file)
                ]
            if not all("epoch" in row for row in rows):
                raise ValueError("a row has no epoch")
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(
                f"The log is damaged ({error}): mend it, or remove it to go on without it. "
                f"Received: {os.fspath(path)!r}"
            ) from error
        return rows
