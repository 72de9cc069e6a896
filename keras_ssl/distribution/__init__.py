"""Training on several devices: what a batch has in common, and how weights are divided.

`fit` needs none of this; a loss or a layer of one's own may.
"""

from keras_ssl.training.cross_device import (
    all_gather,
    all_reduce_max,
    all_reduce_mean,
    all_reduce_sum,
    replica_count,
    replica_id,
)
from keras_ssl.training.layouts import vit_layout_map

__all__ = [
    "all_gather",
    "all_reduce_max",
    "all_reduce_mean",
    "all_reduce_sum",
    "replica_count",
    "replica_id",
    "vit_layout_map",
]
