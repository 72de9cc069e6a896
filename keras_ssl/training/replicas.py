"""What `fit` does where several devices share a batch; see `cross_device` for what a step does."""

import contextlib
import functools

import keras
import numpy as np
from keras import ops

from keras_ssl.training.cross_device import (
    all_gather,
    all_reduce_mean,
    average_gradient,
    here,
    replica_count,
    replicas_here,
)

_BACKEND = keras.backend.backend()


@contextlib.contextmanager
def replica_step(model, data, kind: str = "training"):
    """What makes one replica's step a part of the whole batch's.

    Random numbers are those of this replica's rows of the whole batch; batch normalisation takes
    the statistics of the whole batch; on PyTorch, gradients are averaged when they are there.

    Args:
        model: whose layers run.
        data: the replica's part of the batch; its first tensor's first axis is the batch.
        kind: of the step, for errors.

    Raises:
        ValueError: on PyTorch, in all processes, where one is elsewhere or has other rows.
    """
    if replicas_here() is None:
        yield
        return
    tensors = [t for t in keras.tree.flatten(data) if t is not None and len(t.shape)]
    here.rows = ops.shape(tensors[0])[0]  # an integer where it is known
    hooks = []
    try:
        if _BACKEND == "tensorflow" and not isinstance(here.rows, int):
            _assert_equal_rows()
        if _BACKEND == "torch":
            meet(f"a {kind} step of {here.rows} rows")
            hooks = [
                variable.value.register_post_accumulate_grad_hook(average_gradient)
                for variable in model.trainable_variables
            ]
        with _whole_batch_statistics(model):
            yield
    finally:
        here.rows = None
        for hook in hooks:
            hook.remove()


class _GlobalBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation by the statistics of all replicas' rows."""

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        if mask is not None or self.renorm:
            raise ValueError(
                "Batch normalisation of several replicas' batch takes no mask and is not "
                f"renormalised. Received: mask={mask}, renorm={self.renorm}, layer={self.name}"
            )
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        axes = [axis for axis in range(len(x.shape)) if axis != self.axis % len(x.shape)]
        own = getattr(here, "own_statistics", False)
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


def shares_of_a_batch(model) -> int:
    """How many devices share every batch that `fit` is given."""
    if _BACKEND == "jax":
        distribution = keras.distribution.distribution()
        return 1 if distribution is None else distribution.num_model_replicas
    if _BACKEND == "tensorflow":
        return model.distribute_strategy.num_replicas_in_sync
    return replica_count()


def batch_size_for(model, batch_size: int | None, rows: int) -> int:
    """The rows of a batch of arrays, a multiple of the devices that share it.

    Args:
        model: that takes them.
        batch_size: what was asked for; `None` is 32, or the next multiple below.
        rows: how many there are. Where they are fewer than the batch, all that can be divided.

    Raises:
        ValueError: a size that is not positive or cannot be divided, or fewer rows than devices.
    """
    shares = shares_of_a_batch(model)
    if batch_size is None:
        batch_size = max(32 - 32 % shares, shares)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    _check_divides(batch_size, shares)
    if rows < shares:
        raise ValueError(
            "There must be at least one picture for every device that shares a batch: give more, "
            f"or compute on fewer devices. Received: {rows} pictures, {shares} devices"
        )
    return min(batch_size, rows - rows % shares)


def _check_divides(batch_size: int, shares: int) -> None:
    if batch_size % shares:
        raise ValueError(
            "A batch must be a multiple of the number of devices that share it. "
            f"Received: batch_size={batch_size}, {shares} devices"
        )


_UNEQUAL = "All replicas must have equally many rows of a batch."


def _assert_equal_rows() -> None:
    """TensorFlow divides a batch as evenly as it can; what is put together supposes equal parts."""
    import tensorflow as tf

    rows = replicas_here().all_gather(ops.reshape(here.rows, (1,)), axis=0)
    tf.debugging.assert_equal(rows, rows[0], message=_UNEQUAL)


@contextlib.contextmanager
def explained_batches(model):
    """Says what a backend's own error about a batch of a dataset means.

    Raises:
        ValueError: a batch was met that the devices cannot share.
    """
    try:
        yield
    except Exception as error:
        shares = shares_of_a_batch(model)
        indivisible = type(error).__name__ == "IndivisibleError"  # JAX
        if type(error).__name__ == "InvalidArgumentError":  # TensorFlow
            indivisible = any(word in str(error) for word in (_UNEQUAL, "EnsureShape"))
        if shares == 1 or not indivisible:
            raise
        raise ValueError(
            "A batch must be a multiple of the number of devices that share it, and in fit on "
            "TensorFlow all batches must be equally large: leave the incomplete last batch of a "
            "dataset out (`drop_remainder=True`), or give arrays. Received: a batch that is not, "
            f"{shares} devices"
        ) from error


