"""Batches of pairs: two pictures of one thing."""

import keras
import numpy as np


class ImagePairs(keras.utils.PyDataset):
    """Pairs of pictures that show the same thing, as `((first, second),)` batches for `fit`.

    In an epoch every picture is the first of a pair once, in a new order, and its partner is drawn
    from the other pictures of its group: of the same identity, the same object, the same video.
    With `times`, only from those that are at most `max_gap` away: neighbouring frames. A picture
    without a partner is paired with itself. Order and partners depend on seed and epoch only.

    Give the model an augmenter for pairs, `keras_ssl.augmentation.PairedViews`.

    Args:
        images: `(N, H, W, 3)`, or anything that rows can be taken from by an array of integers,
            such as `keras_ssl.datasets.FolderImages`.
        groups: `(N,)` integers or strings, equal for what belongs together.
        batch_size: pairs in a batch; an incomplete last one is left out.
        times: `(N,)` numbers, e.g. of frames, or `None`.
        max_gap: greatest distance in time of a pair, in the unit of `times`.
        seed: int.
        epoch: the first epoch, where a run goes on.

    Raises:
        ValueError: sizes that do not fit, or a batch larger than the data.

    Example:

    ```python
    pairs = keras_ssl.datasets.ImagePairs(data.images, data.concept_ids, batch_size=128)
    model = keras_ssl.models.SimCLR(
        backbone, augmenter=keras_ssl.augmentation.PairedViews("simclr_cifar", size=32)
    )
    model.fit(pairs, epochs=10, shuffle=False)  # they are shuffled already
    ```
    """

    def __init__(
        self,
        images,
        groups,
        batch_size: int = 32,
        times=None,
        max_gap: float = 1,
        seed: int = 0,
        epoch: int = 0,
    ):
        super().__init__()
        groups = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        times = np.zeros(len(groups)) if times is None else np.asarray(times, "float64")
        if len(images) != len(groups) or times.shape != groups.shape:
            raise ValueError(
                "There must be one group (and time) for each picture. Received: "
                f"{len(images)} pictures, {len(groups)} groups, times of shape {times.shape}"
            )
        if not 1 <= batch_size <= len(groups):
            raise ValueError(
                f"`batch_size` must be from 1 to the number of pictures, {len(groups)}. "
                f"Received: batch_size={batch_size}"
            )
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, epoch
        # Groups follow one another and are in the order of time, so partners are a range.
        self.sorted = np.lexsort((times, groups))
        groups, times = groups[self.sorted], times[self.sorted]
        self.start, self.stop = np.empty((2, len(groups)), "int64")
        edges = np.flatnonzero(np.diff(groups, prepend=-1, append=groups[-1] + 1))
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            own = times[low:high]
            self.start[low:high] = low + np.searchsorted(own, own - max_gap, "left")
            self.stop[low:high] = low + np.searchsorted(own, own + max_gap, "right")
        self._draw()

    def _draw(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        first = rng.permutation(len(self.sorted))
        others = self.stop[first] - self.start[first] - 1
        second = self.start[first] + np.floor(rng.random(len(first)) * others).astype("int64")
        second += (second >= first) & (others > 0)  # past the picture itself
        self.first, self.second = self.sorted[first], self.sorted[second]

    def __len__(self):
        return len(self.first) // self.batch_size

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return ((self.images[self.first[rows]], self.images[self.second[rows]]),)

    def on_epoch_end(self):
        self.epoch += 1
        self._draw()
