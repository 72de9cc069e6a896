"""Frames of video files."""

import os
import pathlib
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageSequence

from keras_ssl.datasets.sources import fit_to_size

# What Pillow reads itself; all others need PyAV or imageio.
_ANIMATIONS = (".gif", ".png", ".apng", ".webp", ".avif", ".tif", ".tiff")


def read_video(
    path: str | os.PathLike,
    image_size: int | tuple[int, int] | None = None,
    *,
    every: int = 1,
    max_frames: int | None = None,
) -> np.ndarray:
    """Read the frames of a video.

    Animated GIF, PNG, WebP and AVIF need nothing; MP4 and other films need PyAV (`pip install av`)
    or imageio with a plugin for them.

    Args:
        path: the file.
        image_size: int or (height, width) in pixels: the largest centred part of that shape is
            resized, with antialiasing. None keeps the frames as they are.
        every: int, take every so-manieth frame.
        max_frames: int, the most that are taken; None for all.

    Returns:
        uint8, (T, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no frames that can be read, or an option is out of range.
        ImportError: if the kind of file needs a package that is not installed.

    Example:

    >>> frames = keras_ssl.datasets.read_video("cat.gif", image_size=64, every=2)
    >>> pairs = keras_ssl.datasets.ImagePairs(
    ...     frames, np.zeros(len(frames)), times=np.arange(len(frames)), max_gap=3
    ... )
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no such file. Received: path={path}")
    if every < 1 or (max_frames is not None and max_frames < 1):
        raise ValueError(
            "`every` and `max_frames` must be 1 or more. "
            f"Received: every={every}, max_frames={max_frames}"
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    read = _pillow if path.suffix.lower() in _ANIMATIONS else _film_reader(path)
    frames = []
    try:
        for number, frame in enumerate(read(path)):
            if max_frames is not None and len(frames) == max_frames:
                break
            if number % every == 0:
                picture = Image.fromarray(frame)
                frames.append(np.asarray(picture if size is None else fit_to_size(picture, size)))
    except (OSError, EOFError, SyntaxError) as error:
        raise ValueError(f"The video cannot be read: {error}. Received: path={path}") from error
    if not frames:
        raise ValueError(f"The file has no frames. Received: path={path}")
    return np.stack(frames)


def read_videos(
    paths, image_size: int | tuple[int, int], *, every: int = 1, max_frames: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read several videos as one array of frames, for `ImagePairs`.

    Args:
        paths: the files.
        image_size, every, max_frames: of each, as for `read_video`.

    Returns:
        `(frames, numbers, times)`: uint8 (N, H, W, 3); the number of each frame's video, from 0,
        (N,); and its number in that, (N,).

    Example:

    >>> frames, numbers, times = keras_ssl.datasets.read_videos(["a.gif", "b.gif"], 64)
    >>> pairs = keras_ssl.datasets.ImagePairs(frames, numbers, 64, times, max_gap=3)
    """
    videos = [read_video(path, image_size, every=every, max_frames=max_frames) for path in paths]
    lengths = [len(video) for video in videos]
    times = np.concatenate([np.arange(length) for length in lengths])
    return np.concatenate(videos), np.repeat(np.arange(len(videos)), lengths), times


def write_video(path: str | os.PathLike, frames: np.ndarray, milliseconds: int = 80) -> None:
    """Write frames as an animated WebP, GIF or PNG, as the suffix of the path says.

    Args:
        path: the file.
        frames: uint8, (T, H, W, 3).
        milliseconds: int, how long each is shown.

    Raises:
        ValueError: for another suffix.

    Example:

    >>> keras_ssl.datasets.write_video("film.webp", frames)
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in (".webp", ".gif", ".png", ".apng"):
        raise ValueError(f"Animations end in .webp, .gif, .png or .apng. Received: path={path}")
    first, *rest = (Image.fromarray(frame) for frame in frames)
    options = {"format": "PNG"} if path.suffix.lower() == ".apng" else {}
    first.save(
        path,
        save_all=True,
        append_images=rest,
        duration=milliseconds,
        loop=0,
        quality=90,
        **options,
    )


def _pillow(path) -> Iterator[np.ndarray]:
    with Image.open(path) as video:
        for frame in ImageSequence.Iterator(video):
            yield np.asarray(frame.convert("RGB"))


def _av(path):
    import av

    with av.open(os.fspath(path)) as video:
        for frame in video.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _imageio(path):
    import imageio.v3

    yield from imageio.v3.imiter(path)


def _film_reader(path):
    for package, read in (("av", _av), ("imageio", _imageio)):
        if find_spec(package) is not None:
            return read
    raise ImportError(
        f"Reading {path.suffix or 'this file'} needs `pip install av`; animated GIF, PNG and WebP "
        "need nothing."
    )
