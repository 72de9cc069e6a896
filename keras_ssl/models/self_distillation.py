"""What DINO and DINOv2 share: options, a teacher that is asked, epochs that are counted."""

from keras_ssl.models.ssl_task import SSLTask, default_views
from keras_ssl.training.cross_device import count_of
from keras_ssl.training.momentum_teacher import MomentumTeacher

# Names in a constructor that are no options: what the base takes, or what goes into the augmenter.
_NO_OPTION = {"self", "__class__", "backbone", "pooling", "preprocessor", "seed", "name"}
_NO_OPTION |= {"augmenter", "num_local_views", "recipe"}


class SelfDistillation(MomentumTeacher, SSLTask):
    """Base of the methods whose student predicts what a slow teacher says of whole views.

    A subclass says in its constructor `options = options_of(locals())`, calls this one, makes its
    heads, and calls `add_teacher`. Every option becomes an attribute and a part of `get_config`.

    Args:
        backbone: as for `SSLTask`.
        options: the subclass's own arguments, `predict_with` and the temperatures among them.
        recipe, num_local_views: of the views with `augmenter="auto"`.
        augmenter, seed, **kwargs: as for `SSLTask`.
    """

    def __init__(self, backbone, options, recipe, num_local_views, augmenter, seed, **kwargs):
        if options["predict_with"] not in ("teacher", "student"):
            raise ValueError(
                '`predict_with` must be "teacher" or "student". '
                f"Received: predict_with={options['predict_with']!r}"
            )
        temperatures = {
            name: options[name] for name in ("teacher_temperature", "warmup_teacher_temperature")
        }
        if not min(temperatures.values()) > 0:
            given = ", ".join(f"{name}={value}" for name, value in temperatures.items())
            raise ValueError(f"Temperatures must be greater than 0. Received: {given}")
        if augmenter == "auto":
            augmenter = default_views(recipe, backbone, seed, num_local_views=num_local_views)
        super().__init__(backbone, augmenter=augmenter, seed=seed, **kwargs)
        self._options = options
        for option, value in options.items():
            if option not in ("momentum", "momentum_schedule"):  # `add_teacher` keeps them
                setattr(self, option, value)

    def add_teacher(self, *names: str) -> None:
        """Makes the teacher of backbone and heads, and counts epochs from here on."""
        options = self._options
        momentum, schedule = options["momentum"], options["momentum_schedule"]
        super().add_teacher(*names, momentum=momentum, schedule=schedule)
        # Length of an epoch in batches, of the first `fit`; 0 before.
        self.epoch_batches = self.add_weight(
            shape=(), dtype="int", initializer="zeros", trainable=False, name="epoch_batches"
        )

    @property
    def embedding_backbone(self):
        return self.teacher_backbone if self.predict_with == "teacher" else self.backbone

    def _plan(self, batch_size, steps_per_epoch, epochs, initial_epoch):
        super()._plan(batch_size, steps_per_epoch, epochs, initial_epoch)
        if steps_per_epoch is not None and not count_of(self.epoch_batches):
            self.epoch_batches.assign(steps_per_epoch)

    def get_config(self):
        return {**super().get_config(), **self._options}


def options_of(arguments: dict) -> dict:
    """Of a constructor's `locals()`, the method's own options."""
    return {name: value for name, value in arguments.items() if name not in _NO_OPTION}
