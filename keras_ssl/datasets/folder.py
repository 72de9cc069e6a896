"""Image folders and archives: as a pipeline of batches, or as arrays in memory."""

import hashlib
import itertools
import os
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from keras_ssl.datasets import sources

# Encoded bytes of an archive's images that may stay in memory.
MAX_ARCHIVE_BYTES = 4 * 2**30


class BrokenImageWarning(UserWarning):
    """Some files could not be read as images and were left out."""


class ImageArrays(NamedTuple):
    """Images in memory: uint8 (N, H, W, 3), int32 labels (N,) or None, and the classes' names."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]


def image_folder(
    path: str | os.PathLike,
    image_size: int | tuple[int, int] = 224,
    *,
    labels: str | None = "auto",
    subset: str | None = None,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int | None = None,
    errors: str = "skip",
    interpolation: str = "bilinear",
    crop: bool = True,
    background: tuple[int, int, int] = (255, 255, 255),
    drop_remainder: bool = False,
    backend: str | None = None,
    num_workers: int | None = None,
    check: bool = True,
    max_bytes: int = MAX_ARCHIVE_BYTES,
) -> Any:
    """Read any tree of images as batches of uint8, for `fit`, `predict` and `evaluate`.

    Files are found at any depth, by name: jpeg, png, webp, gif (first frame), bmp, tiff, pnm, avif.
    Grey, palette, CMYK, 16-bit, transparent and EXIF-rotated images become upright RGB. Files are
    decoded by Pillow in threads, which gives the same pixels in both kinds of pipeline; an image
    larger than `image_size` is cropped to its centre and resized with antialiasing.

    Order: by name, or, with `shuffle`, a new permutation every epoch that depends on `seed` and the
    epoch only, the same for both kinds of pipeline. `fit` of the methods says which epoch it is in,
    so a run resumed at `initial_epoch` reads what would have come. Anywhere else a pass over the
    data is the next epoch, from 0, until `dataset.set_epoch(epoch)` says which one it is to be;
    where `fit` is given a pipeline made of this one (`dataset.map(...)`), call it in a callback's
    `on_epoch_begin`.

    Broken files: before anything is read, each file's header and end are looked at (about 0.1 ms a
    file; `check=False` leaves that out). What is broken is named in one warning and left out, or
    with `errors="raise"` refused. A file that turns out broken only while decoding is named in a
    warning and its place is taken by the next readable image, so that the number of batches and the
    place of every other image stay as announced. All are listed in `dataset.broken_files`.

    Args:
        path: a folder; or an archive (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz, .zip), whose image
            files are read into memory, never onto the disk.
        image_size: int or (height, width) in pixels.
        labels: "auto": the first folder of each image's name is its class, if every image lies in a
            folder, otherwise there are no labels. "inferred": the same, but images outside a folder
            are an error. None: no labels.
        subset: read only what lies below this folder, e.g. "train".
        batch_size: int, images a batch.
        shuffle: whether to reorder the images every epoch.
        seed: int, for the order. None draws one.
        errors: "skip" or "raise", for broken files.
        interpolation: "bilinear", "bicubic", "lanczos" (antialiased) or "nearest".
        crop: True takes the largest centred part of the right aspect ratio; False stretches.
        background: colour in [0, 255] under transparent parts.
        drop_remainder: whether to leave out a last, smaller batch.
        backend: "tf.data" or "grain"; None takes tf.data where TensorFlow is installed, otherwise
            grain. Both work with every Keras backend. Keras knows how many batches a tf.data
            pipeline has; for a grain pipeline it says after every epoch that the input ran out,
            which is harmless. grain needs no TensorFlow, and takes no memory of a GPU that
            another library computes on.
        num_workers: int, threads that decode; None for one a core.
        check: whether to look at every file first.
        max_bytes: int, the most that an archive's image files may hold in memory.

    Returns:
        A `tf.data.Dataset` or a `grain.IterDataset`, whose elements are images (B, H, W, 3) uint8,
        or (images, labels (B,) int32). It has the attributes `class_names`, `file_paths` (names
        relative to the root, in unshuffled order), `labels` (N,) or None and `broken_files`
        {name: reason}, and the method `set_epoch`; `len(dataset)` is the number of batches.

    Raises:
        FileNotFoundError: if there is no such path or subset.
        ValueError: if there are no images, an option is unknown, an archive is hostile or too
            large, or with `errors="raise"` a file is broken.
        ImportError: if neither grain nor TensorFlow is installed.

    Example:

    >>> photos = keras_ssl.datasets.image_folder("photos", 96, batch_size=64, shuffle=True, seed=1)
    >>> model.fit(photos, epochs=10)
    """
    backend = _choose_backend(backend)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive int. Received: batch_size={batch_size}")
    reader = _Reader(path, subset, labels, errors, check, max_bytes, num_workers)
    reader.prepare(_size(image_size), interpolation, crop, background)
    if seed is None:
        seed = secrets.randbits(31)
    make = _grain_dataset if backend == "grain" else _tf_dataset
    passes = Passes()
    orders = reader.orders(shuffle, seed, passes)
    dataset = make(reader, batch_size, orders, bool(drop_remainder))
    dataset.set_epoch = passes.set_epoch
    dataset.class_names = reader.class_names
    dataset.file_paths = reader.files.names
    dataset.labels = reader.labels
    dataset.broken_files = reader.broken
    return dataset


def load_arrays(
    path: str | os.PathLike,
    image_size: int | tuple[int, int] | None = None,
    *,
    labels: str | None = "auto",
    subset: str | None = None,
    errors: str = "skip",
    interpolation: str = "bilinear",
    crop: bool = True,
    background: tuple[int, int, int] = (255, 255, 255),
    num_workers: int | None = None,
    verbose: bool = True,
    max_bytes: int = MAX_ARCHIVE_BYTES,
) -> ImageArrays:
    """Read a small folder or archive of images into arrays, with a progress bar.

    Everything is as in `image_folder`, in the order of the names; every file is decoded, so all
    broken ones are left out or refused.

    Args:
        path: a folder, or an archive (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz, .zip).
        image_size: int or (height, width) in pixels; None if all images have one size already.
        labels: "auto", "inferred" or None, as in `image_folder`.
        subset: read only what lies below this folder, e.g. "train".
        errors: "skip" or "raise", for broken files.
        interpolation: "bilinear", "bicubic", "lanczos" or "nearest".
        crop: True takes the centre, False stretches.
        background: colour in [0, 255] under transparent parts.
        num_workers: int, threads that decode; None for one a core.
        verbose: whether to show a progress bar.
        max_bytes: int, the most that an archive's image files, and the images in memory, may hold.

    Returns:
        `ImageArrays(images, labels, class_names)`: uint8 (N, H, W, 3), int32 (N,) or None, names.

    Raises:
        FileNotFoundError, ValueError: as in `image_folder`; also if `image_size` is None and the
            images differ in size, or the images would hold more than `max_bytes`.

    Example:

    >>> images, labels, names = keras_ssl.datasets.load_arrays("cifar10.tar.gz", subset="train")
    >>> images.shape
    (50000, 32, 32, 3)
    """
    reader = _Reader(path, subset, labels, errors, False, max_bytes, num_workers)
    size = None if image_size is None else _size(image_size)
    reader.prepare(size, interpolation, crop, background)
    return reader.read_all(verbose)


class FolderImages:
    """The images of a folder or archive as something that is indexed like an array.

    `images[rows]` decodes those images, in threads: `(len(rows), height, width, 3)` uint8. So a
    set larger than memory can be batched in any order, which a resumed run needs. Everything else
    is as in `image_folder`, but that a file that turns out broken only while decoding is replaced
    by the next readable image of its class, where there are classes; see `replace_within`.

    Args:
        path: a folder, or an archive (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz, .zip).
        image_size: int or (height, width) in pixels.
        subset: read only what lies below this folder, e.g. "train".
        labels, errors, interpolation, crop, background, num_workers, check, max_bytes: as in
            `image_folder`.

    Attributes:
        shape: `(N, height, width, 3)`.
        file_names: relative to the root, in order.
        labels: int32 `(N,)` or None.
        class_names: tuple of str.
        broken_files: {name: reason}.

    Raises:
        FileNotFoundError, ValueError: as in `image_folder`.

    Example:

    >>> photos = keras_ssl.datasets.FolderImages("photos", 96)
    >>> photos[[3, 1]].shape
    (2, 96, 96, 3)
    """

    dtype = np.dtype("uint8")

    def __init__(
        self,
        path: str | os.PathLike,
        image_size: int | tuple[int, int] = 224,
        *,
        labels: str | None = "auto",
        subset: str | None = None,
        errors: str = "skip",
        interpolation: str = "bilinear",
        crop: bool = True,
        background: tuple[int, int, int] = (255, 255, 255),
        num_workers: int | None = None,
        check: bool = True,
        max_bytes: int = MAX_ARCHIVE_BYTES,
    ):
        self._reader = _Reader(path, subset, labels, errors, check, max_bytes, num_workers)
        self._reader.prepare(_size(image_size), interpolation, crop, background)
        self.labels = self._reader.labels
        self.class_names = self._reader.class_names
        self.file_names = list(self._reader.files.names)
        self.broken_files = self._reader.broken
        self.shape = (len(self.file_names), *self._reader.size, 3)
        self.replace_within(self.labels)

    def replace_within(self, groups) -> None:
        """Lets a file that is found broken while decoding be replaced by one of its group only.

        So no picture of one part gets into another, nor under another label. A broken file without
        a readable one in its group is then an error.

        Args:
            groups: `(N,)`, equal within a group; None for a single one.
        """
        self._reader.groups = None if groups is None else np.asarray(groups)

    def fingerprint(self) -> dict:
        """Number of the files, and a hash of their names and sizes: equal for the same pictures."""
        digest = hashlib.sha256()
        for name, source in zip(self._reader.files.names, self._reader.files.sources, strict=True):
            size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
            digest.update(os.fsencode(f"{name}\0{size}\0"))
        return {"files": len(self), "sha256": digest.hexdigest()}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        chosen = np.arange(len(self))[rows]
        images, _ = self._reader.read_batch(np.atleast_1d(chosen))
        return images if chosen.ndim else images[0]


def find_broken_images(
    path: str | os.PathLike, subset: str | None = None, verbose: bool = True
) -> dict[str, str]:
    """Decode every image below a folder or in an archive, and name those that cannot be read.

    Args:
        path: a folder or an archive, as in `image_folder`.
        subset: look only below this folder.
        verbose: whether to show a progress bar.

    Returns:
        {name relative to the root: reason}, empty if all is well.

    Example:

    >>> keras_ssl.datasets.find_broken_images("photos")
    {'holiday/017.jpg': 'image file is truncated (12 bytes not processed)'}
    """
    files = sources.find_images(path, subset, MAX_ARCHIVE_BYTES)
    reasons = _in_threads(
        lambda source: sources.why_broken(source, thorough=True), files.sources, None, verbose
    )
    return {name: why for name, why in zip(files.names, reasons, strict=True) if why}


class Passes:
    """Which epoch each pass over a pipeline is: the next one, or that which `set_epoch` said.

    A pass cannot be told from a look at the first batch, and Keras takes several such looks. So
    counting is not enough for a run that is to be resumed.
    """

    def __init__(self):
        self._count, self._epoch = itertools.count(), None

    def set_epoch(self, epoch: int) -> None:
        """Makes every pass this epoch, until it is called again."""
        self._epoch = epoch

    def __iter__(self):
        return self

    def __next__(self) -> int:
        return next(self._count) if self._epoch is None else self._epoch


class _Reader:
    """The files, their labels, and how to decode one. Remembers which were broken."""

    def __init__(self, path, subset, labels, errors, check, max_bytes, num_workers):
        if errors not in ("skip", "raise"):
            raise ValueError(f"errors must be 'skip' or 'raise'. Received: errors={errors}")
        self.files = sources.find_images(path, subset, max_bytes)
        self.errors = errors
        self.max_bytes = max_bytes
        self.num_workers = num_workers or os.cpu_count() or 1
        self.broken = {}
        self.groups = None
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(self.num_workers)
        if check:
            reasons = _in_threads(sources.why_broken, self.files.sources, self.num_workers, False)
            self.leave_out(reasons)
        self.labels, self.class_names = sources.label_by_folder(
            self.files.names, labels, self.files.root
        )

    def leave_out(self, reasons):
        """Report the files that have a reason, and keep the others. Returns the rows kept."""
        broken = {n: why for n, why in zip(self.files.names, reasons, strict=True) if why}
        rows = [row for row, why in enumerate(reasons) if not why]
        if not broken:
            return rows
        self.broken.update(broken)
        shown = "".join(f"\n  {name}: {why}" for name, why in list(broken.items())[:20])
        more = f"\n  and {len(broken) - 20} more" if len(broken) > 20 else ""
        count = f"{len(broken)} of {len(self.files.names)} image files cannot be read"
        if self.errors == "raise" or not rows:
            hint = "errors='skip' leaves them out" if rows else "none is left"
            raise ValueError(f"{count}; {hint}:{shown}{more}\nReceived: path={self.files.root}")
        warnings.warn(
            f"{count} and are left out:{shown}{more}\nin {self.files.root}",
            BrokenImageWarning,
            stacklevel=4,
        )
        self.files = self.files.keep(rows)
        return rows

    def prepare(self, size, interpolation, crop, background):
        if interpolation not in sources.INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {list(sources.INTERPOLATIONS)}. "
                f"Received: interpolation={interpolation}"
            )
        if len(background) != 3 or not all(0 <= value <= 255 for value in background):
            raise ValueError(
                f"background must be (r, g, b) in [0, 255]. Received: background={background}"
            )
        self.size = size
        self.options = (interpolation, bool(crop), tuple(int(value) for value in background))

    def decode(self, source):
        return sources.decode(source, self.size, *self.options)

    def __call__(self, row):
        """(image, label) of a row, or the next readable one's in place of a broken file."""
        for candidate in itertools.chain([row], self.replacements(row)):
            name = self.files.names[candidate]
            try:
                return self.decode(self.files.sources[candidate]), candidate
            except sources.DECODE_ERRORS as error:
                why = sources.describe(error)
            if self.errors == "raise":
                raise ValueError(
                    f"The image file {name} cannot be read: {why}. errors='skip' leaves such files "
                    f"out. Received: path={self.files.root}"
                )
            with self.lock:
                known = name in self.broken
                self.broken[name] = why
            if not known:
                warnings.warn(
                    f"The image file {name} cannot be read: {why}. The next one takes its place. "
                    f"In {self.files.root}",
                    BrokenImageWarning,
                    stacklevel=2,
                )
        if self.groups is None:
            raise ValueError(f"No image file can be read. Received: path={self.files.root}")
        raise ValueError(
            f"The image file {self.files.names[row]} cannot be read, nor any that could take its "
            f"place (of the same part and class). Remove it. Received: path={self.files.root}"
        )

    def replacements(self, row) -> Iterator[int]:
        """The rows that may stand in for a broken one, the nearest after it first."""
        rows = np.arange(len(self.files.names))
        if self.groups is not None:
            rows = rows[self.groups == self.groups[row]]
        yield from np.roll(rows, -np.searchsorted(rows, row, "right")).tolist()

    def read_batch(self, rows):
        """Images and labels (zeros where there are none) of some rows, decoded in threads."""
        chunk = max(1, min(32, len(rows) // (2 * self.num_workers)))
        parts = self.pool.map(
            lambda start: [self(row) for row in rows[start : start + chunk]],
            range(0, len(rows), chunk),
        )
        images = np.empty((len(rows), *self.size, 3), "uint8")
        labels = np.zeros(len(rows), "int32")
        for place, (image, row) in enumerate(item for part in parts for item in part):
            images[place] = image
            labels[place] = 0 if self.labels is None else self.labels[row]
        return images, labels

    def batch_starts(self, batch_size, drop_remainder):
        count = len(self.files.names)
        if drop_remainder and batch_size > count:
            raise ValueError(
                f"There are only {count} images, fewer than one batch, and drop_remainder=True. "
                f"Received: path={self.files.root}, batch_size={batch_size}"
            )
        return range(0, count - batch_size + 1 if drop_remainder else count, batch_size)

    def orders(self, shuffle, seed, passes) -> Iterator[np.ndarray]:
        """The order of the rows of every pass, for ever."""
        count = len(self.files.names)
        for epoch in passes:
            yield (
                np.random.default_rng((seed, epoch)).permutation(count)
                if shuffle
                else np.arange(count)
            )

    def read_all(self, verbose):
        def attempt(source):
            try:
                return self.decode(source), None
            except sources.DECODE_ERRORS as error:
                return None, sources.describe(error)

        images, reasons = None, []
        results = _iterate_in_threads(attempt, self.files.sources, self.num_workers, verbose)
        for row, (image, why) in enumerate(results):
            reasons.append(why)
            if image is None:
                continue
            if images is None:
                needed = len(self.files.names) * image.nbytes
                if needed > self.max_bytes:
                    raise ValueError(
                        f"The images would hold {needed:,} bytes in memory. Use image_folder, "
                        "a smaller image_size, or raise max_bytes. Received: "
                        f"path={self.files.root}, max_bytes={self.max_bytes}"
                    )
                images = np.empty((len(self.files.names), *image.shape), "uint8")
            if image.shape != images.shape[1:]:
                raise ValueError(
                    f"The images differ in size: {self.files.names[row]} is {image.shape[:2]}, one "
                    f"before it {images.shape[1:3]}. Pass image_size. Received: image_size=None"
                )
            images[row] = image
        if any(reasons):
            rows = self.leave_out(reasons)
            images = images[rows]
            self.labels = None if self.labels is None else self.labels[rows]
        return ImageArrays(images, self.labels, self.class_names)


def _size(image_size):
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(
            "image_size must be a positive int or (height, width). "
            f"Received: image_size={image_size}"
        )
    return size


def _iterate_in_threads(function: Callable, items, workers, verbose) -> Iterator:
    """Map in threads, in order; they help since Pillow decodes without the interpreter lock."""
    import keras

    workers = workers or os.cpu_count() or 1
    bar = keras.utils.Progbar(len(items), unit_name="image") if verbose and items else None
    # A task for each chunk, since handing over single thumbnails costs as much as decoding them.
    chunk = max(1, min(64, len(items) // (8 * workers)))
    starts = range(0, len(items), chunk)
    with ThreadPoolExecutor(workers) as pool:
        for group in range(0, len(starts), 4 * workers):
            parts = pool.map(
                lambda start: [function(item) for item in items[start : start + chunk]],
                starts[group : group + 4 * workers],
            )
            for part in parts:
                yield from part
            if bar:
                bar.update(min(len(items), (group + 4 * workers) * chunk))


def _in_threads(function, items, workers, verbose):
    return list(_iterate_in_threads(function, items, workers, verbose))


def _choose_backend(backend):
    modules = {"tf.data": "tensorflow", "grain": "grain"}
    if backend is None:
        installed = [name for name, module in modules.items() if find_spec(module)]
        if not installed:
            raise ImportError(
                "image_folder needs TensorFlow or grain: `pip install grain`. "
                "load_arrays works without either."
            )
        return installed[0]
    if backend not in modules:
        raise ValueError(f"backend must be 'tf.data', 'grain' or None. Received: backend={backend}")
    if not find_spec(modules[backend]):
        raise ImportError(f"{modules[backend]} is not installed. Received: backend={backend}")
    return backend


# Both pipelines ask for whole batches ahead: handing single thumbnails to tf.data or grain costs
# several times what decoding them does, and memory stays at a few batches however many threads.
AHEAD = 2


def _grain_dataset(reader, batch_size, orders, drop_remainder):
    import grain

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    starts = reader.batch_starts(batch_size, drop_remainder)

    class ImageFolderDataset(grain.IterDataset):
        """Every iteration is a pass of its own; grain's own shuffle would repeat one order."""

        def __iter__(self):
            order = next(orders)

            def load(start):
                images, labels = reader.read_batch(order[start : start + batch_size])
                return images if reader.labels is None else (images, labels)

            return iter(grain.MapDataset.source(starts).map(load).to_iter_dataset(options))

        def __len__(self):
            return len(starts)

    return ImageFolderDataset()


def _tf_dataset(reader, batch_size, orders, drop_remainder):
    import tensorflow as tf

    starts = reader.batch_starts(batch_size, drop_remainder)

    def rows_of_batches():
        order = next(orders)
        for start in starts:
            yield order[start : start + batch_size]

    def load(rows):
        images, labels = tf.numpy_function(reader.read_batch, [rows], (tf.uint8, tf.int32))
        size = batch_size if drop_remainder else None
        images.set_shape((size, *reader.size, 3))
        labels.set_shape((size,))
        return images if reader.labels is None else (images, labels)

    rows = tf.data.Dataset.from_generator(
        rows_of_batches, output_signature=tf.TensorSpec((None,), "int64")
    )
    rows = rows.apply(tf.data.experimental.assert_cardinality(len(starts)))
    return rows.map(load).prefetch(AHEAD)
