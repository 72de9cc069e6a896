"""The slow copy of the network that MoCo, BYOL and DINO learn from, kept up inside the step."""

import re

import keras
import numpy as np
from keras import ops

from keras_ssl.training.cross_device import count_of
from keras_ssl.training.device import clear_gradients
from keras_ssl.training.schedules import CosineMomentum

# The states of random streams: a copy may have none, or draws numbers of its own.
_STREAM = re.compile(r"stream[^/]*/state$")
# Variables that are no parameters: what a layer keeps count of, whatever its weights are.
_STATE = re.compile(r"(moving_mean|moving_variance|vector_u|seed_generator_state|state|count)$")


def copy_layer(layer, changes: dict | None = None):
    """A second layer or model of the same class and configuration, with the same values.

    `changes` replace parts of the configuration that make no weights.

    The values go through NumPy: two variables that share one buffer cannot both be donated to a
    compiled step on JAX.
    """
    copy = type(layer).from_config({**layer.get_config(), **(changes or {})})
    if layer.built and not copy.built:
        copy.build_from_config(layer.get_build_config())
    copy_weights(layer, copy)
    return copy


def weights_of(layer) -> list:
    """The weights of a layer or model without the states of random streams."""
    return [weight for weight in layer.weights if not _STREAM.search(weight.path)]


def copy_weights(source, target) -> None:
    """Gives one layer the values of another of the same architecture, random streams excepted."""
    for to, value in zip(weights_of(target), weights_of(source), strict=True):
        to.assign(ops.convert_to_numpy(value).copy())


