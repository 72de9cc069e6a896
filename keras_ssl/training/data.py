"""What `fit` is given: peeked at, checked, and batched."""

import itertools
import os
import random

import keras
import numpy as np


class ArrayBatches(keras.utils.PyDataset):
    """Batches of arrays in memory, reshuffled every epoch, without the ragged last one.

    Every batch has the same size, so a step is compiled once; the reference codes drop the last
    incomplete batch as well. The order depends on seed and epoch only, so that a run resumed at
    `epoch` sees what the uninterrupted one would have seen. (Keras ends an epoch before the first.)

    Args:
        arrays: an array or a dict of arrays with a common first axis.
        batch_size: rows of a batch.
        shuffle: new order every epoch.
        seed: of the order; random when `None`.
        epoch: the first epoch.
        share: `(index, count)`: where several processes share every batch, which part this one
            reads; see `keras_ssl.training.replicas.process_share`.
    """

    def __init__(
        self,
        arrays,
        batch_size: int,
        shuffle: bool = True,
        seed: int | None = None,
        epoch: int = 0,
        share: tuple[int, int] = (0, 1),
    ):
        super().__init__()
        index, count = share
        if batch_size % count:
            raise ValueError(
                "`batch_size` is that of all processes together and must be a multiple of their "
                f"number. Received: batch_size={batch_size}, {count} processes"
            )
        self.own = slice(index * batch_size // count, (index + 1) * batch_size // count)
        self.arrays = arrays
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.num_rows = len(next(iter(arrays.values())) if isinstance(arrays, dict) else arrays)
        self.seed = random.getrandbits(32) if seed is None else seed
        self.epoch = epoch
        self.order = self._order()

    def _order(self):
        if not self.shuffle:
            return np.arange(self.num_rows)
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.num_rows)

    def __len__(self):
        return self.num_rows // self.batch_size

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size][self.own]
        if not self.shuffle:
            rows = slice(rows[0], rows[-1] + 1)
        return (keras.tree.map_structure(lambda array: array[rows], self.arrays),)

    def on_epoch_end(self):
        self.epoch += 1
        self.order = self._order()


class ShuffledBatches(keras.utils.PyDataset):
    """The batches of a PyDataset in a new order every epoch.

    The order depends on seed and epoch only, as that of `ArrayBatches`; Keras itself would draw it
    from a generator that no checkpoint holds.

    Args:
        dataset: the PyDataset; with threads if it asks for them.
        shuffle: new order every epoch, where the dataset has an end.
        seed: of the order; random when `None`.
        epoch: the first epoch.
    """

    def __init__(self, dataset, shuffle: bool = True, seed: int | None = None, epoch: int = 0):
        super().__init__(workers=dataset.workers, max_queue_size=dataset.max_queue_size)
        self.dataset = dataset
        self.shuffle = shuffle and dataset.num_batches is not None
        self.seed = random.getrandbits(32) if seed is None else seed
        self.epoch = epoch - 1  # Keras ends an epoch before the first
        self._order = self._new_order()

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def _new_order(self):
        if not self.shuffle:
            return None
        rng = np.random.default_rng((self.seed, max(self.epoch, 0)))
        return rng.permutation(self.num_batches)

    def _row(self, index):
        """Where the dataset has the batch of this place."""
        return index if self._order is None else int(self._order[index])

    def __getitem__(self, index):
        return self.dataset[self._row(index)]

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()
        self.epoch += 1
        self._order = self._new_order()


class MappedBatches(keras.utils.PyDataset):
    """A dataset whose batches go through a function on the host.

    Args:
        dataset: a PyDataset, or an iterable that says how many batches a pass has; that one is
            read in its own order, so give `fit` `shuffle=False`.
        function: from a batch to a batch.
    """

    def __init__(self, dataset, function):
        super().__init__()
        self.dataset, self.function = dataset, function
        self.indexed = isinstance(dataset, keras.utils.PyDataset)
        self._iterator, self._next = None, 0
        if hasattr(dataset, "set_epoch"):
            self.set_epoch = dataset.set_epoch

    def __len__(self):
        return num_batches(self.dataset)

    def __getitem__(self, index):
        if self.indexed:
            return (self.function(self.dataset[index]),)
        if index == 0:
            self._iterator, self._next = iter(self.dataset), 0
        if index != self._next:
            raise ValueError(
                f"These batches can only be read in their order. Received: index {index} after "
                f"{self._next - 1}"
            )
        self._next += 1
        return (self.function(next(self._iterator)),)

    def on_epoch_end(self):
        if self.indexed:
            self.dataset.on_epoch_end()


def mapped(x, function):
    """A dataset of any kind with every batch put through a function on the host."""
    if isinstance(x, keras.utils.PyDataset):
        return MappedBatches(x, function)
    if hasattr(x, "__next__"):
        return ((function(batch),) for batch in x)
    if num_batches(x) is not None:
        return MappedBatches(x, function)

    def endless():
        while True:
            for batch in x:
                yield (function(batch),)

    return endless()


def is_array(x) -> bool:
    """Whether `x` is images in memory (an array, a tensor, or a dict of them)."""
    if isinstance(x, dict):
        return bool(x) and all(is_array(value) for value in x.values())
    return isinstance(x, np.ndarray) or keras.ops.is_tensor(x)


