"""Pictures as sequences of patches, and picking some of them."""

from keras import ops


def patchify(images, patch_size: int):
    """Cuts pictures into flattened patches.

    Args:
        images: `(batch, height, width, channels)`; height and width are multiples of
            `patch_size`.
        patch_size: side of a patch in pixels.

    Returns:
        `(batch, patches, patch_size * patch_size * channels)`; patches in reading order, and
        inside a patch row, column, channel.

    Example:

    >>> patchify(np.zeros((2, 8, 12, 3)), 4).shape
    (2, 6, 48)
    """
    _, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = ops.reshape(images, (-1, rows, patch_size, columns, patch_size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, rows * columns, patch_size * patch_size * channels))


def unpatchify(patches, patch_size: int, grid: tuple[int, int]):
    """Puts flattened patches back together; the inverse of `patchify`.

    Args:
        patches: `(batch, rows * columns, patch_size * patch_size * channels)`.
        patch_size: side of a patch in pixels.
        grid: `(rows, columns)` of patches.

    Returns:
        `(batch, rows * patch_size, columns * patch_size, channels)`.
    """
    rows, columns = grid
    channels = patches.shape[-1] // patch_size**2
    x = ops.reshape(patches, (-1, rows, columns, patch_size, patch_size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, rows * patch_size, columns * patch_size, channels))


def gather_patches(x, indices):
    """Picks tokens of each sample: `out[b, k] = x[b, indices[b, k]]`.

    Args:
        x: `(batch, tokens, dim)`.
        indices: int `(batch, picked)`.

    Returns:
        `(batch, picked, dim)`.
    """
    # One gather of whole rows from a flat table is fast on every backend, where a gather along
    # an axis with broadcast indices is not.
    tokens, dim = x.shape[1], x.shape[2]
    picked = indices.shape[1]
    indices = ops.cast(indices, "int32")
    start = ops.arange(ops.shape(indices)[0], dtype="int32")[:, None] * tokens
    rows = ops.take(ops.reshape(x, (-1, dim)), ops.reshape(indices + start, (-1,)), axis=0)
    return ops.reshape(rows, (-1, picked, dim))
