"""Retrieval with pictures."""

import numpy as np
from PIL import Image

from keras_ssl.evaluation.neighbours import nearest_neighbours
from keras_ssl.visualization.pictures import picture_grid


def neighbour_grid(
    model, queries, bank, count: int = 8, zoom: int = 2, batch_size: int = 256
) -> Image.Image:
    """In each row a picture, and those of a bank that the model finds most like it, best first.

    Args:
        model: anything with `predict`, a function of the images, or `"pixels"`.
        queries: pictures `(N, height, width, 3)`, uint8.
        bank: pictures `(M, height, width, 3)` of the same size.
        count: neighbours of each.
        zoom: whole number by which pictures are enlarged.
        batch_size: images at a time.

    Returns:
        A `PIL.Image.Image`.

    Example:

    ```python
    keras_ssl.visualization.neighbour_grid(model, x_test[:6], x_train).save("neighbours.png")
    ```
    """
    queries, bank = np.asarray(queries), np.asarray(bank)
    index, _ = nearest_neighbours(model, queries, bank, count, batch_size)
    rows = np.concatenate([queries[:, None], bank[index]], axis=1)
    return picture_grid(rows.reshape(-1, *rows.shape[2:]), columns=count + 1, zoom=zoom)
