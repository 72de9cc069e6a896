"""Schedules: pure functions of the step, for learning rates, weight decay and teacher momentum."""

import math

import keras
from keras import ops


def scale_learning_rate(
    base_learning_rate: float, batch_size: int, divisor: float = 256, rule: str = "linear"
) -> float:
    """Scales a learning rate to the batch size.

    `"linear"`: `base * batch_size / divisor` (Goyal et al. 2017; MAE, SimCLR, BYOL, DINO, MoCo v3
    with divisor 256). `"sqrt"`: `base * sqrt(batch_size / divisor)` (SimCLR's square-root scaling
    with divisor 1, DINOv2 with divisor 1024).

    Args:
        base_learning_rate: the learning rate at batch size `divisor`.
        batch_size: global batch size: over all devices and accumulated batches.
        divisor: the batch size that the base learning rate stands for.
        rule: "linear" or "sqrt".

    Returns:
        The scaled learning rate, a Python float.

    Raises:
        ValueError: for a size that is not positive or an unknown rule.

    Example:

    >>> scale_learning_rate(1.5e-4, 4096)
    0.0024
    """
    if not (batch_size > 0 and divisor > 0):
        raise ValueError(
            "`batch_size` and `divisor` must be greater than 0. "
            f"Received: batch_size={batch_size}, divisor={divisor}"
        )
    if rule == "linear":
        return float(base_learning_rate * batch_size / divisor)
    if rule == "sqrt":
        return float(base_learning_rate * math.sqrt(batch_size / divisor))
    raise ValueError(f'`rule` must be "linear" or "sqrt". Received: rule={rule!r}')


