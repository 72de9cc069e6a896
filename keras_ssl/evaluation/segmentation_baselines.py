"""What finds a thing without any network: thresholds, and a box in the middle."""

import numpy as np

from keras_ssl.evaluation.attention_segmentation import binary_masks, jaccard_index

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def otsu_threshold(values, bins: int = 64) -> float:
    """The value that splits numbers into two parts with the greatest variance between them.

    `t = argmax_t n_0(t) n_1(t) (mean_0(t) - mean_1(t))^2` over the edges of a histogram.

    Args:
        values: numbers of any shape, finite.
        bins: of the histogram.

    Returns:
        The threshold; where all values are equal, that value.

    Example:

    >>> round(otsu_threshold([0.0, 1.0, 9.0, 10.0], bins=10))
    2

    Reference:
        Otsu, A Threshold Selection Method from Gray-Level Histograms, 1979.
    """
    values = np.asarray(values, "float64")
    if values.min() == values.max():
        return float(values.min())
    counts, edges = np.histogram(values, bins=bins)
    sums = counts * (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts)[:-1], counts[::-1].cumsum()[::-1][1:]
    means = np.cumsum(sums)[:-1] / below, sums[::-1].cumsum()[::-1][1:] / above
    return float(edges[1:-1][np.argmax(below * above * (means[0] - means[1]) ** 2)])


def threshold_masks(images, of: str = "luminance", cells: int = 8) -> np.ndarray:
    """Otsu's threshold on each picture; the side with less of the border is the thing.

    Args:
        images: `(N, height, width, 3)`.
        of: what the threshold is put on: `"luminance"` of the pixels, or `"contrast"`, the
            luminance's standard deviation in a grid of cells (what is in focus).
        cells: cells along each side, for `"contrast"`; must divide height and width.

    Returns:
        bool `(N, height, width)`.

    Raises:
        ValueError: for another `of`, or cells that do not divide.

    Example:

    >>> picture = np.zeros((1, 16, 16, 3), "uint8")
    >>> picture[:, 4:12, 4:12] = 200
    >>> int(threshold_masks(picture).sum())
    64
    """
    images = np.asarray(images)
    if of not in ("luminance", "contrast"):
        raise ValueError(f'`of` must be "luminance" or "contrast". Received: of={of!r}')
    values = images.astype("float64") @ np.array(_LUMINANCE)
    count, height, width = values.shape
    if of == "contrast":
        if height % cells or width % cells:
            raise ValueError(
                f"`cells` must divide {height} x {width} pixels. Received: cells={cells}"
            )
        grid = values.reshape(count, cells, height // cells, cells, width // cells)
        spread = grid.std(axis=(2, 4))
        values = spread.repeat(height // cells, axis=1).repeat(width // cells, axis=2)
    masks = np.stack([picture > otsu_threshold(picture) for picture in values])
    border = np.ones((height, width), "bool")
    edge = max(1, min(height, width) // 16)
    border[edge:-edge, edge:-edge] = False
    swap = masks[:, border].mean(axis=1) > 0.5
    masks[swap] = ~masks[swap]
    return masks


def centred_box(masks) -> np.ndarray:
    """Of all boxes in the middle, the one that fits some masks best (mean Jaccard index).

    Args:
        masks: bool or 0/1 `(N, height, width)`, of training pictures.

    Returns:
        bool `(height, width)`. The box has the aspect of the picture.
    """
    masks = binary_masks(masks, len(masks))
    height, width = masks.shape[1:]
    # Distance from the middle, over that of the border: boxes are its level sets.
    y, x = (np.abs(np.arange(side) + 0.5 - side / 2) / (side / 2) for side in (height, width))
    away = np.maximum(y[:, None], x[None])
    boxes = [away <= side for side in np.unique(away)]
    return max(boxes, key=lambda box: jaccard_index(box, masks).mean())


def segmentation_baselines(images, masks, train_masks) -> dict[str, float]:
    """Jaccard indices of what needs no network, to hold `AttentionSegmentationProtocol`'s against.

    Args:
        images: test pictures `(N, height, width, 3)`.
        masks: their true masks, bool or 0/1 `(N, height, width)`.
        train_masks: masks of other pictures of the same size, which the box is fitted to.

    Returns:
        `{name: mean Jaccard index}` of the whole picture, the best box in the middle, and
        thresholds on luminance and on contrast.

    Example:

    ```python
    figures = keras_ssl.evaluation.segmentation_baselines(images, masks, masks)
    figures["box in the middle"]
    ```
    """
    masks = binary_masks(masks, len(images))
    guesses = {
        "whole picture": np.ones_like(masks),
        "box in the middle": centred_box(train_masks)[None],
        "threshold on luminance": threshold_masks(images),
        "threshold on contrast": threshold_masks(images, "contrast"),
    }
    return {name: float(jaccard_index(guess, masks).mean()) for name, guess in guesses.items()}
