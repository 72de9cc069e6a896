"""Where a vision transformer looks, as pictures."""

import numpy as np
from PIL import Image

from keras_ssl.evaluation.attention_segmentation import attention_mask, upsample
from keras_ssl.evaluation.patches import attention_maps
from keras_ssl.visualization.pictures import picture_grid

__all__ = ["attention_grid", "attention_maps", "heat_map"]

# From dark to light with rising lightness, so that it also reads in grey.
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def heat_map(values) -> np.ndarray:
    """Colours for numbers: each map's least value is black, its greatest light yellow.

    Args:
        values: `(..., height, width)`, finite.

    Returns:
        uint8 `(..., height, width, 3)`.

    Example:

    >>> heat_map(np.array([[0.0, 0.5, 1.0]])).tolist()
    [[[0, 0, 4], [188, 55, 84], [252, 255, 164]]]
    """
    values = np.asarray(values, "float64")
    low = values.min(axis=(-2, -1), keepdims=True)
    span = values.max(axis=(-2, -1), keepdims=True) - low
    values = (values - low) / np.where(span > 0, span, 1)
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(values, stops, _HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype("uint8")


def attention_grid(
    model,
    images,
    layer: int = -1,
    query: str | tuple[int, int] = "class_token",
    mass: float | None = None,
    interpolation: str = "bilinear",
    image_size=None,
    zoom: int = 2,
    pairs: int = 1,
) -> Image.Image:
    """Each picture with the attention of every head of a layer beside it.

    Args:
        model: a task with a `ViTBackbone` (see `attention_maps`). For a backbone alone, `images`
            must be ready for it; what is shown is then stretched to `[0, 1]`.
        images: `(N, height, width, 3)`.
        layer: block, -1 for the last.
        query: whose attention, as for `attention_maps`.
        mass: instead of the attention, what is left of the picture where the attention is cut off
            to keep this share of itself (0.6 in the paper).
        interpolation: `"bilinear"` or `"nearest"` enlargement of the maps.
        image_size: as for `attention_maps`: larger gives finer maps.
        zoom: whole number by which pictures are enlarged.
        pairs: pictures (with their maps) in a row.

    Returns:
        A `PIL.Image.Image`.

    Example:

    ```python
    keras_ssl.visualization.attention_grid(model, images[:8]).save("attention.png")
    keras_ssl.visualization.attention_grid(model, images[:8], mass=0.6).save("masks.png")
    ```
    """
    images = np.asarray(images)
    maps = attention_maps(model, images, layer, query, image_size)  # (N, heads, rows, columns)
    size = images.shape[1:3]
    pictures = displayable(images)
    if mass is None:
        shown = heat_map(upsample(maps, size, interpolation))
    else:
        if interpolation == "nearest":
            keep = upsample(attention_mask(maps, mass).astype("float32"), size, "nearest") > 0.5
        else:
            keep = attention_mask(upsample(maps, size, interpolation), mass)
        shown = np.where(keep[..., None], pictures[:, None], pictures[:, None] // 6)
    cells = np.concatenate([pictures[:, None], shown], axis=1)
    columns = pairs * cells.shape[1]
    return picture_grid(cells.reshape(-1, *cells.shape[2:]), columns=columns, zoom=zoom)


def displayable(images) -> np.ndarray:
    """Images of any range as uint8: `[0, 255]` as they are, others stretched to it."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 255 or high <= 1:
        images = (images - low) * (255 / max(high - low, 1e-12))
    return images.round().astype("uint8")
