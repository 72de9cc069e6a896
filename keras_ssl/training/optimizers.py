"""Optimizers of the self-supervised papers: AdamW as in PyTorch, and LARS.

Both keep their parameter groups (weight-decay exclusions, learning-rate multipliers) as regular
expressions on `variable.path`, so that a saved model continues with the same groups.
"""

import functools
import math
import re

import keras
from keras import ops

from keras_ssl.training.cross_device import share_of_loss, whole_gradients

_TORCH = keras.backend.backend() == "torch"
if _TORCH:
    import torch
    from torch.optim.adamw import adamw as torch_adamw

# Devices with a fused AdamW kernel in PyTorch; others take the per-variable path.
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def _patterns(value, argument):
    """Checks a list of regular expressions and returns it as a tuple."""
    if isinstance(value, str):
        raise ValueError(
            f"`{argument}` must be a list or tuple of regular expressions, not a single string. "
            f"Use `{argument}=({value!r},)`. Received: {argument}={value!r}"
        )
    value = tuple(value)
    for pattern in value:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`{argument}` must hold valid regular expressions ({error}). "
                f"Received: {argument}={value!r}"
            ) from error
    return value


def _matches(patterns, path):
    return any(re.search(pattern, path) for pattern in patterns)


def _path(variable):
    return getattr(variable, "path", variable.name)


def _check_clipping(optimizer, norm, groups):
    if norm is None:
        if groups is not None:
            raise ValueError(
                "`clip_groups` needs `clip_group_norm`, the norm that every group is clipped to. "
                f"Received: clip_groups={groups}"
            )
        return
    if not (isinstance(norm, (int, float)) and norm > 0.0):
        raise ValueError(
            f"`clip_group_norm` must be greater than 0. Received: clip_group_norm={norm}"
        )
    if any((optimizer.clipnorm, optimizer.clipvalue, optimizer.global_clipnorm)):
        raise ValueError(
            "Only one of `clipnorm`, `clipvalue`, `global_clipnorm` and `clip_group_norm` can be "
            f"given. Received: clip_group_norm={norm}"
        )


def _clip_factors(gradients, groups, limit):
    """`min(1, limit / (norm + 1e-6))` of every group of positions, as PyTorch clips."""
    if _TORCH:  # two multi-tensor calls instead of a kernel for every gradient
        norms = torch.stack([n.float() for n in torch._foreach_norm(gradients)]).unbind()
        squares = torch._foreach_mul(list(norms), list(norms))
    else:
        squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients]
    for positions in groups:
        norm = ops.sqrt(sum(squares[i] for i in positions))
        yield ops.minimum(limit / (norm + 1e-6), 1.0)


def _dense(gradient):
    if not hasattr(gradient, "dense_shape"):
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


class _Group:
    """What the update of one variable needs to know."""

    __slots__ = ("path", "decay", "adapt", "multiplier", "frozen", "clip")

    def __init__(self, path, decay, adapt, multiplier, frozen, clip):
        self.path, self.decay, self.adapt = path, decay, adapt
        self.multiplier, self.frozen, self.clip = multiplier, frozen, clip


