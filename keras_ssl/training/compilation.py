"""Compiles plain functions of tensors, for code that runs outside `fit`."""

from collections.abc import Callable

import keras


def compile_function(function: Callable, static: tuple = ()) -> Callable:
    """Compiles a pure function of tensors: XLA on JAX and TensorFlow, eager PyTorch.

    The function runs without gradients. It is traced once for each combination of input shapes and
    values of the static arguments.

    Args:
        function: a function of tensors (nested in tuples) written with `keras.ops`.
        static: names of arguments that are Python values and not tensors.

    Returns:
        A function with the same arguments; pass static ones by keyword.

    Example:

    >>> add = compile_function(lambda x, y, scale: scale * (x + y), static=("scale",))
    >>> total = add(keras.ops.ones(3), keras.ops.ones(3), scale=2.0)
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function, static_argnames=static)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    import torch

    return torch.no_grad()(function)
