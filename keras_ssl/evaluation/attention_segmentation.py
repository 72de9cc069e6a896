"""How well attention alone separates a thing from its background."""

import time

import numpy as np

from keras_ssl.augmentation.functional import resize_matrix
from keras_ssl.evaluation.patches import attention_maps
from keras_ssl.evaluation.protocol import EvaluationResult, Protocol


def attention_mask(attention, mass: float = 0.6) -> np.ndarray:
    """The fewest places that hold `mass` of each attention map.

    The places are sorted by attention; the least ones, whose sum stays within `1 - mass` of the
    whole, are dropped.

    Args:
        attention: `(..., height, width)`, at least 0.
        mass: share to keep, in (0, 1].

    Returns:
        bool, the same shape.

    Example:

    >>> attention_mask(np.array([[0.5, 0.1], [0.1, 0.3]]), mass=0.6)
    array([[ True, False],
           [False,  True]])

    Reference:
        Caron et al. (DINO), 2021, section 4.2.2; the official `visualize_attention`.
    """
    attention = np.asarray(attention, "float64")
    flat = attention.reshape(*attention.shape[:-2], -1)
    order = np.argsort(flat, axis=-1, kind="stable")
    least = np.cumsum(np.take_along_axis(flat, order, axis=-1), axis=-1)
    keep = np.empty(flat.shape, "bool")
    np.put_along_axis(keep, order, least > (1 - mass) * least[..., -1:], axis=-1)
    return keep.reshape(attention.shape)


def jaccard_index(prediction, target) -> np.ndarray:
    """Intersection over union of masks, `|P and T| / |P or T|`; 1 where both are empty.

    Args:
        prediction: bool `(..., height, width)`.
        target: bool, broadcast against it.

    Returns:
        float64 `(...)`, in [0, 1].

    Example:

    >>> jaccard_index(np.array([[True, True]]), np.array([[True, False]]))
    0.5
    """
    prediction, target = np.asarray(prediction, "bool"), np.asarray(target, "bool")
    intersection = (prediction & target).sum(axis=(-2, -1))
    union = (prediction | target).sum(axis=(-2, -1))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))[()]