def _check_steps(**steps):
    for argument, value in steps.items():
        minimum = 1 if argument in ("total_steps", "update_every") else 0
        if not (isinstance(value, (int, float)) and minimum <= value < math.inf):
            raise ValueError(
                f"`{argument}` must be a number >= {minimum}. Received: {argument}={value!r}"
            )


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Base of our schedules: `schedule(step)` is a float32 tensor of the shape of `step`.

    `step` counts from 0 (the first update uses `schedule(0)`), may be a number, an array or a
    tensor, and may be fractional. Nothing is stored, so a schedule continues wherever the step
    counter does.
    """

    _arguments: tuple = ()

    def _unit(self, step):
        """The step in units of `update_every` steps."""
        step = ops.cast(step, "float32")
        if self.update_every == 1:
            return step
        return ops.floor(step / self.update_every)

    def get_config(self):
        return {argument: getattr(self, argument) for argument in self._arguments}


def _warmup(unit, peak, start, steps, includes_peak):
    """Linear from `start` (at 0) to `peak` (at `steps`, or already at `steps - 1`)."""
    divisor = max(steps - 1 if includes_peak else steps, 1)
    return start + (peak - start) * (unit / divisor)


def _cosine(remaining):
    """(1 + cos(pi * (1 - remaining))) / 2 for `remaining` in [0, 1].

    As a squared sine, which keeps its relative precision in float32 down to the last step, where
    the usual form is off by several percent.
    """
    return ops.square(ops.sin((math.pi / 2) * ops.clip(remaining, 0.0, 1.0)))


@keras.saving.register_keras_serializable(package="keras_ssl")
class WarmupCosine(Schedule):
    """Linear warm-up followed by half a cosine.

    With `f = freeze_steps`, `w = warmup_steps`, `T = total_steps`:

    ```
    step < f:          0
    f <= step < f + w: start + (peak - start) * (step - f) / w
    f + w <= step < T: final + (peak - final) * (1 + cos(pi * (step - f - w) / (T - f - w))) / 2
    T <= step:         final
    ```

    | reference | options beside peak, total_steps, warmup_steps |
    | --- | --- |
    | SimCLR, BYOL, MoCo v3 | none |
    | MAE (`min_lr`) | `final=min_lr` |
    | Barlow Twins, VICReg | `final=0.001 * peak` |
    | DINO's `cosine_scheduler` | `start=...`, `final=...`, `warmup_includes_peak=True` |
    | DINOv2's `CosineScheduler` | the same and `freeze_steps` |
    | DINO's weight decay, 0.04 to 0.4 | `peak=0.04, final=0.4`, no warm-up |
    | MoCo v1/v2, SimSiam (once an epoch) | `update_every=steps_per_epoch` |

    Args:
        peak: value at the end of the warm-up.
        total_steps: length of the whole schedule in steps, warm-up included.
        warmup_steps: length of the warm-up in steps.
        start: value at the first step of the warm-up.
        final: value from `total_steps` on. May be greater than `peak`.
        freeze_steps: number of steps at value 0 before the warm-up.
        warmup_includes_peak: if True, the last step of the warm-up has the peak value, which the
            first step of the cosine repeats (`numpy.linspace` in DINO's code); the divisor in
            the equation is then `w - 1`.
        update_every: the value changes once in this many steps: `step`, and all lengths, are
            divided by it and the step is rounded down.

    Raises:
        ValueError: for negative lengths, or a warm-up that does not fit in `total_steps`.

    Example:

    >>> schedule = WarmupCosine(0.1, total_steps=100, warmup_steps=10)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.05, 0.1, 0.05, 0.0]

    Reference:
        Loshchilov and Hutter, "SGDR", 2017, eq. 5; Goyal et al., "Accurate, Large Minibatch SGD",
        2017, section 2.2.
    """

    _arguments = (
        "peak",
        "total_steps",
        "warmup_steps",
        "start",
        "final",
        "freeze_steps",
        "warmup_includes_peak",
        "update_every",
    )

    def __init__(
        self,
        peak: float,
        total_steps: float,
        warmup_steps: float = 0,
        start: float = 0.0,
        final: float = 0.0,
        freeze_steps: float = 0,
        warmup_includes_peak: bool = False,
        update_every: int = 1,
    ):
        super().__init__()
        _check_steps(
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            freeze_steps=freeze_steps,
            update_every=update_every,
        )
        if warmup_steps + freeze_steps > total_steps:
            raise ValueError(
                "`warmup_steps` and `freeze_steps` must fit in `total_steps`. Received: "
                f"warmup_steps={warmup_steps}, freeze_steps={freeze_steps}, "
                f"total_steps={total_steps}"
            )
        self.peak = float(peak)
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.start = float(start)
        self.final = float(final)
        self.freeze_steps = freeze_steps
        self.warmup_includes_peak = bool(warmup_includes_peak)
        self.update_every = update_every

    def __call__(self, step):
        unit = self._unit(step)
        every = self.update_every
        total, freeze = self.total_steps / every, self.freeze_steps / every
        warmup = self.warmup_steps / every
        decay = max(total - warmup - freeze, 1e-6)
        value = self.final + (self.peak - self.final) * _cosine((total - unit) / decay)
        if warmup:
            linear = _warmup(
                unit - freeze, self.peak, self.start, warmup, self.warmup_includes_peak
            )
            value = ops.where(unit < freeze + warmup, linear, value)
        if freeze:
            value = ops.where(unit < freeze, ops.zeros_like(value), value)
        return value


@keras.saving.register_keras_serializable(package="keras_ssl")
class WarmupLinear(Schedule):
    """Linear warm-up, then linear to zero (ALIGN, BERT).

    `peak * step / warmup_steps` before `warmup_steps`, and
    `peak * (total_steps - step) / (total_steps - warmup_steps)` from there on.

    Args:
        peak: value at `warmup_steps`.
        total_steps: where zero is reached.
        warmup_steps: length of the warm-up in steps.

    Raises:
        ValueError: for negative lengths.

    Example:

    >>> schedule = WarmupLinear(0.4, total_steps=8, warmup_steps=4)
    >>> [round(float(schedule(step)), 2) for step in range(0, 9, 2)]
    [0.0, 0.2, 0.4, 0.2, 0.0]

    Reference:
        Jia et al., Scaling Up Visual and Vision-Language Representation Learning With Noisy Text
        Supervision, 2021, section 5.
    """

    _arguments = ("peak", "total_steps", "warmup_steps")

    def __init__(self, peak: float, total_steps: float, warmup_steps: float = 0):
        super().__init__()
        _check_steps(total_steps=total_steps, warmup_steps=warmup_steps)
        self.peak = float(peak)
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rising = step / max(self.warmup_steps, 1)
        length = max(self.total_steps - self.warmup_steps, 1)
        falling = ops.clip((self.total_steps - step) / length, 0.0, 1.0)
        return self.peak * ops.where(step < self.warmup_steps, rising, falling)


@keras.saving.register_keras_serializable(package="keras_ssl")
class LinearWarmup(Schedule):
    """Linear warm-up to a constant.

    `start + (peak - start) * step / warmup_steps` before `warmup_steps`, `peak` from there on.
    DINO's teacher temperature (`numpy.linspace` over epochs) is `LinearWarmup(0.07, 30 * n,
    start=0.04, warmup_includes_peak=True, update_every=n)` with `n` steps in an epoch.

    Args:
        peak: value from `warmup_steps` on.
        warmup_steps: length of the warm-up in steps.
        start: value at step 0.
        warmup_includes_peak: if True, the peak is reached at `warmup_steps - 1`.
        update_every: the value changes once in this many steps; see `WarmupCosine`.

    Raises:
        ValueError: for negative lengths.

    Example:

    >>> schedule = LinearWarmup(0.4, warmup_steps=4)
    >>> [round(float(schedule(step)), 2) for step in range(6)]
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.4]

    Reference:
        Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.2.
    """

    _arguments = ("peak", "warmup_steps", "start", "warmup_includes_peak", "update_every")

    def __init__(
        self,
        peak: float,
        warmup_steps: float,
        start: float = 0.0,
        warmup_includes_peak: bool = False,
        update_every: int = 1,
    ):
        super().__init__()
        _check_steps(warmup_steps=warmup_steps, update_every=update_every)
        self.peak = float(peak)
        self.warmup_steps = warmup_steps
        self.start = float(start)
        self.warmup_includes_peak = bool(warmup_includes_peak)
        self.update_every = update_every

    def __call__(self, step):
        unit = self._unit(step)
        warmup = self.warmup_steps / self.update_every
        linear = _warmup(unit, self.peak, self.start, warmup, self.warmup_includes_peak)
        return ops.where(unit < warmup, linear, ops.full_like(linear, self.peak))


@keras.saving.register_keras_serializable(package="keras_ssl")
class CosineMomentum(Schedule):
    """Momentum of an EMA teacher that rises to `final` along half a cosine.

    `m = final - (final - base) * (1 + cos(pi * step / total_steps)) / 2`, and `final` from
    `total_steps` on. Step `k` (counted from 0) gives the momentum that follows update `k`.

    Args:
        total_steps: length of the schedule in steps.
        base: momentum at step 0. 0.996 in BYOL and DINO, 0.99 in MoCo v3, 0.992 in DINOv2.
        final: momentum from `total_steps` on.
        update_every: the value changes once in this many steps; see `WarmupCosine`.

    Raises:
        ValueError: for a momentum outside [0, 1] or a length that is not positive.

    Example:

    >>> schedule = CosineMomentum(100)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100)]
    [0.996, 0.998, 1.0]

    Reference:
        Grill et al., "Bootstrap your own latent", 2020, section 3.2.
    """

    _arguments = ("total_steps", "base", "final", "update_every")

    def __init__(
        self,
        total_steps: float,
        base: float = 0.996,
        final: float = 1.0,
        update_every: int = 1,
    ):
        super().__init__()
        _check_steps(total_steps=total_steps, update_every=update_every)
        for argument, value in (("base", base), ("final", final)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`{argument}` must be in [0, 1]. Received: {argument}={value}")
        self.total_steps = total_steps
        self.base = float(base)
        self.final = float(final)
        self.update_every = update_every

    def __call__(self, step):
        total = self.total_steps / self.update_every
        remaining = (total - self._unit(step)) / total
        return self.final - (self.final - self.base) * _cosine(remaining)
