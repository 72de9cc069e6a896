"""The embedded picture set: emoji of 1,966 concepts in six drawing styles."""

import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np

EMOJI_STYLES = ("noto", "noto_v1", "fluent", "fluent_flat", "twemoji", "emojione")
EMOJI_GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)


@dataclasses.dataclass(frozen=True, repr=False)
class EmojiDataset:
    """N pictures with all that is known of each; all fields have N rows in the same order.

    Attributes:
        images: uint8, (N, size, size, 4) RGBA, or (N, size, size, 3) where a background was given.
        alphas: uint8, (N, size, size): 255 inside the drawing, 0 outside: a segmentation mask.
        captions: str, (N,): the concept in words, e.g. "grinning face".
        labels: int32, (N,): the group as an index into `class_names`.
        groups: str, (N,): one of nine, e.g. "Animals & Nature".
        subgroups: str, (N,): one of about 100, e.g. "animal-bird".
        styles: str, (N,): one of `EMOJI_STYLES`.
        concept_ids: int32, (N,): equal for the same concept in different styles; from 0 to 1965,
            whatever was selected.
        codes: str, (N,): the Unicode code points, e.g. "1f600".
        class_names: tuple of the nine group names.
    """

    images: np.ndarray
    alphas: np.ndarray
    captions: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    subgroups: np.ndarray
    styles: np.ndarray
    concept_ids: np.ndarray
    codes: np.ndarray
    class_names: tuple[str, ...] = EMOJI_GROUPS

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return (
            f"<EmojiDataset: {len(self)} pictures {shape}, {len(np.unique(self.concept_ids))} "
            f"concepts, styles {sorted(set(self.styles.tolist()))}>"
        )

    def select(self, index) -> "EmojiDataset":
        """Take some of the pictures.

        Args:
            index: a boolean mask (N,), integer positions, or a slice.

        Returns:
            An `EmojiDataset` with those rows.

        Example:

        >>> data = keras_ssl.datasets.load_emoji(styles="twemoji")
        >>> animals = data.select(data.groups == "Animals & Nature")
        """
        rows = {
            field.name: getattr(self, field.name)[index]
            for field in dataclasses.fields(self)
            if field.name != "class_names"
        }
        return dataclasses.replace(self, **rows)

    def split(
        self,
        held_out_style: str | Sequence[str] | None = None,
        test_fraction: float | None = None,
        seed: int = 0,
    ) -> tuple["EmojiDataset", "EmojiDataset"]:
        """Split into a train and a test part, by style or by concept.

        By style, the test part shows known things drawn by another hand. By concept, the test part
        shows things never seen in any style: every picture of a concept is on the same side, on
        which side depends only on `seed` and the concept's code, not on what else was selected.

        Args:
            held_out_style: style or styles that make up the test part.
            test_fraction: share of the concepts in the test part, in (0, 1).
            seed: int, chooses the concepts of the test part.

        Returns:
            (train, test), two `EmojiDataset`.

        Raises:
            ValueError: unless exactly one of `held_out_style` and `test_fraction` is given, or if a
                part would be empty.

        Example:

        >>> train, test = keras_ssl.datasets.load_emoji().split(held_out_style="twemoji")
        >>> train, test = keras_ssl.datasets.load_emoji().split(test_fraction=0.2)
        """
        if (held_out_style is None) == (test_fraction is None):
            raise ValueError(
                "Give either held_out_style or test_fraction. Received: "
                f"held_out_style={held_out_style}, test_fraction={test_fraction}"
            )
        if held_out_style is not None:
            held_out = _choice("held_out_style", held_out_style, EMOJI_STYLES)
            test = np.isin(self.styles, held_out)
        else:
            if not 0 < test_fraction < 1:
                raise ValueError(
                    f"test_fraction must lie in (0, 1). Received: test_fraction={test_fraction}"
                )
            # Hashing instead of shuffling keeps a concept's side when other concepts come or go.
            codes, inverse = np.unique(self.codes, return_inverse=True)
            digests = (hashlib.sha256(f"{seed}:{code}".encode()).digest() for code in codes)
            values = np.array([int.from_bytes(digest[:8], "big") for digest in digests])
            test = (values.astype("float64") / 2.0**64 < test_fraction)[inverse]
        if test.all() or not test.any():
            raise ValueError(
                "One part of the split is empty. Load more styles or change test_fraction. "
                f"Received: held_out_style={held_out_style}, test_fraction={test_fraction}, "
                f"styles={sorted(set(self.styles.tolist()))}"
            )
        return self.select(~test), self.select(test)

    def save_to_folder(self, path: str | os.PathLike, by: str = "groups") -> str:
        """Write the pictures as a folder of class folders, as one's own pictures may lie.

        Files are `<class>/<caption> <style>.png`; what a file name cannot hold is replaced by "-".

        Args:
            path: the folder; it may exist, and files of the same names are written over.
            by: the field that names the class folders: "groups", "subgroups", "captions" or
                "styles".

        Returns:
            The path, as a str.

        Raises:
            ValueError: for another field.

        Example:

        >>> data = keras_ssl.datasets.load_emoji(styles="noto", background=(255, 255, 255))
        >>> data.save_to_folder("emoji")  # emoji/Food & Drink/red apple noto.png, ...
        """
        from PIL import Image

        fields = _choice("by", by, ("groups", "subgroups", "captions", "styles"))
        for image, name, caption, style in zip(
            self.images, getattr(self, fields[0]), self.captions, self.styles, strict=True
        ):
            folder = os.path.join(path, _file_name(name))
            os.makedirs(folder, exist_ok=True)
            file = os.path.join(folder, f"{_file_name(caption)} {style}.png")
            Image.fromarray(image).save(file)
        return os.fspath(path)


