"""Gradients of any scalar function on whatever backend runs. Tests and the conformance runner only:
the package itself never differentiates by hand (`fit` does)."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops


def compiled(function: Callable) -> Callable:
    """The function as one compiled program on JAX, where each single operation would be compiled
    on its own (a second for every ten); as it is elsewhere. Variables count as constants."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def variable_gradients(
    function: Callable, variables: Sequence[keras.Variable]
) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """Value and gradients of `function()`, a scalar, with respect to Keras variables.

    State that the function assigns (counters, queues) is not kept on JAX; on the other backends it
    is, as in a training step.

    Returns:
        The value and one array for every variable; `None` where the value does not depend on it
        (on JAX those are zeros).
    """
    variables = list(variables)
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function()

        # Compiled: run op by op, every kind of operation would be compiled on its own.
        value, gradients = jax.jit(jax.value_and_grad(stateless))([v.value for v in variables])
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable.value)
            value = function()
        gradients = tape.gradient(value, [v.value for v in variables])
    else:
        import torch

        with torch.enable_grad():
            value = function()
        gradients = torch.autograd.grad(value, [v.value for v in variables], allow_unused=True)
    value = np.asarray(ops.convert_to_numpy(value))
    # A TensorFlow embedding gives IndexedSlices; convert_to_tensor makes them dense.
    return value, [
        None if g is None else np.asarray(ops.convert_to_numpy(ops.convert_to_tensor(g)))
        for g in gradients
    ]


def input_gradients(function: Callable, *arrays) -> tuple[np.ndarray, list[np.ndarray]]:
    """Value and gradients of `function(*tensors)`, a scalar, with respect to its inputs."""
    variables = [keras.Variable(np.asarray(a, "float32"), dtype="float32") for a in arrays]

    def call():
        return function(*[ops.convert_to_tensor(v) for v in variables])

    value, gradients = variable_gradients(call, variables)
    zeros = [np.zeros(v.shape, "float32") for v in variables]
    return value, [z if g is None else g for g, z in zip(gradients, zeros, strict=True)]
