"""Patch features as colours: their principal components."""

import numpy as np
from PIL import Image

from keras_ssl.evaluation.attention_segmentation import upsample
from keras_ssl.evaluation.patches import patch_features
from keras_ssl.visualization.attention import displayable
from keras_ssl.visualization.pictures import picture_grid


def principal_components(features, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Mean and directions of greatest variance of vectors.

    Args:
        features: `(N, D)`.
        count: number of directions, at most `min(N, D)`.

    Returns:
        `mean (D,)` and `components (count, D)`, float64, orthonormal, by falling variance; each
        one's sign is such that its entry of greatest size is positive.
    """
    features = np.asarray(features, "float64")
    if features.ndim != 2 or not 1 <= count <= min(features.shape):
        raise ValueError(
            f"Expected (N, D) with at least {count} rows and columns. "
            f"Received: shape {features.shape}"
        )
    mean = features.mean(axis=0)
    _, vectors = np.linalg.eigh((features - mean).T @ (features - mean))
    components = vectors.T[::-1][:count]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
    return mean, components * np.sign(largest)


def feature_pca(
    model,
    images,
    foreground: bool = False,
    layer: int | None = None,
    image_size=None,
    batch_size: int = 64,
) -> np.ndarray:
    """The three first principal components of all patches' features as red, green and blue.

    The components are those of the patches of all images together, so the same colour means the
    same thing in each. Values are stretched from their 1st to their 99th percentile.

    Args:
        model: whatever `keras_ssl.evaluation.patch_features` takes; or `None`: then `images` are
            features `(N, rows, columns, D)` already.
        images: `(N, height, width, channels)`.
        foreground: as in DINOv2: patches on one side of the mean along a first component are left
            black, and the colours are the components of the others. The side that holds more
            of the images' border is taken for the background.
        layer: block of a `ViTBackbone`; `None` for the output.
        image_size: int or `(height, width)` in place of the preprocessor's size.
        batch_size: images at a time.

    Returns:
        float32 `(N, rows, columns, 3)` in [0, 1].

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4
    )
    colours = keras_ssl.visualization.feature_pca(backbone, np.random.rand(2, 32, 32, 3))
    colours.shape  # (2, 8, 8, 3)
    ```

    Reference:
        Oquab et al. (DINOv2), 2023, figure 1 and section 7.5.
    """
    if model is None:
        features = np.asarray(images, "float32")
    else:
        features = patch_features(model, images, layer, image_size, batch_size)
    if features.ndim != 4 or features.shape[-1] < 3:
        raise ValueError(
            "Expected features (N, rows, columns, D) with D of 3 or more. "
            f"Received: shape {features.shape}"
        )
    flat = features.reshape(-1, features.shape[-1])
    keep = np.ones(len(flat), "bool")
    if foreground:
        mean, components = principal_components(flat, 1)
        side = ((flat - mean) @ components[0] > 0).reshape(features.shape[:3])
        border = np.ones(features.shape[1:3], "bool")
        border[1:-1, 1:-1] = False
        keep = (side if side[:, border].mean() <= 0.5 else ~side).reshape(-1)
        if keep.sum() < 3:
            raise ValueError("There are fewer than three patches of foreground: use more images.")
    mean, components = principal_components(flat[keep], 3)
    projected = (flat[keep] - mean) @ components.T
    low, high = np.percentile(projected, (1, 99), axis=0)
    colours = np.zeros((len(flat), 3), "float32")
    colours[keep] = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colours.reshape(*features.shape[:3], 3)


def feature_pca_grid(
    model,
    images,
    foreground: bool = False,
    interpolation: str = "bilinear",
    columns: int = 8,
    zoom: int = 2,
    **options,
) -> Image.Image:
    """A row of pictures above a row of their `feature_pca`, and so on.

    Args:
        model: whatever `keras_ssl.evaluation.patch_features` takes.
        images: `(N, height, width, 3)`.
        foreground: leave the background black, as in `feature_pca`.
        interpolation: `"bilinear"` or `"nearest"` enlargement of the colours.
        columns: pictures in a row.
        zoom: whole number by which pictures are enlarged.
        **options: of `feature_pca`.

    Returns:
        A `PIL.Image.Image`.

    Example:

    ```python
    keras_ssl.visualization.feature_pca_grid(model, images[:16]).save("features.png")
    ```
    """
    pictures = displayable(images)
    colours = np.moveaxis(feature_pca(model, images, foreground, **options), -1, 1)
    colours = np.moveaxis(upsample(colours, pictures.shape[1:3], interpolation), 1, -1)
    colours = (colours * 255).round().astype("uint8")
    columns = min(columns, len(pictures))
    rows = []
    for start in range(0, len(pictures), columns):
        for part in (pictures, colours):
            row = np.full((columns, *part.shape[1:]), 255, "uint8")
            row[: len(part[start : start + columns])] = part[start : start + columns]
            rows.append(row)
    return picture_grid(np.concatenate(rows), columns=columns, zoom=zoom)
