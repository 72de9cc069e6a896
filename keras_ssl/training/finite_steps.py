"""Steps that end in NaN or infinity: found inside the compiled step, named, or undone."""

import contextlib

import keras
from keras import ops

from keras_ssl.training.cross_device import all_reduce_max
from keras_ssl.training.replicas import equal_logs

# Name of the count in the logs of a batch; the callback takes it out again.
_COUNT = "non_finite_steps"


class NonFiniteError(FloatingPointError, ValueError):
    """A training step ended in NaN or infinity.

    Attributes:
        epoch: of the step, from 1.
        batch: of the epoch, from 1.
        in_data: whether the batch itself held NaN or infinity.
    """

    def __init__(self, epoch: int, batch: int, in_data: bool):
        self.epoch, self.batch, self.in_data = epoch, batch, in_data
        if in_data:
            why = "The data of this batch hold NaN or infinity: repair or leave out the pictures"
        else:
            why = (
                "The data of this batch are finite, the numbers in the step are not: lower the "
                "learning rate, or compute in float32 or bfloat16 instead of float16"
            )
        super().__init__(
            "The loss, the weights or the model's state became NaN or infinite in batch "
            f"{batch} of epoch {epoch}. {why}, and go on from the last checkpoint; "
            f'or leave such batches out: non_finite="skip". '
            f"Received: epoch={epoch}, batch={batch} (from 1)"
        )


class _Tally(keras.metrics.Metric):
    """Of the steps of an epoch: how many, how many not finite, the first of those (from 1), and
    whether it was its data's fault. A metric, so that it travels with the step's state on every
    backend and begins again with every epoch."""

    def __init__(self):
        super().__init__(name=_COUNT)
        self.values = self.add_variable(
            (4,), "zeros", aggregation="only_first_replica", name="values"
        )

    def update_state(self, finite, data_finite):
        bad, bad_data = 1.0 - ops.cast(finite, "float32"), 1.0 - ops.cast(data_finite, "float32")
        steps, count, first, in_data = ops.unstack(ops.convert_to_tensor(self.values), 4)
        known = first > 0
        new = [
            steps + 1.0,
            count + bad,
            ops.where(known, first, bad * (steps + 1.0)),
            ops.where(known, in_data, bad * bad_data),
        ]
        self.values.assign(ops.stack(new))

    def result(self):
        return ops.convert_to_tensor(self.values)[1]

    def save_own_variables(self, store):  # of an epoch, not of a model
        pass

    def load_own_variables(self, store):
        pass


