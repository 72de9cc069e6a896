"""Sizes that may be known only when a batch is there."""

from keras import ops


def whole(count, factor: float, constant: float = 0.0):
    """`floor(count * factor + constant)` where `count` is a batch size.

    Args:
        count: an integer; or a scalar tensor, where TensorFlow traces for batches of any size.
        factor: to multiply with.
        constant: to add.

    Returns:
        An integer, or an int32 scalar tensor of the same value.
    """
    if isinstance(count, int):
        return int(count * factor + constant)
    # Only TensorFlow comes here, which has float64: what Python computes.
    return ops.cast(ops.floor(ops.cast(count, "float64") * factor + constant), "int32")
