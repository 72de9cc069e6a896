"""Grids of pictures that can be saved or shown."""

import numpy as np
from PIL import Image


def picture_grid(images, columns: int = 8, zoom: int = 1, gap: int = 2) -> Image.Image:
    """Pictures side by side.

    Args:
        images: `(N, height, width, 3)`, uint8 or float in `[0, 1]`.
        columns: pictures in a row.
        zoom: whole number by which each picture is enlarged.
        gap: pixels between pictures.

    Returns:
        A `PIL.Image.Image`; `.save("grid.png")` writes it.

    Example:

    >>> picture_grid(np.random.rand(6, 32, 32, 3), columns=3).size
    (104, 70)
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"Expected pictures (N, height, width, 3). Received: shape {tuple(images.shape)}"
        )
    if images.dtype != np.uint8:
        images = (np.clip(images, 0, 1) * 255).round().astype("uint8")
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, height, width, _ = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, "uint8")
    for i, image in enumerate(images):
        top = (i // columns) * (height + gap) + gap
        left = (i % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)


def reconstruction_grid(model, images, zoom: int = 2, seed: int = 0) -> Image.Image:
    """What a masked autoencoder paints: rows of picture, masked picture, reconstruction.

    Args:
        model: a `keras_ssl.models.MAE`.
        images: `(N, height, width, 3)` as for `model.predict`.
        zoom: enlargement.
        seed: of the masks.

    Returns:
        A `PIL.Image.Image`, three pictures for each input, three inputs in a row.
    """
    triples = np.stack(model.reconstruct(images, seed=seed), axis=1)
    return picture_grid(triples.reshape(-1, *triples.shape[2:]), columns=9, zoom=zoom)
