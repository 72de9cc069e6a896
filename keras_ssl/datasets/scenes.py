"""Pictures with known masks: drawings pasted on photographs."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_ssl.datasets.emoji import EmojiDataset, composite


def paste_on_photos(
    data: EmojiDataset,
    photos: np.ndarray,
    image_size: int = 64,
    scale: Sequence[float] = (0.5, 0.9),
    photo_scale: Sequence[float] = (1.0, 1.0),
    seed: int = 0,
) -> EmojiDataset:
    """Paste each picture, at a random size and place, on a photograph drawn at random.

    What comes out is a set for segmentation: real drawings before real backgrounds, with exact
    masks. Give `photos` of other pictures for training than for testing.

    Args:
        data: RGBA pictures, as `load_emoji()` gives them without a background.
        photos: uint8, (M, H, W, 3), e.g. CIFAR-10's. A square at a random place of it is resized
            (bicubic) to `image_size`, and mirrored or not.
        image_size: int, side of the result in pixels.
        scale: (smallest, largest) side of the drawing over `image_size`, each in (0, 1]; drawn
            uniformly.
        photo_scale: (smallest, largest) side of the square over the photograph's shorter side, each
            in (0, 1]; drawn uniformly. A small part looks like a background out of focus.
        seed: int; the same seed gives the same scenes.

    Returns:
        An `EmojiDataset` with the rows and labels of `data`: `images` are RGB, uint8
        (N, image_size, image_size, 3), and `alphas` the masks in their new places, uint8
        (N, image_size, image_size), 255 inside.

    Raises:
        ValueError: if `data` has a background already, or for photos or a scale that do not fit.

    Example:

    ```python
    emoji = keras_ssl.datasets.load_emoji(styles="noto")
    photos, _, _ = keras_ssl.datasets.load_arrays("cifar10.tar.gz", subset="train")
    scenes = keras_ssl.datasets.paste_on_photos(emoji, photos, image_size=64)
    masks = scenes.alphas > 127  # bool (1689, 64, 64)
    ```
    """
    from PIL import Image

    photos = np.asarray(photos)
    if data.images.shape[-1] != 4:
        raise ValueError(
            "Pasting needs RGBA pictures: call load_emoji without a background. "
            f"Received: images of shape {data.images.shape}"
        )
    if photos.ndim != 4 or photos.shape[-1] != 3 or photos.dtype != np.uint8 or not len(photos):
        raise ValueError(
            "photos must be uint8 of shape (M, H, W, 3). "
            f"Received: photos of shape {photos.shape}, dtype {photos.dtype}"
        )
    for name, (smallest, largest) in (("scale", scale), ("photo_scale", photo_scale)):
        if not 0 < smallest <= largest <= 1:
            raise ValueError(
                f"{name} must be 0 < smallest <= largest <= 1. Received: {name}="
                f"{(smallest, largest)}"
            )
    rng = np.random.default_rng(seed)
    drawings = np.zeros((len(data), image_size, image_size, 4), "uint8")
    under = np.empty((len(data), image_size, image_size, 3), "uint8")
    for row, picture in enumerate(data.images):
        photo = photos[rng.integers(len(photos))]
        height, width = photo.shape[:2]
        side = max(1, round(rng.uniform(*photo_scale) * min(height, width)))
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        square = Image.fromarray(photo[y : y + side, x : x + side])
        square = np.asarray(square.resize((image_size, image_size), Image.Resampling.BICUBIC))
        under[row] = square[:, ::-1] if rng.random() < 0.5 else square

        size = max(1, round(rng.uniform(*scale) * image_size))
        # Pillow premultiplies RGBA before resampling, so no dark rims appear.
        small = Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS)
        y, x = rng.integers(image_size - size + 1, size=2)
        drawings[row, y : y + size, x : x + size] = np.asarray(small)
    return dataclasses.replace(
        data,
        images=composite(drawings, under),
        alphas=np.ascontiguousarray(drawings[..., 3]),
    )


def moving_scene(
    drawing: np.ndarray, photo: np.ndarray, frames: int = 16, image_size: int = 64, seed: int = 0
) -> np.ndarray:
    """A short film of a drawing that moves, turns and grows before a photograph that moves too.

    Place, angle, size and the part of the photograph go evenly from one random value to another.

    Args:
        drawing: uint8 RGBA, (h, w, 4), as `load_emoji()` gives them without a background.
        photo: uint8, (h, w, 3); enlarged to twice `image_size`.
        frames: int, how many.
        image_size: int, side of a frame in pixels.
        seed: int.

    Returns:
        uint8, (frames, image_size, image_size, 3).

    Example:

    >>> drawing = keras_ssl.datasets.load_emoji("noto").images[0]
    >>> photo = np.random.default_rng(0).integers(0, 256, (2, 2, 3), "uint8")
    >>> keras_ssl.datasets.moving_scene(drawing, photo, frames=8).shape
    (8, 64, 64, 3)
    """
    from PIL import Image

    # x, y and size over the side, degrees, and the corner of the photo's part over the side.
    low, high = [-0.15, -0.15, 0.5, -40, 0, 0], [0.45, 0.45, 0.8, 40, 1, 1]
    first, last = np.random.default_rng(seed).uniform(low, high, (2, 6))
    background = Image.fromarray(photo).resize((2 * image_size,) * 2, Image.Resampling.BICUBIC)
    film = np.empty((frames, image_size, image_size, 3), "uint8")
    for row, moment in enumerate(np.linspace(0, 1, frames)):
        x, y, scale, angle, left, top = first + moment * (last - first)
        left, top = round(left * image_size), round(top * image_size)
        picture = background.crop((left, top, left + image_size, top + image_size))
        size = max(1, round(scale * image_size))
        thing = Image.fromarray(drawing).resize((size, size), Image.Resampling.LANCZOS)
        thing = thing.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        picture.paste(thing, (round(x * image_size), round(y * image_size)), thing)
        film[row] = np.asarray(picture)
    return film