class MomentumTeacher:
    """Mixin, left of the task: a teacher that is the moving average of the student.

    After every update of the optimizer, and inside the same compiled step,

    `teacher = m * teacher + (1 - m) * student`

    over the parameters, frozen ones too. The moving statistics of the teacher's batch
    normalisation are its own: it runs in training mode, so it normalises by the batch and keeps
    its own averages, as in the published codes of MoCo, BYOL and DINO. The teacher has no
    gradient, no place in the optimizer, and so no weight decay; it is saved with the model, and
    so are its counters, so that training continues exactly.

    With gradient accumulation the average moves when the student does, once in every
    `gradient_accumulation_steps` batches. Without, a step that loss scaling skips
    (mixed_float16) moves it all the same, as in the published codes.

    A method calls `add_teacher` once its student layers are there.

    Attributes:
        teacher_update: `"after"` the optimizer's update (BYOL, DINO), or `"before"` the forward
            pass (MoCo: the average takes in the weights that the last step left, so the stored
            teacher is one update behind the student).
        momentum: `m`, or its start where there is a schedule.
        momentum_schedule: `"constant"` or `"cosine"`: `m` rises to 1 along half a cosine over the
            updates of the first `fit` (or of `compile(epochs=...)`); see `CosineMomentum`.
        teacher_step: counts the updates of the teacher.
        teacher_seen: with gradient accumulation, the optimizer's count at the last update.
        teacher_total_steps: length of the schedule; 0 before it is laid out, when `m` is constant.

    Reference:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020,
        equation 2; Grill et al., Bootstrap your own latent, 2020, section 3.1.
    """

    teacher_update = "after"

    def add_teacher(self, *names: str, momentum: float, schedule: str = "constant") -> None:
        """Makes `teacher_<name>` of every layer `self.<name>`.

        Args:
            names: attributes that hold the student's layers, built.
            momentum: `m` in [0, 1].
            schedule: `"constant"` or `"cosine"`.

        Raises:
            ValueError: for a momentum outside [0, 1] or an unknown schedule.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"`momentum` must lie in [0, 1]. Received: momentum={momentum}")
        if schedule not in ("constant", "cosine"):
            raise ValueError(
                '`momentum_schedule` must be "constant" or "cosine". '
                f"Received: momentum_schedule={schedule!r}"
            )
        self.momentum = float(momentum)
        self.momentum_schedule = schedule
        self._teacher_names = tuple(names)
        pairs = []
        for name in names:
            student = getattr(self, name)
            # The teacher is the whole network: no stochastic depth, in its training mode either.
            drops = "drop_path_rate" in student.get_config()
            teacher = copy_layer(student, {"drop_path_rate": 0.0} if drops else None)
            # By position: both were made from one configuration.
            for target, source in zip(weights_of(teacher), weights_of(student), strict=True):
                if source.trainable or not _STATE.search(source.path):
                    pairs.append((target, source))
            for variable in teacher.variables:
                # Not `teacher.trainable = False`: that would put batch normalisation on its
                # moving statistics.
                variable.trainable = False
            setattr(self, f"teacher_{name}", teacher)
        self._teacher_pairs = tuple(pairs)
        counter = dict(shape=(), dtype="int", initializer="zeros", trainable=False)
        self.teacher_step = self.add_weight(**counter, name="teacher_step")
        self.teacher_total_steps = self.add_weight(**counter, name="teacher_total_steps")
        self.teacher_seen = self.add_weight(**counter, name="teacher_seen")

    def reset_teacher(self) -> None:
        """Makes the teacher equal to the student; call it after weights were loaded into one."""
        for name in self._teacher_names:
            copy_weights(getattr(self, name), getattr(self, f"teacher_{name}"))

    def teacher_distance(self) -> float:
        """`|teacher - student| / |student|` over all parameters that are averaged."""
        squares = np.zeros(2)
        for pair in self._teacher_pairs:
            teacher, student = (ops.convert_to_numpy(v).astype("float64") for v in pair)
            squares += np.sum((teacher - student) ** 2), np.sum(student**2)
        return float(np.sqrt(squares[0] / max(squares[1], 1e-30)))

    def teacher_rate(self):
        """`1 - m` of the next update, a float32 scalar."""
        constant = ops.convert_to_tensor(1.0 - self.momentum, dtype="float32")
        if self.momentum_schedule == "constant":
            return constant
        total = ops.convert_to_tensor(self.teacher_total_steps)
        # The whole schedule is a multiple of its first value: (1 - m) = (1 - base) * decay.
        decay = 1.0 - CosineMomentum(1.0, base=0.0)(
            ops.cast(self.teacher_step, "float32") / ops.cast(ops.maximum(total, 1), "float32")
        )
        return ops.where(total > 0, constant * decay, constant)

    def update_teacher(self) -> None:
        """One update of the teacher, unless the student waits for more accumulated batches."""
        rate, one = self.teacher_rate(), 1
        if _accumulation(self.optimizer) > 1:
            # Keras counts updates here, not batches: the student moved where the count did.
            updates = ops.cast(self.optimizer.iterations, self.teacher_seen.dtype)
            moves = ops.not_equal(updates, ops.convert_to_tensor(self.teacher_seen))
            rate, one = ops.where(moves, rate, 0.0), ops.cast(moves, self.teacher_step.dtype)
            self.teacher_seen.assign(updates)
        self.teacher_step.assign_add(one)
        if keras.backend.backend() == "torch":
            _lerp(self._teacher_pairs, rate)
            return
        for teacher, student in self._teacher_pairs:
            old = ops.convert_to_tensor(teacher)
            new = old + ops.cast(rate, old.dtype) * (ops.convert_to_tensor(student) - old)
            teacher.assign(new)

    def update_step(self, *args):
        before = self.teacher_update == "before"
        if keras.backend.backend() != "jax":
            clear_gradients(self.trainable_variables)
            if before:
                self.update_teacher()
            logs = super().update_step(*args)
            if not before:
                self.update_teacher()
            return logs
        if before:
            state, data = args
            return super().update_step(self._updated(state), data)
        logs, state = super().update_step(*args)
        return logs, self._updated(state)

    def _updated(self, state):
        """JAX: the state of a step with the teacher moved."""
        trainable, non_trainable, optimizer, metrics = state
        mapping = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, non_trainable, strict=True),
            *zip(self.optimizer.variables, optimizer, strict=True),
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.update_teacher()
        non_trainable = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return trainable, non_trainable, optimizer, metrics

    def _plan(self, batch_size, steps_per_epoch, epochs, initial_epoch):
        super()._plan(batch_size, steps_per_epoch, epochs, initial_epoch)
        self._follow(self.optimizer)
        if steps_per_epoch is None or self.momentum_schedule == "constant":
            return
        accumulate = _accumulation(self.optimizer)
        # An update before the step is of the first of its batches, one after it of the last: an
        # incomplete window at the end has only the first.
        rest = accumulate - 1 if self.teacher_update == "before" else 0
        to_do = steps_per_epoch * (epochs - initial_epoch) // accumulate
        if count_of(self.teacher_step) + to_do > count_of(self.teacher_total_steps):
            auto = self._auto_compile or {}
            batches = steps_per_epoch * (auto.get("epochs") or epochs)
            self.teacher_total_steps.assign(max(1, (batches + rest) // accumulate))
            self.teacher_step.assign(0)

    def _follow(self, optimizer):
        """Takes up the count of an optimizer that is new here or was loaded."""
        if _accumulation(optimizer) == 1:
            return
        updates, seen = count_of(optimizer.iterations), count_of(self.teacher_seen)
        if self.teacher_update == "after":
            self.teacher_seen.assign(updates)
        elif seen > updates or not updates and not count_of(self.teacher_step):
            self.teacher_seen.assign(updates - 1)


def _accumulation(optimizer) -> int:
    """Batches to an update; loss scaling wraps the optimizer that knows."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer.gradient_accumulation_steps or 1


def _lerp(pairs, rate):
    """PyTorch: all pairs in a few multi-tensor calls instead of one small kernel after another."""
    import torch

    with torch.no_grad():
        groups = {}
        for teacher, student in pairs:
            key = (teacher.value.dtype, teacher.value.device)
            groups.setdefault(key, []).append((teacher.value, student.value))
        for group in groups.values():
            teachers, students = (list(values) for values in zip(*group, strict=True))
            differences = torch._foreach_sub(students, teachers)
            torch._foreach_mul_(differences, rate.to(teachers[0].device))
            torch._foreach_add_(teachers, differences)
