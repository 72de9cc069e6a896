"""Runs seen in TensorBoard and in Weights & Biases."""

import math
import os
import pathlib
import time

import keras
import numpy as np
from PIL import Image

from keras_ssl.callbacks.pictures import PicturePlot


class TensorBoardLog(keras.callbacks.Callback):
    """Writes curves, pictures and an embedding map for TensorBoard, on every backend.

    Needs the package `tensorboard` and no TensorFlow. Curves are the logs of every epoch; put
    the callback behind those whose figures and pictures it shows. The embedding projector gets the
    features of `images`, with the pictures as sprites, when training ends.

    Args:
        folder: the log folder: `tensorboard --logdir folder`.
        pictures: `PicturePlot` callbacks (`ReconstructionPlot`, `AttentionPlot`, `ViewsPlot`)
            whose pictures are shown as well.
        images: `(N, height, width, 3)` uint8, for the embedding projector; None for none.
        labels: `(N,)` names or numbers shown with the points.

    Raises:
        ImportError: if tensorboard is not installed.

    Example:

    ```python
    views = keras_ssl.callbacks.ViewsPlot(images[:6], "run/pictures")
    board = keras_ssl.callbacks.TensorBoardLog("run/tensorboard", [views], images[:500])
    model.fit(images, epochs=10, callbacks=[knn, views, board])
    ```
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        pictures: list[PicturePlot] = (),
        images=None,
        labels=None,
    ):
        super().__init__()
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ImportError("TensorBoardLog needs `pip install tensorboard`.") from error
        self._event, self._summary, self._open = (
            event_pb2.Event,
            summary_pb2.Summary,
            EventFileWriter,
        )
        self.folder = pathlib.Path(folder)
        self.pictures = list(pictures)
        self.first_process_only = images is None  # all take part in encoding them
        self.images = images
        self.labels = labels
        self._writer = None

    def on_train_begin(self, logs=None):
        self._writer = self._open(str(self.folder))
        self._written = {}

    def on_epoch_end(self, epoch, logs=None):
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in (logs or {}).items()
            if math.isfinite(value)
        ]
        for plot in self.pictures:
            if plot.path is not None and plot.path != self._written.get(plot.name):
                self._written[plot.name] = plot.path
                values.append(self._picture(plot))
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=epoch + 1, summary=summary))
        self._writer.flush()

    def _picture(self, plot):
        with Image.open(plot.path) as picture:
            width, height = picture.size
        image = self._summary.Image(
            height=height,
            width=width,
            colorspace=3,
            encoded_image_string=plot.path.read_bytes(),
        )
        return self._summary.Value(tag=plot.name, image=image)

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self.images is not None:
            write_projector(self.folder, self.model, self.images, self.labels)


def write_projector(folder: str | os.PathLike, model, images, labels=None, side: int = 32) -> None:
    """Files that TensorBoard's embedding projector reads: vectors, labels and thumbnails.

    Args:
        folder: the log folder.
        model: anything with `predict`.
        images: `(N, height, width, 3)` uint8.
        labels: `(N,)` names or numbers, or None.
        side: pixels of a thumbnail.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = np.asarray(images)
    vectors = model.predict(images, batch_size=min(256, len(images)), verbose=0)
    np.savetxt(folder / "embeddings.tsv", vectors, fmt="%.6g", delimiter="\t")
    columns = math.ceil(math.sqrt(len(images)))  # the projector wants a square sheet
    sheet = Image.new("RGB", (columns * side, columns * side), "white")
    for i, image in enumerate(images):
        thumbnail = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (side * (i % columns), side * (i // columns)))
    sheet.save(folder / "sprites.png")
    metadata = ""
    if labels is not None:
        lines = (str(label).replace("\t", " ").replace("\n", " ") for label in labels)
        (folder / "labels.tsv").write_text(
            "\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace"
        )
        metadata = '  metadata_path: "labels.tsv"\n'
    (folder / "projector_config.pbtxt").write_text(
        "embeddings {\n"
        '  tensor_name: "embeddings"\n'
        '  tensor_path: "embeddings.tsv"\n'
        f"{metadata}"
        "  sprite {\n"
        '    image_path: "sprites.png"\n'
        f"    single_image_dim: {side}\n"
        f"    single_image_dim: {side}\n"
        "  }\n"
        "}\n",
        encoding="utf-8",
    )


class WandbLog(keras.callbacks.Callback):
    """Sends the logs of every epoch, and pictures, to Weights & Biases.

    Args:
        project: name of the project.
        config: options of the run to store with it.
        pictures: `PicturePlot` callbacks whose pictures are sent.
        **options: of `wandb.init`, e.g. `name`, `mode="offline"`.

    Raises:
        ImportError: if wandb is not installed.

    Example:

    ```python
    model.fit(images, callbacks=[knn, keras_ssl.callbacks.WandbLog("emoji", {"method": "mae"})])
    ```
    """

    first_process_only = True

    def __init__(self, project: str, config: dict | None = None, pictures=(), **options):
        super().__init__()
        try:
            import wandb
        except ImportError as error:
            raise ImportError("WandbLog needs `pip install wandb`.") from error
        self._wandb = wandb
        self.pictures = list(pictures)
        self._options = {"project": project, "config": config, **options}
        self._run = None

    def on_train_begin(self, logs=None):
        self._run = self._wandb.init(**self._options)
        self._written = {}

    def on_epoch_end(self, epoch, logs=None):
        values = {k: float(v) for k, v in (logs or {}).items() if math.isfinite(v)}
        for plot in self.pictures:
            if plot.path is not None and plot.path != self._written.get(plot.name):
                self._written[plot.name] = plot.path
                values[plot.name] = self._wandb.Image(str(plot.path))
        self._run.log(values, step=epoch + 1)

    def on_train_end(self, logs=None):
        self._run.finish()
