"""Labelled pictures for fine-tuning: shuffled, mirrored, prepared."""

import keras
import numpy as np


class LabelledBatches(keras.utils.PyDataset):
    """Batches `(images, labels)`, with a seed in a new order every epoch.

    keras-hub's own `fit` takes arrays in their order, in every epoch the same: with pictures sorted
    by class, as folders give them, nothing is learned. The order depends on seed and epoch only,
    and an incomplete last batch is left out where there is one.

    Args:
        x: pictures, an array or what rows can be taken from.
        y: labels.
        batch_size: rows of a batch.
        prepare: a function from a batch of pictures to what the model takes; `None` for as it is.
        seed: int, or `None` for the order of the arrays, all of it.
        mirror: whether half of the pictures, drawn anew every epoch, are mirrored.
        epoch: the first epoch.
    """

    def __init__(self, x, y, batch_size, prepare=None, seed=None, mirror=False, epoch=0):
        super().__init__()
        self.x, self.y, self.prepare = x, np.asarray(y), prepare
        self.batch_size = min(batch_size, len(self.y))
        self.seed, self.mirror, self.epoch = seed, mirror, epoch
        self._draw()

    def _draw(self):
        count = len(self.y)
        self.order, self.mirrored = np.arange(count), np.zeros(count, bool)
        if self.seed is not None:
            rng = np.random.default_rng((self.seed, self.epoch))
            self.order = rng.permutation(count)
            if self.mirror:
                self.mirrored = rng.random(count) < 0.5

    def __len__(self):
        whole, rest = divmod(len(self.y), self.batch_size)
        return whole + (rest > 0 and self.seed is None)

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images = np.array(self.x[rows])
        flip = self.mirrored[rows]
        images[flip] = images[flip, :, ::-1]
        if self.prepare is not None:
            images = np.asarray(keras.ops.convert_to_numpy(self.prepare(images)))
        return images, self.y[rows]

    def on_epoch_end(self):
        self.epoch += 1
        self._draw()