def scope_of(model):
    """Where a model's optimizer has to be made: TensorFlow's scope of the model's strategy."""
    if _BACKEND == "tensorflow" and shares_of_a_batch(model) > 1:
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def compile_options(model, options: dict) -> dict:
    """Options of `compile` as several replicas need them: TensorFlow's XLA compiles for one.

    Raises:
        ValueError: XLA under a strategy of TensorFlow.
    """
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
        ValueError: a batch that cannot be divided evenly; batch normalisation of another class;
            on TensorFlow several steps in one call, or an optimizer that accumulates, scales the
            loss or clips before the replicas' gradients are added up.
    """
    shares = shares_of_a_batch(model)
    _check_divides(batch_size, shares)
    if _BACKEND == "jax" or shares == 1:
        return
    for layer in model._flatten_layers():
        known = type(layer) in (keras.layers.BatchNormalization, _GlobalBatchNormalization)
        if isinstance(layer, keras.layers.BatchNormalization) and not known:
            raise ValueError(
                "Only Keras' own BatchNormalization can take the statistics of all replicas' rows. "
                f"Received: layer {layer.name} of the class {type(layer).__name__}"
            )
    optimizer = model.optimizer
    if _BACKEND != "tensorflow" or optimizer is None:
        return
    if model.steps_per_execution > 1:
        raise ValueError(
            "Under a tf.distribute strategy Keras cannot run several steps in one call: leave "
            f"`steps_per_execution` out. Received: steps_per_execution={model.steps_per_execution}"
        )
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


def process_share() -> tuple[int, int]:
    """`(index, count)` of the part of every batch that this process reads from arrays.

    PyTorch's processes and JAX's hosts are given their parts; TensorFlow's strategies divide
    batches themselves.
    """
    return (0, 1) if _BACKEND == "tensorflow" else _process(None)


def common_seed(model, seed: int | None) -> int | None:
    """A seed of the data's order that all processes which share its batches have alike."""
    return 0 if seed is None and _process(model)[1] > 1 else seed


def callbacks_of_this_process(model, callbacks: list) -> list:
    """Without those of `first_process_only`, which write files, where another process has them."""
    first = _process(model)[0] == 0
    return [c for c in callbacks if first or not getattr(c, "first_process_only", False)]


def _process(model) -> tuple[int, int]:
    """`(index, count)` of the processes that train together."""
    if _BACKEND == "jax":
        import jax

        return jax.process_index(), jax.process_count()
    if _BACKEND == "torch":
        replicas = replicas_here()
        return (0, 1) if replicas is None else (replicas.get_rank(), replicas.get_world_size())
    strategy = model.distribute_strategy
    if not _spans_hosts(strategy):
        return 0, 1
    cluster = strategy.cluster_resolver
    return cluster.task_id, sum(map(len, cluster.cluster_spec().as_dict().values()))


@contextlib.contextmanager
def alone():
    """What one of several processes does without the others.

    Keras makes variables while it saves a model, which under a distribution of several hosts on
    JAX all of them would have to do together.
    """
    distribution = keras.distribution.distribution() if _BACKEND == "jax" else None
    if distribution is None:
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def begin_equal(model) -> None:
    """PyTorch: gives every process the variables of the first one, as training has to begin so."""
    replicas = replicas_here()
    if _BACKEND != "torch" or replicas is None:
        return
    import torch

    with torch.no_grad():
        for variable in model.variables:
            replicas.broadcast(variable.value, src=0)


def meet(place: str) -> None:
    """Refuses processes that are not at the same place of a run, in all of them alike.

    What is put together waits for every process, and would wait for ever for one that has no
    further batch. So PyTorch's processes say before every step, and where batches end, where they
    are (1 ms for two on a busy machine). JAX's hosts run ahead of their devices and meet only where
    `fit` and `evaluate` begin.

    Args:
        place: in words, less than 128 bytes.

    Raises:
        ValueError: another process is elsewhere.
    """
    own = np.frombuffer(place.encode().ljust(128)[:128], "uint8")
    replicas = replicas_here()
    if _BACKEND == "torch" and replicas is not None:
        import torch

        parts = [torch.empty(len(own), dtype=torch.uint8) for _ in range(replica_count())]
        group = _host_group(replicas.group.WORLD)
        replicas.all_gather(parts, torch.tensor(own), group=group)
        parts = [part.numpy() for part in parts]
    elif _BACKEND == "jax" and keras.distribution.distribution() and _process(None)[1] > 1:
        from jax.experimental import multihost_utils

        parts = multihost_utils.process_allgather(own)
    else:
        return
    places = [bytes(part).decode().rstrip() for part in parts]
    if len(set(places)) > 1:
        first = {said: process for process, said in reversed(list(enumerate(places)))}
        found = "; ".join(f"process {first[said]}: {said}" for said in sorted(first, key=first.get))
        raise ValueError(
            "All processes must take the same steps: equally many batches of equally many rows, in "
            "the same epochs. Leave incomplete batches out (`drop_last=True`), and give every "
            "process equally many batches, or `steps_per_epoch` and datasets that do not end. "
            f"Received: {found}"
        )


@functools.lru_cache(maxsize=1)
def _host_group(world):
    """The processes of PyTorch as a group that exchanges from the host's memory, which NCCL cannot.

    So no step has to wait for what the accelerator still computes.
    """
    import torch.distributed as distributed

    return (
        world
        if distributed.get_backend(world) == "gloo"
        else distributed.new_group(None, backend="gloo")
    )


def mean_of_logs(logs: dict) -> dict:
    """The mean over all processes of every number in the logs of a step."""
    replicas = replicas_here()
    if _BACKEND != "torch" or replicas is None:
        return equal_logs(logs)
    if getattr(here, "rows", None) is None:  # not those of a step
        meet("the end of its batches")
    names = sorted(logs)
    values = ops.stack([ops.cast(logs[name], "float32") for name in names])
    return dict(zip(names, all_reduce_mean(ops.stop_gradient(values)), strict=True))


def equal_logs(logs: dict) -> dict:
    """Numbers for the logs of a step that are the same on all replicas.

    Where TensorFlow's strategy spans hosts, Keras takes the mean of the replicas' logs along a
    first axis, which numbers do not have: here they get one.
    """
    replicas = replicas_here()
    if _BACKEND != "tensorflow" or replicas is None or not _spans_hosts(replicas.strategy):
        return logs
    return {name: ops.convert_to_tensor(value)[None] for name, value in logs.items()}


def _spans_hosts(strategy) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
