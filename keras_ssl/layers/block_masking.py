"""Masks made of blocks, as BEiT, iBOT and DINOv2 hide patches."""

import math

import keras
from keras import ops

from keras_ssl.layers.shapes import whole
from keras_ssl.training.cross_device import own_rows, replica_count, whole_batch
from keras_ssl.training.random import RandomStream

# Tries in a row after which a mask is left as it is; and all tries of a mask. 98 % of the masks of
# 14 x 14 patches are done after 22, and the rest then lack a patch or two.
_TRIES, _ATTEMPTS = 10, 32


def block_masks(
    draws,
    counts,
    grid: tuple[int, int],
    min_patches: int = 4,
    max_patches: int | None = None,
    min_aspect: float = 0.3,
):
    """Masks of a batch, block after block, with fixed shapes throughout.

    Every attempt is a block of random area (uniform from `min_patches` to what is still to mask),
    aspect ratio (log-uniform) and place. It is taken if it hides at least one further patch and no
    more than what is still to mask, until `counts` patches are masked or ten attempts in a row
    have failed: the official generator, for all pictures at once.

    Args:
        draws: `(N, attempts, 4)` numbers in [0, 1): area, aspect ratio, row and column.
        counts: `(N,)`, how many patches to mask; never exceeded, and sometimes missed by a few.
        grid: rows and columns of patches.
        min_patches: smallest area of a block.
        max_patches: most patches that one block may add; `None` for any number.
        min_aspect: smallest ratio of height to width; the largest is its inverse.

    Returns:
        bool `(N, rows, columns)`, True where masked.

    Example:

    >>> masks = block_masks(np.random.rand(2, 32, 4), np.array([20, 0]), grid=(8, 8))
    >>> masks.shape
    (2, 8, 8)

    Reference:
        Bao et al., BEiT, 2021, algorithm 1; facebookresearch/dinov2, data/masking.py.
    """
    rows, columns = grid
    draws = ops.transpose(ops.cast(draws, "float32"), (1, 2, 0))  # attempts x 4 x N
    counts = ops.cast(counts, "float32")
    log_aspect = math.log(min_aspect)
    row, column = (ops.arange(size, dtype="int32")[None] for size in grid)

    def attempt(i, state):
        masks, masked, failures = state
        area, aspect, top, left = ops.unstack(ops.take(draws, i, axis=0), 4)
        room = counts - masked
        if max_patches is not None:
            room = ops.minimum(room, max_patches)
        open_ = ops.logical_and(room > 0, failures < _TRIES)
        area = min_patches + (ops.maximum(room, 0.0) - min_patches) * area
        aspect = ops.exp(log_aspect * (1.0 - 2.0 * aspect))
        height = ops.cast(ops.round(ops.sqrt(area * aspect)), "int32")
        width = ops.cast(ops.round(ops.sqrt(area / aspect)), "int32")
        top, left = _place(top, rows - height), _place(left, columns - width)
        inside = _between(row, top, height)[:, :, None] & _between(column, left, width)[:, None, :]
        added = inside & ~masks
        new = ops.sum(ops.cast(added, "float32"), axis=(1, 2))
        fits = (height < rows) & (width < columns) & (new > 0) & (new <= room) & open_
        return (
            masks | (added & fits[:, None, None]),
            masked + ops.where(fits, new, 0.0),
            ops.where(fits, 0, failures + 1),
        )

    masked = ops.zeros_like(counts)
    masks = ops.zeros((ops.shape(counts)[0], rows, columns), dtype="bool")
    start = masks, masked, ops.cast(masked, "int32")
    return ops.fori_loop(0, draws.shape[0], attempt, start)[0]


def _place(draw, last):
    return ops.cast(ops.floor(draw * ops.cast(last + 1, "float32")), "int32")


def _between(index, start, length):
    return (index >= start[:, None]) & (index < (start + length)[:, None])


