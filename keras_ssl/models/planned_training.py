"""`compile` without arguments: the paper's optimizer, its schedule laid out over the run."""

import keras

from keras_ssl.training import cross_device, replicas
from keras_ssl.training.finite_steps import StepGuard


class PlannedTraining:
    """The part of a method that `compile` configures; left of `keras_hub.models.Task`.

    With `optimizer="auto"`, the default, nothing is known of the run's length yet: `fit` asks the
    method's `default_optimizer` for the paper's optimizer and lays its schedule out over the steps
    of that first run. What was planned is saved with the model, so that a loaded one goes on.
    """

    step_guard = None  # `metrics` is asked for before the constructor is through
    micro_batch_size = None
    _batch_size = None
    _auto_compile = None
    _planned_steps = 0

    def compile(
        self,
        optimizer="auto",
        *,
        epochs=None,
        learning_rate=None,
        micro_batch_size=None,
        non_finite=None,
        **kwargs,
    ):
        """Configures training.

        Args:
            optimizer: `"auto"` for the paper's optimizer and schedule, laid out over the epochs
                of the first `fit`, or a `keras.optimizers.Optimizer`.
            epochs: with `"auto"`, length of the schedule where it should differ from the
                epochs of the first `fit` (several `fit` calls that make one run).
            learning_rate: with `"auto"`, peak learning rate for a batch of 256 instead of the
                paper's; it is scaled to the batch size as the paper does.
            micro_batch_size: encode so many images (views, texts) at a time, and compute the loss
                of the whole batch all the same (`keras_ssl.training.cached_gradients`): a large
                contrastive batch in the memory of a small one, for one more forward pass. The
                encoders must treat samples independently: no batch normalisation in them.
            non_finite: what `fit` does about a step whose loss or weights are NaN or infinite.
                `"stop"` raises `keras_ssl.callbacks.NonFiniteError`, which names epoch and batch;
                `"skip"` undoes the step, as if the batch had not been there, and logs
                `skipped_batches`; `None` does not look. See `keras_ssl.training.finite_steps`.
            **kwargs: of `keras.Model.compile`: `jit_compile`, `steps_per_execution`,
                `run_eagerly`, `auto_scale_loss`.
        """
        if kwargs.get("loss") is not None or kwargs.get("metrics"):
            raise ValueError(
                f"{type(self).__name__} computes its own loss; leave `loss` and `metrics` out. "
                f"Received: {sorted(kwargs)}"
            )
        if optimizer != "auto" and not (epochs is None and learning_rate is None):
            raise ValueError(
                '`epochs` and `learning_rate` belong to optimizer="auto"; give your optimizer its '
                f"own schedule. Received: epochs={epochs}, learning_rate={learning_rate}"
            )
        self._auto_compile = None
        self._planned_steps = 0
        if optimizer == "auto":
            self._auto_compile = {
                "epochs": epochs,
                "learning_rate": learning_rate,
                "micro_batch_size": micro_batch_size,
                "non_finite": non_finite,
                **kwargs,
            }
            optimizer = None
        self.micro_batch_size = micro_batch_size
        self.watch_steps(non_finite)
        super().compile(optimizer=optimizer, **replicas.compile_options(self, kwargs))

    def watch_steps(self, non_finite: str | None) -> None:
        """Changes what `compile(non_finite=...)` said, and nothing else."""
        self.step_guard = None
        if non_finite is not None:
            self.step_guard = StepGuard(non_finite, getattr(self, "distribute_strategy", None))
        if self._auto_compile is not None:
            self._auto_compile["non_finite"] = non_finite
        self.train_function = None  # traced with what was said before

    def get_compile_config(self):
        config = {}
        if self._auto_compile is None and self.compiled:
            config = super().get_compile_config()
            config["micro_batch_size"] = self.micro_batch_size
            config["non_finite"] = self.step_guard and self.step_guard.action
        if self._auto_compile is not None and self.compiled:
            optimizer = self.optimizer
            config = {
                "auto": self._auto_compile,
                "planned_steps": self._planned_steps,
                "optimizer": optimizer and keras.saving.serialize_keras_object(optimizer),
            }
        return config

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(dict(config))
        if "auto" in config:
            self.compile("auto", **config["auto"])
            if config["optimizer"] is not None:
                self._set_auto_optimizer(config["optimizer"], config["planned_steps"])
        else:
            config = {k: v for k, v in config.items() if k not in ("loss", "metrics")}
            config = {k: v for k, v in config.items() if v is not None}
            self.compile(**config)
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def _set_auto_optimizer(self, optimizer, planned_steps):
        auto = self._auto_compile
        own = ("epochs", "learning_rate", "micro_batch_size", "non_finite")
        kwargs = {k: v for k, v in auto.items() if k not in own}
        super().compile(optimizer=optimizer, **replicas.compile_options(self, kwargs))
        self._planned_steps = planned_steps

    def _plan(self, batch_size, steps_per_epoch, epochs, initial_epoch):
        """Makes this model ready for steps of so many images."""
        if batch_size != self._batch_size and (
            self.micro_batch_size is not None or replicas.shares_of_a_batch(self) > 1
        ):
            self.train_function = None  # TensorFlow traced it for so many rows
        self._batch_size = batch_size
        if not self.compiled:
            self.compile()
        replicas.check(self, batch_size)
        if self._auto_compile is not None:
            self._plan_schedule(batch_size, steps_per_epoch, epochs, initial_epoch)
        if not self.optimizer.built:
            # Before the first step: TensorFlow traces one that makes variables a second time.
            with replicas.scope_of(self):
                self.optimizer.build(self.trainable_variables)

    def _plan_schedule(self, batch_size, steps_per_epoch, epochs, initial_epoch):
        """Lays the schedule out over this run, unless one that still holds has begun."""
        done = 0 if self.optimizer is None else cross_device.count_of(self.optimizer.iterations)
        if steps_per_epoch is None:
            if self.optimizer is None:
                raise ValueError(
                    "The learning rate schedule needs to know how long an epoch is, and this "
                    "dataset does not say. Pass `steps_per_epoch=` to fit, or an optimizer of "
                    "your own to compile."
                )
            return
        if self.optimizer is not None:
            if done + steps_per_epoch * (epochs - initial_epoch) <= self._planned_steps:
                return
            print(
                f"The learning rate schedule was made for {self._planned_steps} steps and {done} "
                "are done: a new one begins. Give compile() `epochs=` to span several fit() calls."
            )
        total = steps_per_epoch * (self._auto_compile["epochs"] or epochs)
        with replicas.scope_of(self):
            optimizer = self.default_optimizer(
                total_steps=total, batch_size=batch_size, steps_per_epoch=steps_per_epoch
            )
        self._set_auto_optimizer(optimizer, total)
