"""Position tables of the vision transformers, and their interpolation to other image sizes."""

import numpy as np
from keras import ops


def sincos_position_embedding(
    dim: int, height: int, width: int, layout: str = "mae", temperature: float = 10000.0
) -> np.ndarray:
    """Fixed 2-D sine-cosine position embedding.

    With `m = dim / 4` frequencies `w_i = temperature ** (-i / m)`, a patch in row `r` and column
    `c` is described by `sin` and `cos` of `r * w` and `c * w`. The papers' codes order these four
    groups differently:

    - `"mae"`: `[sin(c w), cos(c w), sin(r w), cos(r w)]`,
    - `"moco_v3"`: `[sin(r w), cos(r w), sin(c w), cos(c w)]`.

    Args:
        dim: embedding width, a positive multiple of 4.
        height: rows of patches.
        width: columns of patches.
        layout: `"mae"` or `"moco_v3"`.
        temperature: base of the geometric frequencies.

    Returns:
        A float32 array of shape `(height * width, dim)`, computed in float64.

    Example:

    >>> sincos_position_embedding(32, 4, 4).shape
    (16, 32)

    Reference:
        He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, section 3 and the
        appendix; Chen et al., An Empirical Study of Training Self-Supervised Vision
        Transformers, 2021, section 4.
    """
    if dim <= 0 or dim % 4:
        raise ValueError(
            "A 2-D sine-cosine position embedding needs a width that is a positive multiple of 4 "
            f"(sine and cosine of two coordinates). Received: dim={dim}"
        )
    frequencies = temperature ** (-np.arange(dim // 4, dtype=np.float64) / (dim // 4))
    rows = np.arange(height, dtype=np.float64)[:, None] * frequencies
    columns = np.arange(width, dtype=np.float64)[:, None] * frequencies
    rows = np.concatenate([np.sin(rows), np.cos(rows)], axis=1)[:, None].repeat(width, axis=1)
    columns = np.concatenate([np.sin(columns), np.cos(columns)], axis=1)[None].repeat(
        height, axis=0
    )
    if layout == "mae":
        table = np.concatenate([columns, rows], axis=-1)
    elif layout == "moco_v3":
        table = np.concatenate([rows, columns], axis=-1)
    else:
        raise ValueError(f'`layout` must be "mae" or "moco_v3". Received: layout={layout!r}')
    return table.reshape(height * width, dim).astype("float32")


def bicubic_matrix(
    size: int, new_size: int, scale: float | None = None, antialias: bool = False
) -> np.ndarray:
    """One axis of PyTorch's bicubic interpolation as a matrix.

    The papers' codes resize position embeddings with `torch.nn.functional.interpolate`, so
    its two definitions are the ones to meet: without antialiasing the kernel has `a = -0.75` and
    clamps at the border, with it `a = -0.5` and the kernel is cut at the border and renormalised.
    The destination sample `i` looks at `(i + 0.5) / scale - 0.5` in the source.

    Args:
        size: number of source samples.
        new_size: number of samples wanted.
        scale: magnification that maps coordinates. `new_size / size` when `None`; DINO passes
            `(new_size + 0.1) / size`.
        antialias: widen the kernel when shrinking.

    Returns:
        A float64 array `(new_size, size)`; rows sum to one.
    """
    if antialias and new_size == size:
        return np.eye(size)  # such an axis is left alone there, whatever the scale
    scale = new_size / size if scale is None else scale
    a = -0.5 if antialias else -0.75
    stretch = max(1.0, 1.0 / scale) if antialias else 1.0
    centers = (np.arange(new_size) + 0.5) / scale - 0.5
    if antialias:
        sources = np.arange(size)
        distance = np.abs(centers[:, None] - sources[None]) / stretch
        matrix = _cubic(distance, a)
        return matrix / matrix.sum(axis=1, keepdims=True)
    matrix = np.zeros((new_size, size))
    first = np.floor(centers).astype(int) - 1
    for tap in range(4):
        weights = _cubic(np.abs(centers - (first + tap)), a)
        np.add.at(matrix, (np.arange(new_size), np.clip(first + tap, 0, size - 1)), weights)
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def grid_interpolation_matrix(
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    offset: float = 0.0,
    antialias: bool = False,
) -> np.ndarray:
    """Matrix `(new_rows * new_columns, rows * columns)` that resizes a flattened grid of vectors.

    Args:
        grid: `(rows, columns)` of the table.
        new_grid: `(rows, columns)` wanted.
        offset: added to the new size before it is divided into a scale: 0.1 in DINO and in
            DINOv2 without registers (it guards against a rounding problem there), else 0.
        antialias: see `bicubic_matrix`.
    """
    axes = [
        bicubic_matrix(old, new, scale=(new + offset) / old, antialias=antialias)
        for old, new in zip(grid, new_grid, strict=True)
    ]
    return np.kron(*axes).astype("float32")


def rotary_angles(height: int, width: int, head_dim: int, theta: float = 100.0) -> np.ndarray:
    """Angles of axial rotary position embedding over a grid of patches.

    With `m = head_dim / 4` frequencies `w_i = theta ** (-i / m)` and patch centres `(y, x)` in
    `[-1, 1]`, the angles of a patch are `2 pi [y w, x w]`, twice. They depend on the relative
    place in the picture, so they hold for any image size.

    Args:
        height: rows of patches.
        width: columns of patches.
        head_dim: width of one attention head, a multiple of 4.
        theta: base of the geometric frequencies.

    Returns:
        A float64 array `(height * width, head_dim)`, rows in reading order.

    Example:

    >>> rotary_angles(4, 4, 8).shape
    (16, 8)

    Reference:
        Simeoni et al., DINOv3, 2025, section 3.2; Heo et al., Rotary Position Embedding for Vision
        Transformer, 2024.
    """
    if head_dim <= 0 or head_dim % 4:
        raise ValueError(
            "Rotary positions need attention heads whose width is a multiple of 4. "
            f"Received: head_dim={head_dim}"
        )
    frequencies = theta ** (-np.arange(head_dim // 4, dtype=np.float64) / (head_dim // 4))
    y, x = (2 * (np.arange(n) + 0.5) / n - 1 for n in (height, width))
    centers = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = (2 * np.pi * centers * frequencies).reshape(height * width, head_dim // 2)
    return np.tile(angles, (1, 2))


def rotate(x, rotary):
    """Turns queries or keys of patches by their angles; tokens in front stay as they are.

    Channel `i` of the first half and channel `i` of the second are one point of a plane.

    Args:
        x: `(batch, tokens, heads, head_dim)`.
        rotary: cosines and sines, each `(patches, head_dim)` or `(batch, patches, head_dim)`, of
            the last tokens.

    Returns:
        As `x`.
    """
    cos, sin = (ops.expand_dims(table, axis=-2) for table in rotary)
    prefix = x.shape[1] - cos.shape[-3]
    patches = x[:, prefix:]
    first, second = ops.split(patches, 2, axis=-1)
    turned = patches * ops.cast(cos, x.dtype)
    turned = turned + ops.concatenate([-second, first], axis=-1) * ops.cast(sin, x.dtype)
    return ops.concatenate([x[:, :prefix], turned], axis=1) if prefix else turned
