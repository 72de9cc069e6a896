"""Pictures of what a model does while it trains."""

import os
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from keras_ssl import visualization
from keras_ssl.callbacks.schedule import ScheduledCallback
from keras_ssl.safe_files import whole_file


class PicturePlot(ScheduledCallback):
    """Writes a picture of the model to `folder/<name>_<epoch>.png` after chosen epochs.

    Args:
        draw: `draw(model)` gives a `PIL.Image.Image`.
        folder: where the pictures go; made if needed.
        name: of the files.
        every: after every so many epochs, and after the last one always.
        epochs: the epochs, counted from 1, instead of `every`.

    Attributes:
        path: the newest picture, a `pathlib.Path`, or None before the first.

    Example:

    ```python
    weights = lambda model: picture_grid(first_filters(model))
    model.fit(images, callbacks=[PicturePlot(weights, "run/pictures", "filters", every=10)])
    ```
    """

    def __init__(
        self,
        draw: Callable,
        folder: str | os.PathLike,
        name: str,
        every: int = 10,
        epochs=None,
    ):
        super().__init__(every, epochs)
        self.draw = draw
        self.folder = pathlib.Path(folder)
        self.name = name
        self.path = None

    def write(self, model, epoch: int) -> pathlib.Path:
        """Draws the model as it is now, for an epoch counted from 1, and returns the file."""
        picture: Image.Image = self.draw(model)
        self.path = self.folder / f"{self.name}_{epoch:04d}.png"
        with whole_file(self.path) as unfinished:
            picture.save(unfinished)
        return self.path

    def on_epoch_end(self, epoch, logs=None):
        if self.is_due(epoch + 1):
            self.write(self.model, epoch + 1)


class ReconstructionPlot(PicturePlot):
    """What a masked autoencoder paints: picture, masked picture, reconstruction.

    The masks are the same at every epoch, so that the pictures can be compared.

    Args:
        images: `(N, height, width, 3)` in `[0, 255]`; a dozen is plenty.
        folder: where `reconstruction_<epoch>.png` goes.
        every: after every so many epochs, and after the last one always.
        epochs: the epochs, counted from 1, instead of `every`.
        zoom: whole number by which pictures are enlarged.
        seed: of the masks.

    Example:

    ```python
    plot = keras_ssl.callbacks.ReconstructionPlot(images[:12], "run/pictures", every=20)
    mae.fit(images, epochs=100, callbacks=[plot])
    ```
    """

    def __init__(self, images, folder, every: int = 10, epochs=None, zoom: int = 2, seed: int = 0):
        images = np.asarray(images)
        super().__init__(
            lambda model: visualization.reconstruction_grid(model, images, zoom=zoom, seed=seed),
            folder,
            "reconstruction",
            every,
            epochs,
        )


class AttentionPlot(PicturePlot):
    """Where the class token of a vision transformer looks: a map for every head.

    Args:
        images: `(N, height, width, 3)` in `[0, 255]`.
        folder: where `attention_<epoch>.png` goes.
        every: after every so many epochs, and after the last one always.
        epochs: the epochs, counted from 1, instead of `every`.
        zoom: whole number by which pictures are enlarged.
        **options: of `keras_ssl.visualization.attention_grid`: `layer`, `query`, `mass`, ...

    Example:

    ```python
    plot = keras_ssl.callbacks.AttentionPlot(images[:8], "run/pictures", every=20)
    dino.fit(images, epochs=100, callbacks=[plot])
    ```
    """

    def __init__(self, images, folder, every: int = 10, epochs=None, zoom: int = 2, **options):
        images = np.asarray(images)
        super().__init__(
            lambda model: visualization.attention_grid(model, images, zoom=zoom, **options),
            folder,
            "attention",
            every,
            epochs,
        )


class ViewsPlot(PicturePlot):
    """The views that the augmenter makes, normalisation undone; see `views_grid`.

    They are fixed, so one picture says it: by default it is written after the first epoch (and the
    last), which is early enough to see that an augmentation is too strong or broken.

    Args:
        images: `(N, height, width, 3)` in `[0, 255]`.
        folder: where `views_<epoch>.png` goes.
        every: after every so many epochs, instead of `epochs`.
        epochs: the epochs, counted from 1.
        zoom: whole number by which pictures are enlarged.

    Example:

    ```python
    model.fit(images, callbacks=[keras_ssl.callbacks.ViewsPlot(images[:6], "run/pictures")])
    ```
    """

    def __init__(self, images, folder, every: int | None = None, epochs=(1,), zoom: int = 2):
        images = np.asarray(images)
        super().__init__(
            lambda model: visualization.views_grid(model, images, zoom=zoom),
            folder,
            "views",
            every or 1,
            None if every else epochs,
        )