def upsample(maps: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Maps `(..., h, w)` at another size, `"nearest"` or `"bilinear"`."""
    rows, columns = (
        resize_matrix(0, old, old, new, interpolation, antialias=False)
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return rows @ maps @ columns.T


class AttentionSegmentationProtocol(Protocol):
    """Jaccard index of thresholded attention against masks, for each head.

    Each head's attention from the class token to the patches is cut off so that it keeps `mass`
    of itself (`attention_mask`), and what is left is compared with the true mask. Nothing is
    trained and no label is used, save that the best head is chosen by looking at the masks:
    for each picture as in the paper, or one for all.

    Args:
        mass: share of the attention to keep, in (0, 1]. 0.6 in the paper.
        layer: block whose attention is taken.
        interpolation: `"nearest"` enlarges the mask of patches (the paper); `"bilinear"` enlarges
            the attention before it is cut off, for smoother outlines.
        version: of this definition. `None`: the newest.

    Raises:
        ValueError: for options out of range.

    Example:

    ```python
    protocol = keras_ssl.evaluation.AttentionSegmentationProtocol(mass=0.6)
    result = protocol.evaluate(model, test=(images, masks))
    print(result.metrics["jaccard_best_head"], result.details["best_head"])
    ```

    Reference:
        Caron et al. (DINO), 2021, figure 4.
    """

    name = "attention_segmentation"
    options = ("mass", "layer", "interpolation")
    metrics = ("jaccard_best_head", "jaccard_fixed_head", "jaccard_mean_head")

    def __init__(
        self,
        mass: float = 0.6,
        layer: int = -1,
        interpolation: str = "nearest",
        version: str | None = None,
    ):
        if not 0 < mass <= 1:
            raise ValueError(f"`mass` must lie in (0, 1]. Received: mass={mass}")
        if not isinstance(layer, int):
            raise ValueError(f"`layer` must be one block, an int. Received: layer={layer!r}")
        if interpolation not in ("nearest", "bilinear"):
            raise ValueError(
                '`interpolation` must be "nearest" or "bilinear". '
                f"Received: interpolation={interpolation!r}"
            )
        self._set(version, mass=float(mass), layer=layer, interpolation=interpolation)

    def evaluate(self, model=None, *, test, batch_size: int = 64) -> EvaluationResult:
        """Compares attention with masks.

        Args:
            model: a task with a `ViTBackbone`, or such a backbone (see `attention_maps`); or
                `None` when `test` holds attention maps `(N, heads, rows, columns)` already.
            test: `(images, masks)`, masks bool or 0/1, `(N, height, width)`, of any size.
            batch_size: images at a time.

        Returns:
            An `EvaluationResult` with the metrics `jaccard_best_head` (of each picture's best
            head), `jaccard_fixed_head` (of the one head that is best over all pictures) and
            `jaccard_mean_head` (mean over heads), each the mean over pictures, and the details
            `best_head` (that one head) and `jaccard_by_head`.

        Raises:
            ValueError: for masks that are no masks or do not fit the images.
        """
        images, masks = test
        masks = binary_masks(masks, len(images))
        if model is None:
            maps = np.asarray(images, "float32")
            if maps.ndim != 4:
                raise ValueError(
                    "Without a model, attention maps (N, heads, rows, columns) are needed. "
                    f"Received: shape {maps.shape}"
                )
        else:
            maps = attention_maps(model, images, layer=self.layer, batch_size=batch_size)
        start = time.perf_counter()
        scores = np.stack(
            [
                jaccard_index(self.segment(attention, mask.shape), mask)
                for attention, mask in zip(maps, masks, strict=True)
            ]
        )  # (N, heads)
        by_head = scores.mean(axis=0)
        return EvaluationResult(
            protocol=self.to_dict(),
            metrics={
                "jaccard_best_head": float(scores.max(axis=1).mean()),
                "jaccard_fixed_head": float(by_head.max()),
                "jaccard_mean_head": float(by_head.mean()),
            },
            data={"test": len(maps), "features": maps.shape[1]},
            seconds=time.perf_counter() - start,
            details={
                "best_head": int(by_head.argmax()),
                "jaccard_by_head": by_head.tolist(),
                "grid": list(maps.shape[2:]),
            },
        )

    def segment(self, attention, size: tuple[int, int]) -> np.ndarray:
        """Masks of attention maps.

        Args:
            attention: `(..., rows, columns)`.
            size: `(height, width)` of the masks.

        Returns:
            bool `(..., height, width)`.
        """
        if self.interpolation == "bilinear":
            return attention_mask(upsample(np.asarray(attention), size, "bilinear"), self.mass)
        mask = attention_mask(attention, self.mass)
        return upsample(mask.astype("float32"), size, "nearest") > 0.5


def attention_segmentation(
    model, images, masks, mass: float = 0.6, batch_size: int = 64, **options
) -> EvaluationResult:
    """Jaccard index of thresholded attention: `AttentionSegmentationProtocol` in one call.

    Args:
        model: a task with a `ViTBackbone`, or such a backbone.
        images: `(N, height, width, channels)`.
        masks: bool or 0/1 `(N, height, width)`.
        mass: share of the attention to keep.
        batch_size: images at a time.
        **options: of `AttentionSegmentationProtocol`.

    Returns:
        An `EvaluationResult`.

    Example:

    ```python
    result = keras_ssl.evaluation.attention_segmentation(model, images, masks, mass=0.6)
    print(result)
    ```
    """
    protocol = AttentionSegmentationProtocol(mass, **options)
    return protocol.evaluate(model, test=(images, masks), batch_size=batch_size)


def binary_masks(masks, count: int) -> np.ndarray:
    """Masks as bool, checked."""
    masks = np.asarray(masks)
    if masks.ndim != 3 or len(masks) != count or not count:
        raise ValueError(
            "Expected one mask for each image, (N, height, width). "
            f"Received: masks of shape {masks.shape} for {count} images"
        )
    if masks.dtype != bool:
        if not np.isin(masks, (0, 1)).all():
            raise ValueError(
                "Masks must be bool, or 0 and 1; turn an alpha channel into one by `alpha > 127`. "
                f"Received: {masks.dtype} from {masks.min()} to {masks.max()}"
            )
        masks = masks.astype("bool")
    return masks
