"""Views as a model sees them."""

import keras
import numpy as np
from PIL import Image

from keras_ssl.visualization.pictures import picture_grid


def views_grid(model, images, zoom: int = 2) -> Image.Image:
    """Each picture and, beside it, its views from the model's augmenter.

    The views are those that `evaluate` uses: the same every time, and no state is touched. The
    normalisation is undone; smaller (local) views are shown in their own size, centred.

    Args:
        model: a task of `keras_ssl.models` with an augmenter.
        images: `(N, height, width, 3)` in `[0, 255]`.
        zoom: whole number by which pictures are enlarged.

    Returns:
        A `PIL.Image.Image` with a row for each picture.

    Raises:
        ValueError: for a model without augmenter.

    Example:

    ```python
    grid = keras_ssl.visualization.views_grid(model, images[:4])
    grid.save("views.png")
    ```
    """
    if model.augmenter is None:
        raise ValueError(
            "This model has no augmenter: its data set makes the views, look at those. "
            f"Received: {type(model).__name__} with augmenter=None"
        )
    images = np.asarray(images)
    views = [
        np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(view, "float32")))
        for view in model.make_views(images, training=False)
    ]
    channels = images.shape[-1]
    mean = np.asarray(getattr(model.augmenter, "mean", (0.0,) * channels), "float32")
    std = np.asarray(getattr(model.augmenter, "std", (1.0,) * channels), "float32")
    views = [np.clip(view * std + mean, 0, 1) for view in views]
    pictures = [images.astype("float32") / 255.0, *views]
    side = tuple(max(p.shape[axis] for p in pictures) for axis in (1, 2))
    rows = np.stack([_centred(p, side) for p in pictures], axis=1)
    return picture_grid(rows.reshape(-1, *rows.shape[2:]), columns=len(pictures), zoom=zoom)


def _centred(pictures, side):
    """Pictures on a white sheet of the given height and width."""
    sheet = np.ones((len(pictures), *side, pictures.shape[-1]), "float32")
    top, left = ((side[i] - pictures.shape[i + 1]) // 2 for i in (0, 1))
    sheet[:, top : top + pictures.shape[1], left : left + pictures.shape[2]] = pictures
    return sheet
