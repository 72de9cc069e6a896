"""Find the images below a folder or inside an archive, and decode them."""

import dataclasses
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
# Top-level folders that say what an image is for, not what it shows.
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "unlabeled"}
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclasses.dataclass
class ImageFiles:
    """The images found: names relative to the root, and for each its path or its content."""

    names: list[str]
    sources: list[str | bytes]
    root: str

    def keep(self, rows: Sequence[int]) -> "ImageFiles":
        return ImageFiles(
            [self.names[row] for row in rows], [self.sources[row] for row in rows], self.root
        )


def find_images(path: str | os.PathLike, subset: str | None, max_bytes: int) -> ImageFiles:
    """List the images below `path`, sorted by name.

    Args:
        path: a folder, or a .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .zip file.
        subset: only what lies below this folder, e.g. "train"; None for everything.
        max_bytes: the most that an archive's images may hold in memory, still compressed.

    Raises:
        FileNotFoundError: if there is no such path or subset.
        ValueError: if nothing in it is an image, or an archive is hostile or too large.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no such folder or archive. Received: path={path}")
    if path.is_dir():
        entries = _walk(path)
    elif path.name.lower().endswith(ARCHIVE_SUFFIXES):
        entries = _read_archive(path, max_bytes)
    else:
        raise ValueError(
            f"path must be a folder or an archive ({', '.join(ARCHIVE_SUFFIXES)}). "
            f"Received: path={path}"
        )
    if not entries:
        raise ValueError(f"There are no files below this path. Received: path={path}")
    if subset is not None:
        inside = _below(entries, PurePosixPath(subset))
        if not inside:
            folders = sorted({PurePosixPath(n).parts[0] for n in entries if "/" in n})
            raise FileNotFoundError(
                f"There is no folder {subset!r} with files in it; there are {folders[:20]}. "
                f"Received: path={path}, subset={subset}"
            )
        entries = inside
    names = sorted(name for name in entries if _is_image_name(name))
    if not names:
        suffixes = Counter(PurePosixPath(name).suffix or "(none)" for name in entries)
        raise ValueError(
            f"None of the {len(entries)} files is an image; their suffixes are "
            f"{dict(suffixes.most_common(8))}, and images end in {' '.join(IMAGE_SUFFIXES)}. "
            f"Received: path={path}, subset={subset}"
        )
    return ImageFiles(names, [entries[name] for name in names], str(path))


def _is_image_name(name):
    # Names that start with a dot are leftovers of other programs, such as macOS' "._photo.jpg".
    name = PurePosixPath(name).name
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _below(entries, folder):
    """The entries below `folder`, which may itself lie in one folder that holds everything."""
    for root in (PurePosixPath(), *{PurePosixPath(PurePosixPath(n).parts[0]) for n in entries}):
        start = str(root / folder) + "/"
        inside = {n[len(start) :]: source for n, source in entries.items() if n.startswith(start)}
        if inside:
            return inside
    return {}


def _walk(root):
    """{relative name: path}; follows symbolic links, but enters no folder twice."""
    entries, visited = {}, set()

    def refuse(error):
        raise PermissionError(f"This folder cannot be read: {error}. Received: path={root}")

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for name in files:
            file = os.path.join(folder, name)
            entries[Path(file).relative_to(root).as_posix()] = file
    return entries


# What the standard library says of broken archives; TypeError of a .tar.gz of three bytes.
_BROKEN_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_BROKEN_ARCHIVE += (EOFError, OSError, RuntimeError, TypeError)


def _read_archive(path, max_bytes):
    """{name: content} of the images in an archive, and {name: b""} of other files.

    Nothing is written to disk and links are left out, so an archive cannot reach outside; one
    that tries is refused all the same. Sizes are counted while reading, since a header can lie.
    """
    entries, total = {}, 0
    try:
        members = _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path)
        for name, read in members:
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if name.startswith(("/", "\\")) or ".." in parts or ":" in (parts or ("",))[0]:
                raise ValueError(
                    f"The archive holds a file that points outside it: {name!r}. It is not to be "
                    f"trusted. Received: path={path}"
                )
            name = "/".join(part for part in parts if part != ".")
            content = b""
            if _is_image_name(name):
                content = read(max_bytes - total + 1)
                total += len(content)
                if total > max_bytes:
                    raise ValueError(
                        f"The archive's images hold more than {max_bytes:,} bytes: unpack it and "
                        "pass the folder, whose files are read one by one, or raise max_bytes. "
                        f"Received: path={path}, max_bytes={max_bytes}"
                    )
            entries[name] = content
    except _BROKEN_ARCHIVE as error:
        raise ValueError(
            f"The archive cannot be read: {error or type(error).__name__}. Received: path={path}"
        ) from error
    return entries


def _tar_members(path):
    with tarfile.open(path, "r|*") as archive:  # a stream: a .tar.gz cannot be read in any order
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member).read


def _zip_members(path):
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as file:
                    yield member.filename, file.read


def open_image(source: str | bytes) -> Image.Image:
    """A file or its content as Pillow's image, of which only the header is read as yet.

    What is no regular file is refused: a pipe would be waited on for ever.
    """
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if not os.path.isfile(source):
        if os.path.islink(source):
            raise OSError("the link points to nothing")
        raise OSError("not a regular file")
    return Image.open(source)


def decode(
    source: str | bytes,
    size: tuple[int, int] | None,
    interpolation: str = "bilinear",
    crop: bool = True,
    background: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
    """Decode one image of any kind to uint8 RGB.

    The first frame of an animation; turned upright as its EXIF says; palette, grey, CMYK and other
    colour modes converted; 16-bit values scaled to 8; transparency put on `background`. JPEG files
    much larger than `size` are decoded at a half, quarter or eighth of their size, never
    below twice `size`.

    Args:
        source: a path, or the file's content.
        size: (height, width) of the result, or None for the image's own.
        interpolation: "bilinear", "bicubic", "lanczos" (all antialiased) or "nearest".
        crop: True resizes the largest centred part of the right aspect ratio; False stretches.
        background: colour in [0, 255] under transparent parts.

    Returns:
        uint8, (height, width, 3).
    """
    with open_image(source) as image:
        if size is not None:
            # Acts on JPEG only, and never shrinks below what it is asked for. The mode stays: for
            # grey and CMYK files Pillow's own conversion is the right one.
            image.draft(None, (2 * max(size), 2 * max(size)))
        image = ImageOps.exif_transpose(image)
        image = _to_rgb(image, background)
    if size is None:
        return np.asarray(image)
    return np.asarray(fit_to_size(image, size, interpolation, crop))


def fit_to_size(
    image: Image.Image,
    size: tuple[int, int],
    interpolation: str = "bilinear",
    crop: bool = True,
) -> Image.Image:
    """An image at another size; arguments as for `decode`."""
    height, width = size
    box = None
    if crop:
        scale = min(image.width / width, image.height / height)
        left = (image.width - width * scale) / 2
        top = (image.height - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
    return image.resize((width, height), INTERPOLATIONS[interpolation], box)


def _to_rgb(image, background):
    if image.mode.startswith("I") or image.mode == "F":
        # More than 8 bits: Pillow would clip instead of scaling.
        values = np.asarray(image).astype("float64")
        if image.mode == "F" and values.size and values.max() <= 1.0:
            values = values * 255.0
        elif image.mode.startswith("I;16") or (values.size and values.max() > 255):
            values = values / 257.0
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype("uint8"))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(under, image)
    return image.convert("RGB")


def why_broken(source: str | bytes, thorough: bool = False) -> str | None:
    """Say what is wrong with an image file, or None.

    By default the header is parsed and the end is looked at, without decoding: that finds files
    that are empty, no image, or cut off. `thorough=True` decodes.
    """
    try:
        with open_image(source) as image:
            kind = image.format
        if not thorough and _is_cut_off(source, kind):
            thorough = True  # trailing rubbish looks the same: only decoding can tell
        if thorough:
            decode(source, None)
    except DECODE_ERRORS as error:
        return describe(error)
    return None


def _is_cut_off(source, kind):
    endings = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x3b"}
    if kind not in endings:
        return True
    if isinstance(source, bytes):
        tail = source[-8:]
    else:
        with open(source, "rb") as file:
            file.seek(-min(8, os.path.getsize(source)), os.SEEK_END)
            tail = file.read()
    return not tail.endswith(endings[kind])


# Pillow's decoders raise all of these on bad files; SyntaxError is its own choice for bad PNGs.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    Image.DecompressionBombError,
)


def describe(error: BaseException) -> str:
    text = str(error)
    if "cannot identify image file" in text:
        return "not an image, or an unknown format"
    return text or type(error).__name__


def label_by_folder(
    names: Sequence[str], labels: str | None, root: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Label each image by the first folder of its name.

    Args:
        names: relative names with "/".
        labels: "inferred" (every image must lie in a folder), "auto" (labels if so, none if not)
            or None.
        root: for the error message.

    Returns:
        (int32 labels (N,) or None, class names); bytes of a name that are no UTF-8 as `\\xff`.
    """
    if labels not in ("auto", "inferred", None):
        raise ValueError(f"labels must be 'auto', 'inferred' or None. Received: labels={labels}")
    if labels is None:
        return None, ()
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    while len({folder[:1] for folder in folders}) == 1 and min(map(len, folders)) > 1:
        folders = [folder[1:] for folder in folders]  # one folder around everything says nothing
    tops = {folder[0].lower() for folder in folders if folder}
    if len(tops) > 1 and tops <= SPLIT_NAMES:
        if labels == "inferred" or min(map(len, folders)) < 2:
            raise ValueError(
                f"The top folders {sorted(tops)} are splits, not classes: pass one as subset=, "
                f"or labels=None. Received: path={root}, labels={labels}"
            )
        folders = [folder[1:] for folder in folders]
    loose = [name for name, folder in zip(names, folders, strict=True) if not folder]
    if loose:
        if labels == "inferred":
            raise ValueError(
                "labels='inferred' needs every image in a folder named after its class; "
                f"{len(loose)} lie outside, such as {loose[0]!r}. Pass labels=None to load them "
                f"without labels. Received: path={root}"
            )
        return None, ()
    classes = sorted({folder[0] for folder in folders})
    index = {name: label for label, name in enumerate(classes)}
    return np.array([index[folder[0]] for folder in folders], "int32"), tuple(
        map(display_name, classes)
    )


def display_name(name: str) -> str:
    """A file's name as text that can be written: bytes that are no UTF-8 as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
