"""At which epochs a callback does its work."""

import keras


class ScheduledCallback(keras.callbacks.Callback):
    """A callback that works after chosen epochs, and after the last one always.

    Args:
        every: after every so many epochs; or
        epochs: after these, counted from 1, instead of `every`.

    Raises:
        ValueError: for epochs out of range.
    """

    def __init__(self, every: int = 1, epochs=None):
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be >= 1. Received: every={every}")
        epochs = None if epochs is None else sorted({int(epoch) for epoch in epochs})
        if epochs is not None and (not epochs or epochs[0] < 1):
            raise ValueError(f"`epochs` are counted from 1. Received: epochs={epochs}")
        self.every = every
        self.epochs = epochs

    def is_due(self, epoch: int) -> bool:
        """Whether the callback works after an epoch, counted from 1."""
        if epoch == (self.params or {}).get("epochs"):
            return True
        return epoch % self.every == 0 if self.epochs is None else epoch in self.epochs
