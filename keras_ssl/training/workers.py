"""Batches made by worker processes, of which one may die."""

import concurrent.futures
import warnings
from concurrent.futures.process import BrokenProcessPool

from keras_ssl.training.data import ShuffledBatches


class WorkerBatches(ShuffledBatches):
    """The batches of a `PyDataset(use_multiprocessing=True)`, with an eye on its workers.

    Keras hands such a dataset to a pool that waits for ever for a batch whose worker was killed
    (most often because memory ran out). Here the death is noticed and named in a warning, the pool
    is made anew, and the batch is asked for once more; a batch that ends its worker twice ends the
    run. The order depends on seed and epoch only, as that of `ArrayBatches`.

    Args:
        dataset: the PyDataset. It says how many workers, and how many batches to make ahead.
        shuffle: new order every epoch.
        seed: of the order; random when `None`.
        epoch: the first epoch.

    Raises:
        ChildProcessError: when a batch is asked for that ends its worker.
    """

    def __init__(self, dataset, shuffle: bool = False, seed: int | None = None, epoch: int = 0):
        super().__init__(dataset, shuffle, seed, epoch)
        self.workers = 1  # no workers of Keras
        self.ahead = max(dataset.workers, dataset.max_queue_size)
        self._pool, self._futures = None, {}

    def __getitem__(self, index):
        try:
            return self._ask(index)
        except BrokenProcessPool:
            self._close()
            warnings.warn(
                f"A data worker died while batch {index} of epoch {self.epoch + 1} was to be made "
                "(was memory short?). New ones are started, and the batch is asked for again.",
                stacklevel=2,
            )
        try:
            return self._ask(index)
        except BrokenProcessPool as error:
            self._close()
            raise ChildProcessError(
                f"The data workers die of batch {index} (from 0) of epoch {self.epoch + 1}: make "
                "it without workers to see why, or give them more memory. "
                f"Received: workers={self.dataset.workers}"
            ) from error

    def _ask(self, index):
        """A batch, while those that come next are being made."""
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.dataset.workers, initializer=_take, initargs=(self.dataset,)
            )
        end = index + 1 + self.ahead
        if self.num_batches is not None:
            end = min(end, self.num_batches)
        for place in range(index, end):
            if place not in self._futures:
                self._futures[place] = self._pool.submit(_make, self._row(place))
        return self._futures.pop(index).result()

    def _close(self):
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._futures = None, {}

    def on_epoch_end(self):
        self._close()  # workers hold the dataset as it was in this epoch
        super().on_epoch_end()

    def __del__(self):
        self._close()


_dataset = None  # of a worker process


def _take(dataset):
    global _dataset
    _dataset = dataset


def _make(index):
    return _dataset[index]
