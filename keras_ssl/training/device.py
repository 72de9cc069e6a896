"""What the backend is good at, for code that can do the same thing in two ways."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssl.training.replicas import shares_of_a_batch


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


def clear_gradients(variables) -> None:
    """Forgets the gradients of a step before, on PyTorch.

    Keras zeroes the gradients of the parameters that PyTorch knows, by path. Where two networks
    have equal paths (student and teacher, two encoders), half of them would add up step after step.
    """
    if keras.backend.backend() == "torch":
        for variable in variables:
            variable.value.grad = None


def with_static_batch(data, batch_size: int):
    """A batch whose size is known while the step is traced.

    TensorFlow traces a dataset's batches with an open first axis; what is cut into a fixed number
    of parts cannot have one.
    """
    if keras.backend.backend() != "tensorflow":
        return data
    import tensorflow as tf

    def fixed(tensor):
        if tensor is None or not len(tensor.shape):  # no labels; a scalar
            return tensor
        return tf.ensure_shape(tensor, (batch_size, *tensor.shape[1:]))

    return keras.tree.map_structure(fixed, data)


def predict_arrays(model, x, batch_size: int, **kwargs):
    """`keras.Model.predict` of arrays of any length, on any number of devices.

    The last batch is filled up with the first row, so that the step is compiled once, and the size
    of a batch is rounded up to what JAX's and TensorFlow's devices can share. (PyTorch's processes
    compute all of it each.) The outputs are those of the rows that were given.

    On TensorFlow every call of Keras' `predict` makes a data pipeline whose functions stay in
    memory: 40 KB that an evaluation after every epoch adds up for ever. Without progress bar and
    callbacks the batches are therefore given one by one. Over several hosts on JAX, every one has
    the arrays and is given all outputs, where Keras has no way to gather them.

    Args:
        model: the Keras model.
        x: array or dict of arrays.
        batch_size: samples in a batch, before rounding.
        **kwargs: of `keras.Model.predict`.
    """
    rows = len(keras.tree.flatten(x)[0])
    shares = 1 if keras.backend.backend() == "torch" else shares_of_a_batch(model)
    batch_size = max(1, min(batch_size, rows))
    batch_size += -batch_size % shares
    missing = -rows % batch_size
    if missing:
        fill = lambda a: np.concatenate([a, a[:1].repeat(missing, axis=0)])
        x = keras.tree.map_structure(fill, x)
    outputs = _predict_full_batches(model, x, batch_size, **kwargs)
    return keras.tree.map_structure(lambda a: a[:rows], outputs)


def _predict_full_batches(model, x, batch_size, **kwargs):
    if _is_one_of_several_hosts():
        return _predict_over_hosts(model, x, batch_size)
    one_by_one = keras.backend.backend() == "tensorflow" and kwargs == {"verbose": 0}
    if not one_by_one or model.distribute_strategy.num_replicas_in_sync > 1:
        return keras.Model.predict(model, x, batch_size=batch_size, **kwargs)
    outputs = []
    for start in range(0, len(keras.tree.flatten(x)[0]), batch_size):
        batch = keras.tree.map_structure(lambda a, start=start: a[start : start + batch_size], x)
        outputs.append(keras.Model.predict_on_batch(model, batch))
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *outputs)


def _is_one_of_several_hosts() -> bool:
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is None:
        return False
    import jax

    return jax.process_count() > 1


def _predict_over_hosts(model, x, batch_size):
    """JAX's devices encode their rows of each batch, and every host gets the rows of all."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    distribution = keras.distribution.distribution()
    mesh = distribution.device_mesh.backend_mesh
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(distribution.batch_dim_name))
    if not hasattr(model, "_encode_over_hosts"):  # compiled once, for all evaluations of a run

        def encode(trainable, non_trainable, batch):
            return model.stateless_call(trainable, non_trainable, batch, training=False)[0]

        model._encode_over_hosts = jax.jit(encode, out_shardings=everywhere)
    variables = [
        [variable.value for variable in kind]
        for kind in (model.trainable_variables, model.non_trainable_variables)
    ]

    def spread(array):
        return jax.make_array_from_callback(array.shape, rows, lambda index: array[index])

    outputs = []
    for start in range(0, len(keras.tree.flatten(x)[0]), batch_size):
        batch = keras.tree.map_structure(lambda a, start=start: a[start : start + batch_size], x)
        encoded = model._encode_over_hosts(*variables, keras.tree.map_structure(spread, batch))
        outputs.append(keras.tree.map_structure(np.asarray, encoded))
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *outputs)


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


def list_devices() -> list[str]:
    """Devices that the backend sees, in its own words."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return [f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices()]
    if backend == "tensorflow":
        import tensorflow as tf

        return [device.name for device in tf.config.list_physical_devices()]
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ["cpu", *(f"cuda:{i} ({name})" for i, name in enumerate(names))]
