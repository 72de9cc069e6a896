"""What the backend is good at, for code that can do the same thing in two ways."""

import keras


def many_small_products_pay() -> bool:
    """Whether several small matrix products beat one large one with the same result.

    So it is in PyTorch on a CPU. XLA and accelerators prefer the one: measured on the blur of
    224-pixel images, blocks take half the time of the full product in PyTorch, and 1.3 times the
    time of the whole recipe under XLA.
    """
    if keras.backend.backend() != "torch":
        return False
    import torch

    return keras.ops.zeros((1,)).device == torch.device("cpu")