def load_emoji(
    styles: str | Sequence[str] | None = None,
    image_size: int = 64,
    background: Sequence[int] | np.ndarray | Callable | None = None,
    groups: str | Sequence[str] | None = None,
) -> EmojiDataset:
    """Load the embedded real pictures: emoji of 1,966 concepts drawn in up to six styles.

    One set that serves every method: nine groups as labels for k-NN, concept names as captions,
    alpha as segmentation mask, and styles to hold out. 9,497 pictures, no skin-tone variants, from
    Noto Emoji and Noto Emoji v1 (Apache-2.0), Fluent Emoji and Fluent Emoji Flat (MIT), Twemoji and
    Emoji One 2 (CC-BY-4.0: name the authors as in ATTRIBUTION.md beside the data when you pass
    pictures on). Nothing is downloaded; decoding takes about a second.

    Args:
        styles: one of `EMOJI_STYLES` ("noto", "noto_v1", "fluent", "fluent_flat", "twemoji",
            "emojione"), several, or None for all six.
        image_size: int, side in pixels. The set is stored at 64; other sizes are resampled from
            that (Lanczos, on premultiplied colours).
        background: None keeps RGBA (transparent pixels have RGB 0). Otherwise what to put under the
            drawings, giving RGB: a colour `(r, g, b)` in [0, 255], uint8 images `(H, W, 3)` or
            `(N, H, W, 3)`, or a function `(count, image_size) -> (count, H, W, 3)`.
        groups: one of `EMOJI_GROUPS`, several, or None for all nine.

    Returns:
        An `EmojiDataset`, ordered by style, then by concept in Unicode's order.

    Raises:
        ValueError: for an unknown style or group, or a size or background that does not fit.

    Example:

    >>> data = keras_ssl.datasets.load_emoji(background=(255, 255, 255))
    >>> data.images.shape, data.captions[0], data.groups[0]
    ((9497, 64, 64, 3), 'grinning face', 'Smileys & Emotion')
    >>> train, test = data.split(held_out_style="twemoji")
    """
    styles = EMOJI_STYLES if styles is None else _choice("styles", styles, EMOJI_STYLES)
    groups = EMOJI_GROUPS if groups is None else _choice("groups", groups, EMOJI_GROUPS)
    if not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be a positive int. Received: image_size={image_size}")
    parts = []
    path = resources.files(__package__).joinpath("data/emoji64.zip")
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        index = json.loads(archive.read("index.json"))
        concepts = {
            key: np.array([concept[key] for concept in index["concepts"]])
            for key in ("caption", "group", "subgroup", "code")
        }
        for entry in index["styles"]:
            if entry["name"] not in styles:
                continue
            ids = np.array(entry["concepts"], "int32")
            images = _read_sheet(archive.read(f"{entry['name']}.webp"), len(ids), index)
            keep = np.isin(concepts["group"][ids], groups)
            parts.append((images[keep], ids[keep], np.full(keep.sum(), entry["name"])))
    images, ids, style_names = (np.concatenate(column) for column in zip(*parts, strict=True))
    if image_size != images.shape[1]:
        images = _resize(images, image_size)
    group_names = concepts["group"][ids]
    alphas = np.ascontiguousarray(images[..., 3])
    return EmojiDataset(
        images=images if background is None else composite(images, background),
        alphas=alphas,
        captions=concepts["caption"][ids],
        labels=np.array([EMOJI_GROUPS.index(name) for name in group_names], "int32"),
        groups=group_names,
        subgroups=concepts["subgroup"][ids],
        styles=style_names,
        concept_ids=ids,
        codes=concepts["code"][ids],
    )


