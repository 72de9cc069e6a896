"""The precision that losses are computed in."""

import keras
from keras import ops


def at_least_float32(x):
    """As a tensor, in float32 unless it is float64: half precision is for networks."""
    x = ops.convert_to_tensor(x)
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")
