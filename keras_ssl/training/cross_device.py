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
import threading

import keras
from keras import ops

_BACKEND = keras.backend.backend()
_context = threading.local()  # TensorFlow runs every replica in a thread


def _replicas():
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
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    replicas = _replicas()
    return 1 if replicas is None else replicas.get_world_size()


def replica_id():
    """Number of this replica, from 0: an integer, or a scalar tensor on TensorFlow."""
    replicas = _replicas()
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
    replicas = _replicas()
    if replicas is None:
        return x
    x = ops.convert_to_tensor(x)
    if keras.backend.standardize_dtype(x.dtype) == "bool":
        return ops.cast(all_gather(ops.cast(x, "int32"), views), "bool")
    rows = x.shape[0] if x.shape[0] is not None else ops.shape(x)[0]
    if _BACKEND == "tensorflow":
        gathered = replicas.all_gather(x, axis=0)
        if x.shape[0] is not None:  # the static shape is lost on the way
            gathered.set_shape((replica_count() * rows, *x.shape[1:]))
    else:
        gathered = _torch_functions().gather(x)
    if views == 1:
        return gathered
    shape = tuple(x.shape[1:])
    gathered = ops.reshape(gathered, (replica_count(), views, rows // views, *shape))
    gathered = ops.transpose(gathered, (1, 0, *range(2, 3 + len(shape))))
    return ops.reshape(gathered, (replica_count() * rows, *shape))


def all_reduce_sum(x):
    """The sum over all replicas of a tensor; its gradient likewise. On one device, the same."""
    replicas = _replicas()
    if replicas is None:
        return x
    if _BACKEND == "tensorflow":
        return replicas.all_reduce("SUM", ops.convert_to_tensor(x))
    return _torch_functions().sum(ops.convert_to_tensor(x))


def all_reduce_mean(x):
    """The mean over all replicas of a tensor; its gradient likewise. On one device, the same."""
    count = replica_count()
    return x if count == 1 else all_reduce_sum(x) / count


def all_reduce_max(x):
    """The greatest over all replicas, without gradient. On one device, the same."""
    if _replicas() is None:
        return x
    return ops.max(all_gather(ops.stop_gradient(x)[None]), axis=0)


# === Rows of a batch ===


def whole_batch(rows):
    """How many rows all replicas have together where this one has `rows`, in a training step."""
    return rows if getattr(_context, "rows", None) is None else rows * replica_count()


def own_rows(x, axis: int = 0):
    """This replica's rows of what was made for the whole batch, in a training step.

    Args:
        x: of `views * batch` rows along `axis`, view after view, for any number of views.
        axis: that of the rows.
    """
    own = getattr(_context, "rows", None)
    if own is None:
        return x
    shape, count = tuple(x.shape), replica_count()
    x = ops.reshape(x, (*shape[:axis], -1, count, own, *shape[axis + 1 :]))
    x = ops.take(x, replica_id(), axis=axis + 1)
    return ops.reshape(x, (*shape[:axis], shape[axis] // count, *shape[axis + 1 :]))


def all_rows(x):
    """The whole batch's rows, in a training step; `own_rows` takes them apart again."""
    own = getattr(_context, "rows", None)
    return x if own is None else all_gather(x, views=x.shape[0] // own)


@contextlib.contextmanager
def replica_step(model, data):
    """What makes one replica's step a part of the whole batch's.

    Random numbers are those of this replica's rows of the whole batch; batch normalisation takes
    the statistics of the whole batch; on PyTorch, gradients are averaged when they are there.

    Args:
        model: whose layers run.
        data: the replica's part of the batch; its first tensor's first axis is the batch.
    """
    if _replicas() is None:
        yield
        return
    tensors = [t for t in keras.tree.flatten(data) if t is not None and len(t.shape)]
    _context.rows = ops.shape(tensors[0])[0]  # an integer where it is known
    hooks = []
    if _BACKEND == "torch":
        hooks = [
            variable.value.register_post_accumulate_grad_hook(_torch_functions().average)
            for variable in model.trainable_variables
        ]
    try:
        with _whole_batch_statistics(model):
            yield
    finally:
        _context.rows = None
        for hook in hooks:
            hook.remove()


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
    if _BACKEND != "tensorflow" or _replicas() is None:
        return list(gradients)
    return list(_replicas().all_reduce("SUM", list(gradients)))


# === Batch normalisation ===


@contextlib.contextmanager
def own_statistics():
    """Inside, batch normalisation takes the statistics of this replica's rows alone.

    The moving statistics see the replicas one after the other, as parts of a batch on one device.
    """
    before = getattr(_context, "own_statistics", False)
    _context.own_statistics = True
    try:
        yield
    finally:
        _context.own_statistics = before


class _GlobalBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation by the statistics of all replicas' rows."""

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable) or mask is not None or self.renorm:
            return super().call(inputs, training=training, mask=mask)
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        axes = [axis for axis in range(len(x.shape)) if axis != self.axis % len(x.shape)]
        own = getattr(_context, "own_statistics", False)
        reduce = (lambda value: value) if own else all_reduce_mean
        mean = reduce(ops.mean(x, axis=axes, keepdims=True))
        variance = reduce(ops.mean(ops.square(x - mean), axis=axes, keepdims=True))
        mean, variance = ops.reshape(mean, (-1,)), ops.reshape(variance, (-1,))
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            value = ops.stop_gradient(value)
            parts = all_gather(value[None]) if own else value[None]
            new = ops.cast(moving, x.dtype)
            for i in range(replica_count() if own else 1):
                new = new * self.momentum + parts[i] * (1.0 - self.momentum)
            moving.assign(ops.cast(new, moving.dtype))
        outputs = ops.batch_normalization(
            x,
            mean,
            variance,
            self.axis,
            offset=None if self.beta is None else ops.cast(self.beta, x.dtype),
            scale=None if self.gamma is None else ops.cast(self.gamma, x.dtype),
            epsilon=self.epsilon,
        )
        return ops.cast(outputs, self.compute_dtype)


@contextlib.contextmanager
def _whole_batch_statistics(model):
    """Inside, the model's batch normalisation is that of the whole batch.

    Keras' own `synchronized=True` is TensorFlow's only, and would be saved with the model. Layers
    change their class for the time of the step: any backbone's do, whoever made it. Replicas in
    threads overlap, so the last one out changes it back.
    """
    layers = [
        layer
        for layer in model._flatten_layers()
        if type(layer) in (keras.layers.BatchNormalization, _GlobalBatchNormalization)
    ]
    count = getattr(model, "_replicas_inside", 0)
    model._replicas_inside = count + 1
    for layer in layers:
        layer.__class__ = _GlobalBatchNormalization
    try:
        yield
    finally:
        model._replicas_inside -= 1
        if not model._replicas_inside:
            for layer in layers:
                layer.__class__ = keras.layers.BatchNormalization


# === What fit needs to know ===


def shares_of_a_batch(model) -> int:
    """How many devices share every batch that `fit` is given."""
    if _BACKEND == "jax":
        distribution = keras.distribution.distribution()
        return 1 if distribution is None else distribution.num_model_replicas
    if _BACKEND == "tensorflow":
        return model.distribute_strategy.num_replicas_in_sync
    return replica_count()


def scope_of(model):
    """Where a model's optimizer has to be made: TensorFlow's scope of the model's strategy."""
    if _BACKEND == "tensorflow" and shares_of_a_batch(model) > 1:
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def compile_options(model, options: dict) -> dict:
    """Options of `compile` as several replicas need them: TensorFlow's XLA compiles for one."""
    if _BACKEND != "tensorflow" or shares_of_a_batch(model) == 1:
        return options
    if options.get("jit_compile", "auto") not in ("auto", False):
        raise ValueError(
            "XLA compiles for one device: leave `jit_compile` out under a tf.distribute strategy. "
            f"Received: jit_compile={options['jit_compile']}"
        )
    return {**options, "jit_compile": False}


def check(model, batch_size: int) -> None:
    """Refuses what several devices cannot compute as one does.

    Raises:
        ValueError: a batch that cannot be divided evenly; on TensorFlow an optimizer that
            accumulates, scales the loss or clips before the replicas' gradients are added up.
    """
    shares = shares_of_a_batch(model)
    if batch_size % shares:
        raise ValueError(
            "A batch must be a multiple of the number of devices that share it. "
            f"Received: batch_size={batch_size}, {shares} devices"
        )
    optimizer = model.optimizer
    if _BACKEND != "tensorflow" or shares == 1 or optimizer is None:
        return
    for option in ("gradient_accumulation_steps", "clipnorm", "clipvalue", "global_clipnorm"):
        if getattr(optimizer, option, None):
            raise ValueError(
                f"`{option}` does not work under a tf.distribute strategy: Keras applies it on "
                "each replica before their gradients are added up. Take larger batches in place of "
                "accumulation, or `clip_group_norm` of keras_ssl.optimizers. "
                f"Received: {option}={getattr(optimizer, option)}"
            )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "Loss scaling does not work under a tf.distribute strategy: use mixed_bfloat16. "
            f"Received: optimizer={type(optimizer).__name__}"
        )


def check_single_batch(model) -> None:
    """Refuses `train_on_batch` under TensorFlow's strategies, where Keras does not divide it."""
    if _BACKEND == "tensorflow" and shares_of_a_batch(model) > 1:
        raise ValueError(
            "Under a tf.distribute strategy train_on_batch would give every replica the whole "
            "batch: use fit(). Received: "
            f"{shares_of_a_batch(model)} replicas"
        )


# === Processes ===


def count_of(variable) -> int:
    """A counter's value, outside of the step; `int` knows no variable that TensorFlow mirrors."""
    return int(ops.convert_to_numpy(variable))


def process_share() -> tuple[int, int]:
    """`(index, count)` of the part of every batch that this process reads from arrays.

    PyTorch's processes and JAX's hosts are given their parts; TensorFlow's strategies divide
    batches themselves.
    """
    if _BACKEND == "jax":
        import jax

        return jax.process_index(), jax.process_count()
    replicas = _replicas() if _BACKEND == "torch" else None
    return (0, 1) if replicas is None else (replicas.get_rank(), replicas.get_world_size())


def begin_equal(model) -> None:
    """PyTorch: gives every process the variables of the first one, as training has to begin so."""
    replicas = _replicas()
    if _BACKEND != "torch" or replicas is None:
        return
    import torch

    with torch.no_grad():
        for variable in model.variables:
            replicas.broadcast(variable.value, src=0)


def mean_of_logs(logs: dict) -> dict:
    """PyTorch: the mean over all processes of every number in the logs."""
    if _BACKEND != "torch" or _replicas() is None:
        return logs
    names = sorted(logs)
    values = ops.stack([ops.cast(logs[name], "float32") for name in names])
    return dict(zip(names, all_reduce_mean(ops.stop_gradient(values)), strict=True))


_TORCH_FUNCTIONS = []


def _torch_functions():
    """Gather and sum with gradients, and the average of a parameter's gradient."""
    if _TORCH_FUNCTIONS:
        return _TORCH_FUNCTIONS[0]
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

    class Functions:
        gather, sum = Gather.apply, Sum.apply

        @staticmethod
        def average(parameter):
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()

    _TORCH_FUNCTIONS.append(Functions)
    return Functions
