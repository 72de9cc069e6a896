"""One batch on several devices: what has to be put together, in one place.

There are two ways to train on several devices. On JAX (`keras.distribution`) the compiled step sees
global arrays, whatever devices hold them: every function here is the identity. With TensorFlow's
strategies and with `torch.distributed`, every *replica* runs the step on its own share of the batch
and with its own copy of all variables.

There, what `fit` minimises is the mean over the replicas of what each computes, and the gradient of
everything gathered or summed here is itself summed over the replicas. So a loss may be computed
from the whole batch on every replica, or from a replica's own rows against the whole batch: both
give the gradient of the whole. State (queues, centres, teachers, batch statistics) is computed from
gathered or summed values, equally on every replica.
"""

import contextlib
import functools
import threading

import keras
from keras import ops

_BACKEND = keras.backend.backend()
# What holds for this replica's step; TensorFlow runs every replica in a thread.
here = threading.local()


def replicas_here():
    """TensorFlow's replica context or torch.distributed where several replicas run, else None."""
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        several = context is not None and context.num_replicas_in_sync > 1
        return context if several else None
    if _BACKEND == "torch":
        import torch.distributed as distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed if distributed.get_world_size() > 1 else None
    return None


def replica_count() -> int:
    """How many replicas compute the present step, each its share of the batch; 1 on JAX."""
    replicas = replicas_here()
    if replicas is None:
        return 1
    return replicas.num_replicas_in_sync if _BACKEND == "tensorflow" else replicas.get_world_size()


def replica_id():
    """Number of this replica, from 0: an integer, or a scalar tensor on TensorFlow."""
    replicas = replicas_here()
    if replicas is None:
        return 0
    return replicas.replica_id_in_sync_group if _BACKEND == "tensorflow" else replicas.get_rank()


def all_gather(x, views: int = 1):
    """The rows of all replicas, in the order that they have on one device.

    Args:
        x: `(views * n, ...)`: this replica's rows, view after view.
        views: how many views of the batch are stacked in it.

    Returns:
        `(views * replicas * n, ...)`, view after view. The gradient of a row is the sum of those
        that all replicas have for it.

    Example:

    >>> all_gather(np.ones((4, 8))).shape  # on one device: the same
    (4, 8)
    """
    replicas = replicas_here()
    if replicas is None:
        return x
    x = ops.convert_to_tensor(x)
    if keras.backend.standardize_dtype(x.dtype) == "bool":
        return ops.cast(all_gather(ops.cast(x, "int32"), views), "bool")
    rows = x.shape[0] if x.shape[0] is not None else ops.shape(x)[0]
    if _BACKEND == "tensorflow":
        gathered = replicas.all_gather(x, axis=0)
        # The static shape is lost on the way.
        known = None if x.shape[0] is None else replica_count() * rows
        gathered.set_shape((known, *x.shape[1:]))
    else:
        gathered = _torch_functions()[0](x)
    if views == 1:
        return gathered
    shape = tuple(x.shape[1:])
    gathered = ops.reshape(gathered, (replica_count(), views, rows // views, *shape))
    gathered = ops.transpose(gathered, (1, 0, *range(2, 3 + len(shape))))
    return ops.reshape(gathered, (replica_count() * rows, *shape))


def all_reduce_sum(x):
    """The sum over all replicas of a tensor; its gradient likewise. On one device, the same."""
    replicas = replicas_here()
    if replicas is None:
        return x
    if _BACKEND == "tensorflow":
        return replicas.all_reduce("SUM", ops.convert_to_tensor(x))
    return _torch_functions()[1](ops.convert_to_tensor(x))


def all_reduce_mean(x):
    """The mean over all replicas of a tensor; its gradient likewise. On one device, the same."""
    count = replica_count()
    return x if count == 1 else all_reduce_sum(x) / count


def all_reduce_max(x):
    """The greatest over all replicas, without gradient. On one device, the same."""
    if replicas_here() is None:
        return x
    return ops.max(all_gather(ops.stop_gradient(x)[None]), axis=0)


def whole_batch(rows):
    """How many rows all replicas have together where this one has `rows`, in a training step."""
    return rows if getattr(here, "rows", None) is None else rows * replica_count()


def own_rows(x, axis: int = 0):
    """This replica's rows of what was made for the whole batch, in a training step.

    Args:
        x: of `views * batch` rows along `axis`, view after view, for any number of views.
        axis: that of the rows.

    Raises:
        ValueError: the rows are no whole batches (a micro-batch's stochastic depth).
    """
    own = getattr(here, "rows", None)
    if own is None:
        return x
    shape, count = tuple(ops.shape(x)), replica_count()
    if isinstance(own, int) and isinstance(shape[axis], int) and shape[axis] % (count * own):
        raise ValueError(
            "On several replicas random numbers are drawn for whole batches of rows: leave out "
            "`micro_batch_size`, or the stochastic depth of the encoder. "
            f"Received: numbers for {shape[axis] // count} rows, {own} in the replica's batch"
        )
    x = ops.reshape(x, (*shape[:axis], -1, count, own, *shape[axis + 1 :]))
    x = ops.take(x, replica_id(), axis=axis + 1)
    return ops.reshape(x, (*shape[:axis], shape[axis] // count, *shape[axis + 1 :]))


def all_rows(x):
    """The whole batch's rows, in a training step; `own_rows` takes them apart again."""
    own = getattr(here, "rows", None)
    return x if own is None else all_gather(x, views=ops.shape(x)[0] // own)


def share_of_loss(loss):
    """What a replica gives to the optimizer: on TensorFlow, where gradients are summed, its part
    of the mean."""
    if _BACKEND != "tensorflow" or replica_count() == 1:
        return loss
    return loss / replica_count()


def whole_gradients(gradients) -> list:
    """The gradients that all replicas have together, for clipping by their norms.

    On PyTorch they are that already. On TensorFlow Keras adds them up only afterwards: give it
    the `share_of_loss` of what came out.
    """
    if _BACKEND != "tensorflow" or replicas_here() is None:
        return list(gradients)
    return list(replicas_here().all_reduce("SUM", list(gradients)))


@contextlib.contextmanager
def own_statistics():
    """Inside, batch normalisation takes the statistics of this replica's rows alone.

    The moving statistics see the replicas one after the other, as parts of a batch on one device.
    """
    before = getattr(here, "own_statistics", False)
    here.own_statistics = True
    try:
        yield
    finally:
        here.own_statistics = before


def count_of(variable) -> int:
    """A counter's value, outside of the step; `int` knows no variable that TensorFlow mirrors."""
    return int(ops.convert_to_numpy(variable))


def average_gradient(parameter) -> None:
    """PyTorch: a parameter's gradient, averaged over the processes when it is there."""
    import torch.distributed as distributed

    distributed.all_reduce(parameter.grad)
    parameter.grad /= distributed.get_world_size()


@functools.cache
def _torch_functions():
    """PyTorch: `(gather, sum)` over all processes, whose gradients are summed over them too."""
    import torch
    import torch.distributed as distributed

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
            distributed.all_gather(parts, x.contiguous())
            return torch.cat(parts)

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone(memory_format=torch.contiguous_format)
            distributed.all_reduce(gradient)
            return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x = x.clone(memory_format=torch.contiguous_format)
            distributed.all_reduce(x)
            return x

        @staticmethod
        def backward(ctx, gradient):
            return Sum.apply(gradient)

    return Gather.apply, Sum.apply