@keras.saving.register_keras_serializable(package="keras_ssl")
class BlockMasking(keras.layers.Layer):
    """Which patches of which pictures the student does not see.

    A random share of the pictures is masked. Among these, the ratio of masked patches is spread
    evenly over `mask_ratio`: of `n` pictures, the `i`-th in a random order gets a ratio that is
    uniform in the `i`-th of `n` equal parts of it. The masks are made of blocks (`block_masks`),
    inside the compiled step, and are the same on every backend.

    Args:
        patch_size: side of a patch in pixels.
        mask_ratio: smallest and largest share of masked patches.
        probability: share of the pictures that are masked.
        min_patches: smallest area of a block.
        max_patches: most patches that one block may add. Default: half of them.
        min_aspect: smallest ratio of height to width; the largest is its inverse.
        seed: int, of the random stream.

    Call arguments:
        images: `(N, height, width, channels)`; only the shape matters.
        training: `False` for fixed masks, the same at every call.

    Returns:
        bool `(N, patches)`, True where masked.

    Raises:
        ValueError: ratios or a probability outside [0, 1].

    Example:

    >>> masks = BlockMasking(patch_size=4, seed=0)(np.zeros((6, 32, 32, 3)), training=True)
    >>> int(keras.ops.sum(keras.ops.any(masks, axis=1)))
    3

    Reference:
        Zhou et al., iBOT, 2021, section 3.2; Oquab et al., DINOv2, 2023, section 4.
    """

    def __init__(
        self,
        patch_size: int,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        probability: float = 0.5,
        min_patches: int = 4,
        max_patches: int | None = None,
        min_aspect: float = 0.3,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        low, high = mask_ratio
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(
                "`mask_ratio` must be (smallest, largest) in [0, 1]. "
                f"Received: mask_ratio={mask_ratio}"
            )
        if not 0.0 <= probability <= 1.0:
            raise ValueError(
                f"`probability` must lie in [0, 1]. Received: probability={probability}"
            )
        self.patch_size = patch_size
        self.mask_ratio = float(low), float(high)
        self.probability = float(probability)
        self.min_patches = min_patches
        self.max_patches = max_patches
        self.min_aspect = min_aspect
        self.seed = seed
        self.stream = RandomStream(seed, name="stream")
        self.built = True

    def grid_of(self, images) -> tuple[int, int]:
        """Rows and columns of patches."""
        return tuple(side // self.patch_size for side in images.shape[1:3])

    def masked_pictures(self, pictures):
        """How many of `pictures` are masked; an integer, or a tensor where they are one."""
        return whole(pictures, self.probability)

    def limit(self, images):
        """Above the number of patches that can be masked in a batch, for `masked_patches`."""
        rows, columns = self.grid_of(images)
        low, high = self.mask_ratio
        # sum over i = 1 ... n of P * (low + (high - low) * i / n), and a row to spare.
        slope, constant = low + (high - low) / 2, (high - low) / 2
        pictures = ops.shape(images)[0]
        masked = self.masked_pictures(whole_batch(pictures))
        limit = whole(masked, rows * columns * slope, rows * columns * constant + 1.001)
        if replica_count() == 1:
            return limit
        # Any of the whole batch's masks may be this replica's.
        return min(limit, pictures * int(rows * columns * high))

    def call(self, images, training=None):
        grid, pictures = self.grid_of(images), ops.shape(images)[0]
        whole_pictures = whole_batch(pictures)
        patches = grid[0] * grid[1]
        advance = training is not False
        order = self.stream.permutation((whole_pictures,), advance, stream=0, batch_axis=None)
        order = own_rows(order)
        draws = self.stream.uniform((pictures, _ATTEMPTS * 4 + 1), advance, stream=1)
        order, masked = (
            ops.cast(x, "float32") for x in (order, self.masked_pictures(whole_pictures))
        )
        low, high = self.mask_ratio
        ratio = low + (high - low) * (order + draws[:, 0]) / ops.maximum(masked, 1.0)
        counts = ops.where(order < masked, ops.floor(patches * ratio), 0.0)
        masks = block_masks(
            ops.reshape(draws[:, 1:], (-1, _ATTEMPTS, 4)),
            counts,
            grid,
            self.min_patches,
            patches // 2 if self.max_patches is None else self.max_patches,
            self.min_aspect,
        )
        return ops.reshape(masks, (-1, patches))

    def compute_output_shape(self, input_shape):
        _, height, width, _ = input_shape
        return (input_shape[0], (height // self.patch_size) * (width // self.patch_size))

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        return {
            **config,
            "patch_size": self.patch_size,
            "mask_ratio": self.mask_ratio,
            "probability": self.probability,
            "min_patches": self.min_patches,
            "max_patches": self.max_patches,
            "min_aspect": self.min_aspect,
            "seed": self.seed,
        }
