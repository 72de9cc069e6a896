"""Pictures in ArrayRecord shards: read in any order, by any number of processes."""

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_ssl.datasets import sources
from keras_ssl.datasets.folder import BrokenImageWarning, _size
from keras_ssl.training.data import ArrayBatches
from keras_ssl.training.replicas import process_share


class RecordImages:
    """The pictures of some ArrayRecord files as rows, decoded when they are asked for.

    An ArrayRecord file finds any of its records at once, so rows can be read in a new random order
    every epoch, without a shuffling buffer. What a record holds is an encoded picture (JPEG, PNG,
    ...), or whatever `decode` understands.

    Args:
        paths: files, in the order of the rows.
        image_size: int or (height, width) in pixels.
        decode: from a record's bytes to uint8 `(height, width, 3)` of that size; `None`: an encoded
            picture, its largest centred part of the right aspect ratio, resized.
        num_threads: to decode in.
        errors: for records that cannot be read or decoded: `"skip"` names each in a warning and
            puts the next one in its place, so that the number of rows stays; `"raise"`.

    Attributes:
        broken_records: `{(path, number of the record in it, from 0): reason}` of those found.

    Raises:
        ImportError: array_record is not installed.
        FileNotFoundError: a file is not there.
        ValueError: a file is no ArrayRecord or cut off; with `errors="raise"` a record is broken.

    Example:

    ```python notest
    images = keras_ssl.datasets.RecordImages(sorted(glob.glob("train-*.array_record")), 224)
    first = images[np.arange(4)]  # (4, 224, 224, 3)
    ```
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        image_size: int | tuple[int, int],
        decode: Callable | None = None,
        num_threads: int | None = None,
        errors: str = "skip",
    ):
        if errors not in ("skip", "raise"):
            raise ValueError(f"errors must be 'skip' or 'raise'. Received: errors={errors}")
        try:
            from array_record.python.array_record_data_source import ArrayRecordDataSource
            from array_record.python.array_record_module import ArrayRecordReader
        except ImportError as error:
            raise ImportError("Reading ArrayRecord needs `pip install array_record`.") from error
        self.paths = [os.fspath(path) for path in paths]
        missing = [path for path in self.paths if not os.path.isfile(path)]
        if missing or not self.paths:
            raise FileNotFoundError(f"There are no such files. Received: paths={missing}")
        self.size = _size(image_size)
        self.decode = decode or self._decode
        self.errors, self.broken_records, self._lock = errors, {}, threading.Lock()
        self.pool = ThreadPoolExecutor(num_threads or os.cpu_count() or 1)

        def count(path):
            try:
                reader = ArrayRecordReader(path)
                number = reader.num_records()
                reader.close()  # only this says that the file is none
                return number
            except RuntimeError as error:
                raise ValueError(
                    f"This is no ArrayRecord file, or it is cut off: {error}. Received: {path}"
                ) from error

        counts = list(self.pool.map(count, self.paths))
        self.ends = np.cumsum(counts)
        # The part of each file that is asked for: so they are not counted once more.
        parts = [f"{path}[0:{n}]" for path, n in zip(self.paths, counts, strict=True)]
        self.records = ArrayRecordDataSource(parts)

    def _decode(self, record):
        return sources.decode(record, self.size, "bilinear", True, (255, 255, 255))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, rows) -> np.ndarray:
        rows = np.arange(len(self))[rows].tolist()
        try:
            records = self.records.__getitems__(rows)
        except RuntimeError:  # one of them is damaged
            records = [None] * len(rows)
        return np.stack(list(self.pool.map(self._picture, rows, records)))

    def _picture(self, row, record):
        """The picture of a row, or the next one's in place of what is broken."""
        for candidate in (*range(row, len(self)), *range(row)):
            try:
                return self.decode(self.records[candidate] if record is None else record)
            except (*sources.DECODE_ERRORS, RuntimeError) as error:
                self._report(candidate, sources.describe(error))
                record = None
        raise ValueError(f"No record can be read. Received: paths={self.paths}")

    def _report(self, row, why):
        shard = int(np.searchsorted(self.ends, row, "right"))
        path, number = self.paths[shard], row - int(np.r_[0, self.ends][shard])
        if self.errors == "raise":
            raise ValueError(
                f"Record {number} of {path} cannot be read: {why}. errors='skip' leaves such "
                f"records out. Received: errors={self.errors}"
            )
        with self._lock:
            known = (path, number) in self.broken_records
            self.broken_records[path, number] = why
        if not known:
            warnings.warn(
                f"Record {number} of {path} cannot be read: {why}. The next one takes its place.",
                BrokenImageWarning,
                stacklevel=2,
            )


def record_batches(
    paths: Sequence[str | os.PathLike],
    image_size: int | tuple[int, int],
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    epoch: int = 0,
    share: tuple[int, int] | None = None,
    decode: Callable | None = None,
    num_threads: int | None = None,
    errors: str = "skip",
) -> ArrayBatches:
    """Batches of pictures from ArrayRecord files, of which every process reads its share.

    The order of an epoch depends on seed and epoch only, and every process reads its part of each
    batch. So a batch holds the same pictures however many processes share it, no picture is read
    twice in an epoch, none is lost but those of an incomplete last batch, and a run that is resumed
    at `epoch`, on more or fewer hosts, goes on with what would have come.

    Args:
        paths, image_size, decode, num_threads, errors: as for `RecordImages`.
        batch_size: pictures in a batch of all processes together.
        shuffle: a new order every epoch.
        seed: of the order.
        epoch: the first epoch; `fit(initial_epoch=)` sets it as well.
        share: `(index, count)`: which part of every batch this process reads; `None` for what
            `torch.distributed` or JAX say, and whole batches elsewhere.

    Returns:
        A `keras.utils.PyDataset` for `fit`; its `arrays` are the `RecordImages`.

    Raises:
        ImportError, FileNotFoundError, ValueError: as for `RecordImages`; also if there are fewer
            records than one batch.

    Example:

    ```python notest
    paths = sorted(glob.glob("gs://bucket/train-*.array_record"))
    model.fit(keras_ssl.datasets.record_batches(paths, 224, batch_size=4096), epochs=100)
    ```
    """
    images = RecordImages(paths, image_size, decode, num_threads, errors)
    if len(images) < batch_size:
        raise ValueError(
            f"There are only {len(images)} records, fewer than one batch. "
            f"Received: batch_size={batch_size}, paths={images.paths}"
        )
    share = process_share() if share is None else share
    return ArrayBatches(images, batch_size, shuffle, seed, epoch, share)