def composite(images: np.ndarray, background: Sequence[int] | np.ndarray | Callable) -> np.ndarray:
    """Put RGBA pictures on a background: `alpha * rgb + (1 - alpha) * background`, rounded.

    Args:
        images: uint8, (N, H, W, 4).
        background: a colour `(r, g, b)` in [0, 255], images `(H, W, 3)` or `(N, H, W, 3)`, or a
            function `(count, image_size) -> (count, H, W, 3)`.

    Returns:
        uint8, (N, H, W, 3).

    Raises:
        ValueError: if the background does not fit the pictures.

    Example:

    >>> data = keras_ssl.datasets.load_emoji(styles="noto")
    >>> rng = np.random.default_rng(0)
    >>> noise = rng.integers(0, 256, (len(data), 64, 64, 3), "uint8")
    >>> images = keras_ssl.datasets.composite(data.images, noise)
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 4 or images.dtype != np.uint8:
        raise ValueError(
            "composite needs uint8 RGBA images of shape (N, H, W, 4). "
            f"Received: images of shape {images.shape}, dtype {images.dtype}"
        )
    count, height, width, _ = images.shape
    under = np.asarray(background(count, height) if callable(background) else background)
    if under.shape not in ((3,), (height, width, 3), (count, height, width, 3)):
        raise ValueError(
            "background must be a colour (r, g, b), or images of shape "
            f"{(height, width, 3)} or {(count, height, width, 3)}, or a function that returns one "
            f"of these. Received: background of shape {under.shape}"
        )
    if under.min() < 0 or under.max() > 255:
        raise ValueError(
            "background values must lie in [0, 255]. "
            f"Received: background from {under.min()} to {under.max()}"
        )
    output = np.empty((count, height, width, 3), "uint8")
    for start in range(0, count, 256):  # in pieces, which stay in the cache
        piece = slice(start, start + 256)
        alpha = images[piece, ..., 3:].astype("uint16")
        below = (under[piece] if under.ndim == 4 else under).astype("uint16")
        total = alpha * images[piece, ..., :3] + (255 - alpha) * below + 128
        output[piece] = (total + (total >> 8)) >> 8  # = round(sum / 255), exactly, in 16 bits
    return output


def _choice(name, values, allowed):
    """A str or several, as a tuple, each checked to be known."""
    values = (values,) if isinstance(values, str) else tuple(values)
    unknown = [value for value in values if value not in allowed]
    if unknown or not values:
        raise ValueError(f"{name} must be of {list(allowed)}. Received: {name}={list(values)}")
    return values


def _file_name(text):
    return re.sub(r'[\\/:*?"<>|]+', "-", str(text)).strip(". ")


def _read_sheet(content, count, index):
    from PIL import Image

    size, columns = index["size"], index["columns"]
    sheet = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    # The encoder stores any RGB under fully transparent pixels that suits it; drawn was zero.
    sheet = sheet * (sheet[..., 3:] > 0)
    cells = sheet.reshape(-1, size, columns, size, 4).transpose(0, 2, 1, 3, 4)
    return cells.reshape(-1, size, size, 4)[:count]


def _resize(images, size):
    from PIL import Image

    resized = np.empty((len(images), size, size, 4), "uint8")
    for row, image in enumerate(images):
        # Pillow premultiplies RGBA before resampling, so no dark rims appear.
        picture = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
        resized[row] = np.asarray(picture)
    resized[resized[..., 3] == 0] = 0
    return resized