def check_given(x, method: str) -> None:
    """Refuses what is no data at all, before Keras fails on it in other words."""
    if x is None:
        raise ValueError(f"{method}() needs images. Received: x=None")
    if isinstance(x, (str, bytes, os.PathLike)):
        raise ValueError(
            f"{method}() needs images, not a path: read them with keras_ssl.datasets.image_folder "
            f"or load_arrays. Received: x={x!r}"
        )
    if isinstance(x, (list, tuple)) and len(getattr(next(iter(x), None), "shape", ())) != 4:
        raise ValueError(
            f"{method}() needs an array of images or a dataset of batches; make one of a list with "
            f"np.stack. Received: a {type(x).__name__} of {len(x)}"
        )


def as_numpy(x) -> np.ndarray:
    """A tensor or array as an array of a type that every backend takes: not swapped, 64 bits."""
    x = x if isinstance(x, np.ndarray) else keras.ops.convert_to_numpy(x)
    dtype = x.dtype.newbyteorder("=")
    if dtype == "uint64":
        dtype = np.dtype("int64")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype("float64")
    return x.astype(dtype, copy=False)


def peek(x):
    """The first batch of a dataset, and the dataset to use instead of it.

    A Python generator loses the batch that is looked at, so it comes back put together again.

    Returns:
        `(first_batch, x)`; `first_batch` is `None` where `x` cannot be looked into.
    """
    if isinstance(x, keras.utils.PyDataset):
        if num_batches(x) == 0:
            raise ValueError(f"The dataset is empty: it has no batch. Received: x={x}")
        return x[0], x
    if hasattr(x, "__next__"):
        try:
            first = next(x)
        except StopIteration:
            raise ValueError(f"The generator is empty: it gave no batch. Received: x={x}") from None
        # Keras takes generators of tuples only, not any iterator.
        batches = itertools.chain([first], x)
        return first, (batch if isinstance(batch, tuple) else (batch,) for batch in batches)
    if hasattr(x, "take") and hasattr(x, "element_spec"):  # tf.data: read one batch only
        x_one = x.take(1)
    else:
        x_one = x
    for first in x_one:
        return first, x
    raise ValueError(f"The dataset is empty: it gave no batch. Received: x={x}")


def num_batches(x) -> int | None:
    """Batches in one pass over a dataset, or `None` if it does not say."""
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    if hasattr(x, "cardinality"):  # tf.data: negative when infinite or unknown
        count = int(x.cardinality())
        return count if count >= 0 else None
    try:
        count = len(x)
    except TypeError:
        return None
    return count if 0 <= count < 2**40 else None


def images_of(batch):
    """The images in what a dataset yields: `images`, `(images, labels)`, `{"images": ...}`."""
    if isinstance(batch, (tuple, list)):
        batch = batch[0]
    if isinstance(batch, dict):
        if "images" not in batch:
            raise ValueError(
                'A batch that is a dict needs the key "images". '
                f"Received: keys {sorted(map(str, batch))}"
            )
        batch = batch["images"]
    return batch


def check_images(images, channels: int | None, value_range: tuple[float, float] | None) -> None:
    """Refuses images that cannot be meant, with a message that says what to do.

    Args:
        images: array or tensor `(batch, height, width, channels)`.
        channels: number of channels wanted, or `None` for any.
        value_range: where the values should lie, or `None` where any will do.
    """
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or (channels is not None and shape[-1] != channels):
        hint = ""
        if len(shape) == 3:
            hint = " For one picture, add a batch axis: images[None]."
        elif len(shape) == 4 and shape[1] == channels:
            hint = " These look like channels first: transpose with (0, 2, 3, 1)."
        elif len(shape) == 4 and shape[-1] == 4:
            hint = " Composite the alpha channel over a background first."
        elif len(shape) == 4 and shape[-1] == 1:
            hint = f" Repeat the grey channel: np.repeat(images, {channels}, axis=-1)."
        raise ValueError(
            f"Expected images of shape (batch, height, width, {channels or 'channels'}).{hint} "
            f"Received: shape {shape}"
        )
    if 0 in shape:
        what = "There are no images" if shape[0] == 0 else "The images have no pixels"
        raise ValueError(f"{what}. Received: shape {shape}")
    if "uint8" in str(images.dtype):
        return
    images = keras.ops.convert_to_numpy(images) if not isinstance(images, np.ndarray) else images
    if images.dtype.kind not in "fiu" and images.dtype.name != "bfloat16":
        raise ValueError(f"Images must be numbers. Received: dtype {images.dtype}")
    for start in range(0, len(images), 1024):  # in pieces: no second copy of a large array
        part = images[start : start + 1024]
        if not np.isfinite(part).all():
            bad = np.flatnonzero(~np.isfinite(part).all(axis=(1, 2, 3)))[0] + start
            raise ValueError(
                "Images must be finite. Remove or repair the broken ones. "
                f"Received: NaN or infinity in image {bad}"
            )
    if value_range is None:
        return
    low, high = value_range
    least, greatest = float(images.min()), float(images.max())
    if least < low or greatest > high:
        raise ValueError(
            f"Images must lie in [{low:g}, {high:g}] (uint8 or float). Undo a normalisation that "
            f"was applied before; the model normalises. Received: values from {least:g} to "
            f"{greatest:g}"
        )
    if high == 255 and images.dtype.kind == "f" and 0 < greatest <= 1:
        raise ValueError(
            "Float images must lie in [0, 255], and these look like [0, 1]: multiply by 255. "
            f"Received: values from {least:g} to {greatest:g}"
        )
