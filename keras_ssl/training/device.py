"""What the backend is good at, for code that can do the same thing in two ways."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def _is_eager_on_cpu() -> bool:
    if keras.backend.backend() != "torch":
        return False
    import torch

    return ops.zeros((1,)).device == torch.device("cpu")


def many_small_products_pay() -> bool:
    """Whether several small matrix products beat one large one with the same result.

    So it is in PyTorch on a CPU. XLA and accelerators prefer the one: measured on the blur of
    224-pixel images, blocks take half the time of the full product in PyTorch, and 1.3 times the
    time of the whole recipe under XLA.
    """
    return _is_eager_on_cpu()


def in_chunks(function: Callable, tensors: Any, size: int) -> Any:
    """`function(tensors)`, in parts of the batch where that is faster.

    In eager PyTorch on a CPU every operation of a long chain writes a new array. Arrays of a whole
    batch are handed back to the system and asked for again each time, which costs several times
    the arithmetic; arrays of a few images stay in the process and near the caches. Everywhere
    else this is one call.

    Args:
        function: Takes and returns nested structures of tensors that begin with the batch, and
            treats images independently.
        tensors: Its argument.
        size: Images in a part.
    """
    batch = keras.tree.flatten(tensors)[0].shape[0]
    if not _is_eager_on_cpu() or batch is None or batch <= size:
        return function(tensors)
    tree = keras.tree
    parts = []
    for start in range(0, batch, size):
        part = slice(start, start + size)
        parts.append(function(tree.map_structure(lambda tensor, part=part: tensor[part], tensors)))
    return tree.map_structure(lambda *part: ops.concatenate(part, axis=0), *parts)