class _Step:
    """Scratch space of one call of `apply`.

    A plain object: attributes of an optimizer are wrapped by Keras' and TensorFlow's trackers.
    """

    def __init__(self):
        self.begin(0)

    def begin(self, expected, known=()):
        self.expected = expected
        self.known = known  # variables in the order of the gradients that are clipped
        self.scalars = None
        self.cache = {}
        self.gradients = []
        self.variables = []

    def once(self, key, make):
        """What `make` gives, computed once a step."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


class GroupedOptimizer(keras.optimizers.Optimizer):
    """Base of our optimizers: parameter groups by regular expression, one pass over all variables.

    Scalars that do not depend on the variable (learning rate, bias corrections) are computed once a
    step. On PyTorch the updates of all variables are collected and run as a few multi-tensor calls,
    as eager PyTorch otherwise spends its time in the dispatch of small kernels.
    """

    def __init__(
        self,
        learning_rate,
        weight_decay,
        exclude_from_weight_decay=(),
        exclude_from_layer_adaptation=None,
        exclude_1d=False,
        learning_rate_multipliers=None,
        frozen_steps=None,
        clip_group_norm=None,
        clip_groups=None,
        **kwargs,
    ):
        # Keras' own decay must stay off: it knows neither our groups nor our order of operations.
        super().__init__(learning_rate=learning_rate, weight_decay=None, **kwargs)
        if not callable(weight_decay):
            weight_decay = 0.0 if weight_decay is None else float(weight_decay)
            if not (0.0 <= weight_decay < math.inf):
                raise ValueError(
                    "`weight_decay` must be a finite number >= 0 or a schedule (a callable of the "
                    f"step). Received: weight_decay={weight_decay}"
                )
        multipliers = dict(learning_rate_multipliers or {})
        _patterns(multipliers, "learning_rate_multipliers")
        for pattern, multiplier in multipliers.items():
            if not (callable(multiplier) or 0.0 <= float(multiplier) < math.inf):
                raise ValueError(
                    "`learning_rate_multipliers` must map regular expressions to finite numbers "
                    f">= 0 or schedules. Received: {pattern!r}: {multiplier}"
                )
        frozen_steps = dict(frozen_steps or {})
        _patterns(frozen_steps, "frozen_steps")
        for pattern, steps in frozen_steps.items():
            if not (isinstance(steps, int) and steps >= 0):
                raise ValueError(
                    "`frozen_steps` must map regular expressions to integers >= 0. "
                    f"Received: {pattern!r}: {steps!r}"
                )
        _check_clipping(self, clip_group_norm, clip_groups)
        self.decay = weight_decay
        self.exclude_1d = bool(exclude_1d)
        # Tuples: a list or dict attribute would be wrapped by the trackers.
        self._decay_exclusions = _patterns(exclude_from_weight_decay, "exclude_from_weight_decay")
        self._adaptation_exclusions = (
            None
            if exclude_from_layer_adaptation is None
            else _patterns(exclude_from_layer_adaptation, "exclude_from_layer_adaptation")
        )
        self._multipliers = tuple(
            (p, m if callable(m) else float(m)) for p, m in multipliers.items()
        )
        self._frozen_steps = tuple(frozen_steps.items())
        self.clip_group_norm = clip_group_norm
        self._clip_groups = None if clip_groups is None else _patterns(clip_groups, "clip_groups")
        self._groups = ()
        self._step = _Step()

    # ---- parameter groups

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Adds exclusions from weight decay; as in Keras, but they survive saving.

        Args:
            var_list: variables to exclude.
            var_names: regular expressions; a variable is excluded when one is found in its path.

        Raises:
            ValueError: after the optimizer was built.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` must be called before the optimizer is built. "
                f"Received: an optimizer built on {len(self._groups)} variables."
            )
        added = [f"^{re.escape(_path(v))}$" for v in var_list or ()]
        added += list(var_names or ())
        self._decay_exclusions += _patterns(added, "var_names")

    def _group(self, variable):
        path, ndim = _path(variable), len(variable.shape)
        decay_exclusions = self._decay_exclusions
        adaptation_exclusions = self._adaptation_exclusions
        if adaptation_exclusions is None:
            adaptation_exclusions = decay_exclusions
        vector = self.exclude_1d and ndim <= 1
        clip = path  # a group of its own
        if self._clip_groups is not None:
            clip = next((p for p in self._clip_groups if re.search(p, path)), None)
        return _Group(
            path,
            decay=not vector and not _matches(decay_exclusions, path),
            adapt=not vector and not _matches(adaptation_exclusions, path),
            multiplier=next((m for p, m in self._multipliers if re.search(p, path)), 1.0),
            frozen=next((n for p, n in self._frozen_steps if re.search(p, path)), 0),
            clip=None if self.clip_group_norm is None else clip,
        )

    def parameter_groups(self, variables=None):
        """Lists what each variable gets, to be read before a long run.

        Args:
            variables: variables to look at; those the optimizer was built on by default.

        Returns:
            A list of dicts with `path`, `weight_decay` (bool), `learning_rate_multiplier` (float
            or schedule), `layer_adaptation` (bool; used by LARS), `frozen_steps` (int) and
            `clip_group` (the expression or path that names it, or None).
        """
        groups = self._groups if variables is None else [self._group(v) for v in variables]
        return [
            {
                "path": group.path,
                "weight_decay": group.decay,
                "learning_rate_multiplier": group.multiplier,
                "layer_adaptation": group.adapt,
                "frozen_steps": group.frozen,
                "clip_group": group.clip,
            }
            for group in groups
        ]

    # ---- the step

    def build(self, variables):
        super().build(variables)
        self._groups = tuple(self._group(variable) for variable in variables)

    def apply(self, grads, trainable_variables=None):
        # Embeddings give sparse gradients on TensorFlow: dense, so that every row decays and every
        # moment fades, as on the other backends.
        grads = [_dense(g) for g in grads]
        step = self._step
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        known = trainable_variables or self._trainable_variables
        known = [v for g, v in zip(grads, known, strict=True) if g is not None]
        step.begin(len(known), known)
        try:
            super().apply(grads, trainable_variables)
            if step.gradients:  # fewer updates than gradients: float8 scales are not updated
                self._run_collected()
        finally:
            step.begin(0)  # drops gradients and tracers

    def _clip_gradients(self, grads):
        # Keras calls it where gradients are whole: unscaled, and accumulated over batches.
        if self.clip_group_norm is None:
            return super()._clip_gradients(grads)
        groups = {}
        for position, variable in enumerate(self._step.known):
            group = self._groups[self._get_variable_index(variable)]
            if group.clip is not None:
                groups.setdefault(group.clip, []).append(position)
        grads = whole_gradients(grads)
        factors = _clip_factors(grads, groups.values(), self.clip_group_norm)
        for positions, factor in zip(groups.values(), factors, strict=True):
            for i in positions:
                grads[i] = grads[i] * ops.cast(factor, grads[i].dtype)
        return [share_of_loss(gradient) for gradient in grads]

    def update_step(self, gradient, variable, learning_rate):
        step = self._step
        if step.scalars is None:
            step.scalars = self._scalars(learning_rate)
        if _TORCH and step.expected:
            step.gradients.append(gradient)
            step.variables.append(variable)
            if len(step.gradients) == step.expected:
                self._run_collected()
        else:
            self._update(gradient, variable, self._get_variable_index(variable))
            if not step.expected:  # called outside `apply`: nothing may be remembered
                step.begin(0)

    def _run_collected(self):
        step = self._step
        gradients, variables = step.gradients, step.variables
        step.gradients, step.variables = [], []
        indices = [self._get_variable_index(v) for v in variables]
        with torch.no_grad():
            if not self._update_all(gradients, variables, indices):
                for gradient, variable, index in zip(gradients, variables, indices, strict=True):
                    self._update(gradient, variable, index)

    def _scalars(self, learning_rate):
        """Returns a dict of float32 scalars that all variables share in this step."""
        decay = self.decay
        if callable(decay):
            decay = ops.cast(decay(self.iterations), "float32")
        return {"learning_rate": ops.cast(learning_rate, "float32"), "decay": decay}

    def _moves(self, frozen):
        """Whether variables move that are frozen during the first `frozen` updates."""
        moves = functools.partial(ops.greater_equal, self.iterations, frozen)
        return self._step.once(("moves", frozen), moves)

    def _rate(self, group):
        """The learning rate of a group: 0 while it is frozen, so that it is not decayed either."""

        def make():
            rate, multiplier = self._step.scalars["learning_rate"], group.multiplier
            if callable(multiplier):
                rate = rate * ops.cast(multiplier(self.iterations), "float32")
            elif multiplier != 1.0:
                rate = rate * multiplier
            if group.frozen:
                rate = ops.where(self._moves(group.frozen), rate, ops.zeros_like(rate))
            return rate

        return self._step.once(("rate", group.multiplier, group.frozen), make)

    def _unfrozen(self, gradient, group):
        """The gradient, or zeros while the group is frozen: its moments then stay zero."""
        if not group.frozen:
            return gradient
        return ops.where(self._moves(group.frozen), gradient, ops.zeros_like(gradient))

    def _update(self, gradient, variable, index):
        raise NotImplementedError

    def _update_all(self, gradients, variables, indices):
        """PyTorch only: updates all variables at once; returns False when it cannot."""
        return False

    def get_config(self):
        config = super().get_config()
        decay = self.decay
        if callable(decay):
            decay = keras.saving.serialize_keras_object(decay)
        config.update(
            {
                "weight_decay": decay,
                "exclude_from_weight_decay": list(self._decay_exclusions),
                "exclude_1d": self.exclude_1d,
                "learning_rate_multipliers": {
                    p: keras.saving.serialize_keras_object(m) if callable(m) else m
                    for p, m in self._multipliers
                },
                "frozen_steps": dict(self._frozen_steps),
                "clip_group_norm": self.clip_group_norm,
                "clip_groups": None if self._clip_groups is None else list(self._clip_groups),
            }
        )
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)

        def restored(value):
            if not isinstance(value, dict):
                return value
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        config["weight_decay"] = restored(config.get("weight_decay", 0.0))
        multipliers = config.get("learning_rate_multipliers") or {}
        config["learning_rate_multipliers"] = {p: restored(m) for p, m in multipliers.items()}
        return super().from_config(config, custom_objects=custom_objects)


@keras.saving.register_keras_serializable(package="keras_ssl")
class AdamW(GroupedOptimizer):
    """Adam with decoupled weight decay, by the definition of `torch.optim.AdamW`.

    For a variable `p` with gradient `g`, in step `t = 1, 2, ...`, with the learning rate `lr` of
    its group (the schedule's value times the group's multiplier):

    ```
    p = p * (1 - lr * weight_decay)                # unless excluded
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g**2
    p = p - lr / (1 - beta_1**t) * m / (sqrt(v / (1 - beta_2**t)) + epsilon)
    ```

    `keras.optimizers.AdamW` differs in two ways that matter when results are to be compared with
    the papers: it adds `epsilon` before the bias correction (so its effective epsilon is up to 30
    times larger early in training), and its exclusions from weight decay are lost on saving.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments.
        weight_decay: float >= 0, or a schedule (callable of the step, for example `WarmupCosine`
            from 0.04 to 0.4 as in DINO).
        beta_1: float in [0, 1), decay of the first moment.
        beta_2: float in [0, 1), decay of the second moment. 0.95 in MAE.
        epsilon: float >= 0, added to the bias-corrected root of the second moment.
        exclude_from_weight_decay: regular expressions; a variable is not decayed when one of them
            is found (`re.search`) in `variable.path`.
        exclude_1d: if True, variables with fewer than two dimensions (biases, normalisation
            gains, layer scales) are not decayed, as in timm and the papers' code.
        learning_rate_multipliers: dict of regular expression to float >= 0, or a schedule (callable
            of the step) of such. The first expression that is found in `variable.path` scales the
            variable's learning rate, and with it the decay, like the `lr` of a PyTorch parameter
            group. 0 freezes the variable, while its moments still accumulate (DINOv2's last
            layer).
        frozen_steps: dict of regular expression to a number of updates. Variables that match
            get no update at all before it: no decay and no moments, and their bias correction
            begins where they do (DINO's last layer).
        clip_group_norm: float > 0: gradients whose norm is above it are scaled down to it, by
            PyTorch's definition, `min(1, clip_group_norm / (norm + 1e-6))`. Every variable has
            its own norm (DINO), unless there are
        clip_groups: regular expressions. Variables that match the same one (the first that is
            found) are clipped by their joint norm (DINOv2); variables that match none are not
            clipped.
        **kwargs: Keras' `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
            `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`.
            Under gradient accumulation Keras evaluates the learning rate's schedule at the count
            of batches, not of updates: multiply its lengths by the number of accumulation steps.
            Schedules of decay and multipliers, and `frozen_steps`, count updates.

    Raises:
        ValueError: for a negative rate, decay or multiplier, or an invalid regular expression.

    Example:

    ```python
    optimizer = keras_ssl.optimizers.AdamW(
        keras_ssl.schedules.WarmupCosine(1.5e-4, total_steps=1000, warmup_steps=100),
        weight_decay=0.05,
        beta_2=0.95,
        exclude_1d=True,
        learning_rate_multipliers={"patch_embed": 0.2},
    )
    ```

    Reference:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
    """

    def __init__(
        self,
        learning_rate=0.001,
        weight_decay=0.05,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        exclude_from_weight_decay=(),
        exclude_1d=False,
        learning_rate_multipliers=None,
        frozen_steps=None,
        clip_group_norm=None,
        clip_groups=None,
        **kwargs,
    ):
        kwargs.setdefault("name", "adamw")
        super().__init__(
            learning_rate,
            weight_decay,
            exclude_from_weight_decay=exclude_from_weight_decay,
            exclude_1d=exclude_1d,
            learning_rate_multipliers=learning_rate_multipliers,
            frozen_steps=frozen_steps,
            clip_group_norm=clip_group_norm,
            clip_groups=clip_groups,
            **kwargs,
        )
        for argument, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"`{argument}` must be in [0, 1). Received: {argument}={beta}")
        if not epsilon >= 0.0:
            raise ValueError(f"`epsilon` must be >= 0. Received: epsilon={epsilon}")
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momentums, self.velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def _count(self, frozen):
        """Updates that a variable has had, this one included, as float32."""
        return ops.cast(ops.maximum(self.iterations + 1 - frozen, 1), "float32")

    def _corrections(self, frozen):
        """`1 - beta_1**t` and `1 / sqrt(1 - beta_2**t)`."""

        def make():
            # Through expm1: in float32 the plain form loses digits when beta is near 1.
            t = self._count(frozen)
            first, second = (
                -ops.expm1(t * math.log(beta)) if beta else 1.0
                for beta in (self.beta_1, self.beta_2)
            )
            return first, ops.rsqrt(ops.cast(second, "float32"))

        return self._step.once(("corrections", frozen), make)

    def _update(self, gradient, variable, index):
        group, dtype = self._groups[index], variable.dtype
        first, root_second = self._corrections(group.frozen)
        lr = self._rate(group)
        gradient = self._unfrozen(ops.cast(gradient, dtype), group)
        m, v = self.momentums[index], self.velocities[index]
        new_m = m + (gradient - m) * (1 - self.beta_1)
        new_v = v + (gradient * gradient - v) * (1 - self.beta_2)
        denominator = ops.sqrt(new_v) * ops.cast(root_second, dtype) + self.epsilon
        value = variable
        if group.decay and (callable(self.decay) or self.decay > 0):
            value = variable * ops.cast(1 - lr * self._step.scalars["decay"], dtype)
        self.assign(variable, value - ops.cast(lr / first, dtype) * (new_m / denominator))
        self.assign(m, new_m)
        self.assign(v, new_v)

    def _update_all(self, gradients, variables, indices):
        values = [v.value for v in variables]
        first = values[0]
        if first.device.type not in _FUSED_DEVICES:
            return False
        if any(v.dtype != first.dtype or v.device != first.device for v in values):
            return False
        scalars = self._step.scalars
        groups = {}
        for position, index in enumerate(indices):
            group = self._groups[index]
            key = (group.multiplier, group.decay, group.frozen)
            groups.setdefault(key, []).append(position)
            if group.frozen:
                gradients[position] = self._unfrozen(gradients[position], group)
        for (_, decays, frozen), positions in groups.items():
            lr = self._rate(self._groups[indices[positions[0]]])
            # The kernel wants the count *before* this step, and increments it.
            step = self._count(frozen).to(first.device) - 1.0
            parameters = [values[i] for i in positions]
            decay = scalars["decay"] if decays else 0.0
            if callable(self.decay):  # the kernel takes a Python number only
                if decays:
                    torch._foreach_mul_(parameters, 1 - lr * decay)
                decay = 0.0
            torch_adamw(
                parameters,
                [gradients[i].to(first.dtype) for i in positions],
                [self.momentums[indices[i]].value for i in positions],
                [self.velocities[indices[i]].value for i in positions],
                [],
                list(step.repeat(len(positions)).unbind()),
                fused=True,
                amsgrad=False,
                beta1=self.beta_1,
                beta2=self.beta_2,
                lr=lr,
                weight_decay=decay,
                eps=self.epsilon,
                maximize=False,
            )
        return True

    def get_config(self):
        config = super().get_config()
        config.update({"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon})
        return config


@keras.saving.register_keras_serializable(package="keras_ssl")
class LARS(GroupedOptimizer):
    """Layer-wise adaptive rate scaling, in each form that the papers' code uses.

    For a variable `w` with gradient `g`, and the learning rate `lr` of its group:

    ```
    g = g + weight_decay * w                                     # unless excluded
    trust(u) = trust_coefficient * |w| / |u|  if |w| > 0 and |u| > 0 else 1
               (1 for variables excluded from layer adaptation)

    momentum_holds="update":           v = momentum * v + lr * trust(g) * g;   w = w - v
    momentum_holds="scaled_gradient":  v = momentum * v + trust(g) * g;        w = w - lr * v
    momentum_holds="gradient":         v = momentum * v + g;         w = w - lr * trust(v) * v
    ```

    With `nesterov=True`, `u = momentum * v + (what was added to v)` takes the place of `v` in the
    update of `w` (and in its trust ratio). The first two forms agree while the learning rate is
    constant; under a schedule they differ, as the first keeps old learning rates in `v`.

    | reference | options |
    | --- | --- |
    | LARS paper; SimCLR (`classic_momentum=True`) | `momentum_holds="update"` |
    | SimCLR (`classic_momentum=False`) | `momentum_holds="gradient"` |
    | BYOL, MoCo v3, DINO, Barlow Twins, VICReg, MAE's linear probe | `"scaled_gradient"` |

    SimCLR excludes by name: `exclude_from_weight_decay=("batch_normalization", "bias",
    "head_supervised")`. The others exclude vectors: `exclude_1d=True`. Barlow Twins' second rate
    for biases and normalisation is a multiplier: `learning_rate_multipliers={"(bias|gamma|beta)$":
    0.0048 / 0.2}`.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments.
        momentum: float in [0, 1).
        weight_decay: float >= 0, or a schedule (callable of the step). Added to the gradient
            before both norms are taken.
        trust_coefficient: float > 0; `eeta` or `eta` in the references.
        momentum_holds: "update", "scaled_gradient" or "gradient"; see above.
        nesterov: use Nesterov momentum.
        exclude_from_weight_decay: regular expressions; a variable is not decayed when one of them
            is found (`re.search`) in `variable.path`.
        exclude_from_layer_adaptation: the same for the trust ratio. None (default): the list of
            `exclude_from_weight_decay`, as in SimCLR. `()`: adapt every variable.
        exclude_1d: if True (default), variables with fewer than two dimensions get neither decay
            nor trust ratio, whatever the lists say.
        learning_rate_multipliers: dict of regular expression to float >= 0, or a schedule; the
            first that is found in `variable.path` scales the variable's learning rate.
        frozen_steps: as for `AdamW`.
        clip_group_norm: as for `AdamW`.
        clip_groups: as for `AdamW`.
        **kwargs: Keras' `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
            `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    The momentum of each variable is in `optimizer.momentums`, in the order of the variables that
    the optimizer was built on.

    Raises:
        ValueError: for values out of range or an invalid regular expression.

    Example:

    ```python
    optimizer = keras_ssl.optimizers.LARS(
        keras_ssl.schedules.WarmupCosine(4.8, total_steps=1000, warmup_steps=100),
        weight_decay=1e-6,
    )
    ```

    Reference:
        You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017,
        algorithm 1.
    """

    def __init__(
        self,
        learning_rate,
        momentum=0.9,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        momentum_holds="update",
        nesterov=False,
        exclude_from_weight_decay=(),
        exclude_from_layer_adaptation=None,
        exclude_1d=True,
        learning_rate_multipliers=None,
        frozen_steps=None,
        clip_group_norm=None,
        clip_groups=None,
        **kwargs,
    ):
        kwargs.setdefault("name", "lars")
        super().__init__(
            learning_rate,
            weight_decay,
            exclude_from_weight_decay=exclude_from_weight_decay,
            exclude_from_layer_adaptation=exclude_from_layer_adaptation,
            exclude_1d=exclude_1d,
            learning_rate_multipliers=learning_rate_multipliers,
            frozen_steps=frozen_steps,
            clip_group_norm=clip_group_norm,
            clip_groups=clip_groups,
            **kwargs,
        )
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"`momentum` must be in [0, 1). Received: momentum={momentum}")
        if not trust_coefficient > 0.0:
            raise ValueError(
                "`trust_coefficient` must be greater than 0. "
                f"Received: trust_coefficient={trust_coefficient}"
            )
        if momentum_holds not in ("update", "scaled_gradient", "gradient"):
            raise ValueError(
                '`momentum_holds` must be "update", "scaled_gradient" or "gradient". '
                f"Received: momentum_holds={momentum_holds!r}"
            )
        self.momentum = momentum
        self.trust_coefficient = trust_coefficient
        self.momentum_holds = momentum_holds
        self.nesterov = bool(nesterov)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")

    def _trust(self, weight_norm, update_norm):
        adaptable = ops.logical_and(weight_norm > 0, update_norm > 0)
        safe = ops.where(adaptable, update_norm, ops.ones_like(update_norm))
        ratio = self.trust_coefficient * weight_norm / safe
        return ops.where(adaptable, ratio, ops.ones_like(ratio))

    def _update(self, gradient, variable, index):
        group, dtype = self._groups[index], variable.dtype
        lr = ops.cast(self._rate(group), dtype)
        weight, slot = ops.convert_to_tensor(variable), self.momentums[index]

        def scaled(x):
            if not group.adapt:
                return x
            norms = ops.sqrt(ops.sum(weight * weight)), ops.sqrt(ops.sum(x * x))
            return self._trust(*norms) * x

        gradient = ops.cast(gradient, dtype)
        if group.decay and (callable(self.decay) or self.decay > 0):
            gradient = gradient + ops.cast(self._step.scalars["decay"], dtype) * weight
        gradient = self._unfrozen(gradient, group)
        added = gradient if self.momentum_holds == "gradient" else scaled(gradient)
        if self.momentum_holds == "update":
            added = lr * added
        momentum = self.momentum * slot + added
        update = self.momentum * momentum + added if self.nesterov else momentum
        if self.momentum_holds == "gradient":
            update = scaled(update)
        if self.momentum_holds != "update":
            update = lr * update
        self.assign(slot, momentum)
        self.assign(variable, weight - update)

    def _update_all(self, gradients, variables, indices):
        weights = [v.value for v in variables]
        first = weights[0]
        if any(v.dtype != first.dtype or v.device != first.device for v in weights):
            return False
        groups = [self._groups[index] for index in indices]
        slots = [self.momentums[index].value for index in indices]
        decayed = [i for i, group in enumerate(groups) if group.decay]
        adapted = [i for i, group in enumerate(groups) if group.adapt]
        plain = self.momentum_holds == "scaled_gradient" and not (adapted or self.nesterov)
        if plain and first.device.type == "cpu" and not self._frozen_steps:
            self._plain_sgd(weights, slots, gradients, groups)
            return True
        rates = torch.stack([self._rate(g).to(first.dtype) for g in groups])

        def scaled(tensors, with_rate):
            """Tensors times their trust ratios, and times their learning rates if asked."""
            factors = rates.clone() if with_rate else torch.ones_like(rates)
            if adapted:
                weight_norms = torch.stack(torch._foreach_norm([weights[i] for i in adapted]))
                norms = torch.stack(torch._foreach_norm([tensors[i] for i in adapted]))
                factors[adapted] *= self._trust(weight_norms, norms)
            return torch._foreach_mul(tensors, list(factors.unbind()))

        gradients = [g.to(first.dtype) for g in gradients]
        if decayed and (callable(self.decay) or self.decay > 0):
            decay = self._step.scalars["decay"]
            terms = torch._foreach_mul([weights[i] for i in decayed], decay)
            torch._foreach_add_(terms, [gradients[i] for i in decayed])
            for i, term in zip(decayed, terms, strict=True):
                gradients[i] = term
        gradients = [self._unfrozen(g, group) for g, group in zip(gradients, groups, strict=True)]
        added = gradients
        if self.momentum_holds != "gradient":
            added = scaled(gradients, with_rate=self.momentum_holds == "update")
        torch._foreach_mul_(slots, self.momentum)
        torch._foreach_add_(slots, added)
        update = torch._foreach_add(added, slots, alpha=self.momentum) if self.nesterov else slots
        if self.momentum_holds == "gradient":
            update = scaled(update, with_rate=True)
        elif self.momentum_holds == "scaled_gradient":
            update = torch._foreach_mul(update, list(rates.unbind()))
        torch._foreach_sub_(weights, update)
        return True

    def _plain_sgd(self, weights, slots, gradients, groups):
        """In place, with numbers: on a CPU every temporary is a walk through fresh memory."""
        decay = float(self._step.scalars["decay"])
        for weight, slot, gradient, group in zip(weights, slots, gradients, groups, strict=True):
            slot.mul_(self.momentum).add_(gradient.to(slot.dtype))
            if group.decay and decay:
                slot.add_(weight, alpha=decay)
            weight.sub_(slot, alpha=float(self._rate(group)))

    def get_config(self):
        config = super().get_config()
        exclusions = self._adaptation_exclusions
        config.update(
            {
                "momentum": self.momentum,
                "trust_coefficient": self.trust_coefficient,
                "momentum_holds": self.momentum_holds,
                "nesterov": self.nesterov,
                "exclude_from_layer_adaptation": None if exclusions is None else list(exclusions),
            }
        )
        return config


def sgd(learning_rate, momentum: float = 0.9, weight_decay: float = 1e-4, **kwargs) -> LARS:
    """Plain SGD with momentum and coupled weight decay, as `torch.optim.SGD` defines it.

    `g = g + weight_decay * w; v = momentum * v + g; w = w - lr * v`: what `LARS` is without its
    layer-wise rates. All variables are decayed, vectors too. (`keras.optimizers.SGD` decouples its
    decay, and keeps old learning rates in `v`.)

    Args:
        learning_rate: float or schedule.
        momentum: float in [0, 1).
        weight_decay: float >= 0, or a schedule.
        **kwargs: of `LARS`: `learning_rate_multipliers`, `gradient_accumulation_steps`, ...

    Example:

    >>> optimizer = sgd(0.03)
    """
    return LARS(
        learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        momentum_holds="scaled_gradient",
        exclude_from_layer_adaptation=("",),
        exclude_1d=False,
        **{"name": "sgd", **kwargs},
    )