class StepGuard:
    """Watches whether the numbers that a training step leaves are finite.

    Everything happens on the device, inside the compiled step: nothing waits for the host. With
    `"stop"` the loss, the weights and what the model keeps beside them (moving statistics, teacher,
    queue, centre) are looked at, and the place of the first bad step is kept
    for `FiniteSteps`. With `"skip"` all state is looked at, and a bad step is undone as a whole:
    weights, optimizer, teacher, queue, centre, statistics, counters and random streams are what
    they would be if the batch had not been there. That takes memory for one more copy of them.

    Args:
        action: `"stop"` or `"skip"`.
        strategy: of `tf.distribute`, where there is one.
    """

    def __init__(self, action: str, strategy=None):
        if action not in ("stop", "skip"):
            raise ValueError(
                f'`non_finite` must be "stop", "skip" or None. Received: non_finite={action!r}'
            )
        self.action = action
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            self.tally = _Tally()

    def step(self, model, update, args):
        """`update(*args)`, watched.

        Args:
            model: that is trained.
            update: a `train_step`.
            args: its arguments: `(data,)`, or `(state, data)` on JAX.
        """
        x, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        data_finite = _everywhere(all_finite(t for t in keras.tree.flatten(x) if t is not None))
        if keras.backend.backend() == "jax":
            return self._stateless(model, update, args, data_finite)
        with _gradients(False):
            return self._in_place(model, update, args, data_finite)

    def _stateless(self, model, update, args, data_finite):
        logs, new = update(*args)
        watched = new if self.action == "skip" else (new[0], new[1], new[3])
        finite = all_finite(keras.tree.flatten(watched))
        if self.action == "skip":
            new = keras.tree.map_structure(lambda a, b: ops.where(finite, a, b), new, args[0])
        mapping = list(zip(model.metrics_variables, new[3], strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logs = self._count(model, logs, finite, data_finite)
        metrics = [scope.get_current_value(v) for v in model.metrics_variables]
        return logs, (*new[:3], metrics)

    def _in_place(self, model, update, args, data_finite):
        numbers = [*model.variables, *model.metrics_variables]
        state = [*numbers, *model.optimizer.variables]
        state = list({id(v): v for v in state if v is not self.tally.values}.values())
        old = [ops.copy(v) for v in state] if self.action == "skip" else []
        with _gradients(True):
            logs = update(*args)
        watched = state if self.action == "skip" else numbers
        finite = _everywhere(all_finite(watched))
        for variable, value in zip(state, old, strict=False):
            variable.assign(ops.where(finite, variable, value))
        return self._count(model, logs, finite, data_finite)

    def _count(self, model, logs, finite, data_finite):
        self.tally.update_state(finite, data_finite)
        if self.action == "skip":  # without the batch that was undone
            logs = model.get_metrics_result()
        return {**logs, **equal_logs({_COUNT: self.tally.result()})}


class FiniteSteps(keras.callbacks.Callback):
    """Reads what a `StepGuard` found: `fit` puts it first in the list.

    It looks at the end of every epoch and once in `every` steps, so a run stops at most so many
    steps late, and the steps between need not wait for each other. With `"skip"` it logs
    `skipped_batches`.

    Args:
        guard: the model's.
        every: steps between two looks.

    Raises:
        NonFiniteError: with `"stop"`, when a step of the epoch was not finite.
    """

    def __init__(self, guard: StepGuard, every: int = 50):
        super().__init__()
        self.guard = guard
        self.every = every
        self.async_safe = True  # reads a number of the logs, now and then
        self._look_at = every

    def on_epoch_begin(self, epoch, logs=None):
        self._look_at = self.every
        # Kept for the batches, which may end in another thread: on JAX asking a callback for its
        # model fetches the state of a step, and the one that runs has given it away.
        self._trained = self.model

    def on_train_batch_end(self, batch, logs=None):
        count = logs.pop(_COUNT, None) if logs else None
        if count is None or self.guard.action == "skip" or batch < self._look_at:
            return
        self._look_at = batch + self.every
        if float(count) > 0:
            self._trained.stop_training = True  # the epoch ends here, and with it the run

    def on_epoch_end(self, epoch, logs=None):
        _, count, first, in_data = ops.convert_to_numpy(self.guard.tally.values)
        if logs is not None:
            logs.pop(_COUNT, None)
            if self.guard.action == "skip":
                logs["skipped_batches"] = int(count)
        if count and self.guard.action == "stop":
            raise NonFiniteError(epoch + 1, int(first), bool(in_data))


def all_finite(tensors):
    """Whether all numbers of these tensors or variables are finite, a boolean scalar."""
    tensors = [t for t in tensors if keras.backend.is_float_dtype(_dtype(t))]
    if not tensors:
        return ops.convert_to_tensor(True)
    if keras.backend.backend() == "torch":
        import torch

        # A few calls for all tensors. The largest magnitude is NaN where one number is.
        tensors = [torch.as_tensor(ops.convert_to_tensor(t)) for t in tensors if 0 not in t.shape]
        return torch.isfinite(torch.stack(torch._foreach_norm(tensors, float("inf")))).all()
    return ops.all(ops.stack([ops.all(ops.isfinite(ops.convert_to_tensor(t))) for t in tensors]))


def _dtype(tensor) -> str:
    return keras.backend.standardize_dtype(tensor.dtype)


def _everywhere(finite):
    """Finite on all replicas of a step on several devices: they skip together."""
    return all_reduce_max(1.0 - ops.cast(finite, "float32")) == 0


def _gradients(enabled: bool):
    """PyTorch: whether operations are recorded for a gradient."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.set_grad_enabled(enabled)
