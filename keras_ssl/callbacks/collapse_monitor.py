"""Watches whether features collapse while a model trains."""

import time
import warnings

import keras
import numpy as np
from keras import ops

from keras_ssl.evaluation import collapse
from keras_ssl.training.device import predict_arrays


class _Features(keras.Model):
    """Features of up to two fixed views of each image and the projections of the first, through a
    compiled `predict`."""

    def __init__(self, task):
        super().__init__(name="features_of_views")
        self.task = task
        self.built = True  # as the task is

    def call(self, images, training=False):
        views = self.task.make_views(images, training=False)
        features = [self.task.encode(view) for view in views[:2]]
        outputs = dict(zip(("features", "second"), features, strict=False))
        head = getattr(self.task, "projection_head", None)
        if head is not None:
            outputs["projections"] = head(features[0], training=False)
        return {name: ops.cast(value, "float32") for name, value in outputs.items()}


class CollapseMonitor(keras.callbacks.Callback):
    """Logs how the features of some images are spread, after every epoch, and warns of collapse.

    | log | what it says |
    | --- | --- |
    | `feature_std` | 0: all features are one point; about 1: they fill the sphere |
    | `effective_rank` | RankMe: 1: they lie on a line; up to `min(N, D)` |
    | `mean_cosine` | between different images; 1: all features are one point |
    | `uniformity` | the more negative the more even; 0: one point |
    | `alignment` | distance of an image's two views; 0: they agree |
    | `projection_std` | `feature_std` of what the loss sees: collapse begins here |
    | `projection_rank` | its effective rank |
    | `teacher_distance` | norm of teacher minus student over the student's, over all parameters |

    DINO and DINOv2 log `teacher_entropy`, `teacher_student_kl` and `center_entropy` by themselves,
    every epoch; this callback reads them.

    The features are those of the backbone, that `predict` gives; views are the same every time.
    `alignment` needs an augmenter that makes two views; the projections are those of the model's
    `projection_head`, where it has one; `teacher_distance` needs a momentum teacher. The equations
    are in `keras_ssl.evaluation`'s functions of collapse.

    A warning says so in words, once for each kind of collapse: features or projections that are one
    point (deviation below `min_std`), or that use few of their dimensions (effective rank below
    `min_rank * min(N, D)`, or 2), or a student that has nothing left to learn from its teacher
    (`teacher_student_kl < min_kl` nats): both say the same of every picture. Projections may
    collapse long before features: where all of them are the same, the loss has nothing left to
    teach the backbone.

    The first look comes after the first epoch and compiles; the second tells what a look costs. A
    later one is left out while it would bring the callback's share of the time since the first
    above `max_cost`; the last values are then logged again.

    Args:
        images: `(N, height, width, channels)` as for `fit`; a few hundred are enough.
        batch_size: images at a time.
        min_std: warn below it.
        min_rank: warn below this share of the possible rank.
        min_kl: warn below this divergence of the student from the teacher, in nats.
        max_cost: largest share of the training time, in (0, 1].

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4
    )
    model = keras_ssl.models.SimCLR(backbone, projection_dim=64)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    monitor = keras_ssl.callbacks.CollapseMonitor(images[:32])
    history = model.fit(images, batch_size=32, epochs=2, callbacks=[monitor])
    history.history["effective_rank"]
    ```

    Reference:
        Garrido et al., RankMe, 2023; Wang and Isola, Understanding Contrastive Representation
        Learning through Alignment and Uniformity on the Hypersphere, 2020; Chen and He, Exploring
        Simple Siamese Representation Learning, 2021, section 4.1.
    """

    def __init__(
        self,
        images,
        batch_size: int = 128,
        min_std: float = 0.05,
        min_rank: float = 0.02,
        min_kl: float = 0.01,
        max_cost: float = 0.02,
    ):
        super().__init__()
        if len(images) < 2:
            raise ValueError(f"Collapse shows in two images or more. Received: {len(images)}")
        if not 0.0 < max_cost <= 1.0:
            raise ValueError(f"`max_cost` must lie in (0, 1]. Received: max_cost={max_cost}")
        self.images = np.asarray(images)
        self.batch_size = batch_size
        self.min_std = min_std
        self.min_rank = min_rank
        self.min_kl = min_kl
        self.max_cost = max_cost
        self._features = None
        self._values: dict[str, float] = {}

    def on_train_begin(self, logs=None):
        self._features, self._values, self._warned = None, {}, set()
        self._start = self._seconds = self._last = 0.0

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        elapsed = now - self._start if self._values else 0.0
        if not self._values or self._seconds + self._last <= self.max_cost * elapsed:
            first = not self._values
            self._values = self.measure(self.model)
            self._warn(epoch)
            end = time.perf_counter()
            if first:  # it compiled: later looks are counted from here
                self._start = end
            else:
                self._last = end - now
                self._seconds += self._last
        if logs is not None:
            self._warn_of_agreement(epoch, logs)
            logs.update(self._values)

    def measure(self, model) -> dict[str, float]:
        """The values of a model as it is now.

        Args:
            model: any task of `keras_ssl.models`.
        """
        if self._features is None or self._features.task is not model:
            self._features = _Features(model)
        outputs = predict_arrays(self._features, self.images, self.batch_size, verbose=0)
        features = outputs["features"]
        self._possible_rank = {"effective_rank": min(features.shape)}
        values = {
            "feature_std": collapse.feature_std(features),
            "effective_rank": collapse.rankme(features),
            "mean_cosine": collapse.mean_cosine(features),
            "uniformity": collapse.uniformity(features),
        }
        if "second" in outputs:
            values["alignment"] = collapse.alignment(features, outputs["second"])
        if "projections" in outputs:
            projections = outputs["projections"]
            self._possible_rank["projection_rank"] = min(projections.shape)
            values["projection_std"] = collapse.feature_std(projections)
            values["projection_rank"] = collapse.rankme(projections)
        if hasattr(model, "teacher_distance"):
            values["teacher_distance"] = float(model.teacher_distance())
        return values

    def _warn(self, epoch):
        values, after = self._values, f"After epoch {epoch + 1} the"
        for what, std, rank in (
            ("features", "feature_std", "effective_rank"),
            ("projections", "projection_std", "projection_rank"),
        ):
            if std not in values:
                continue
            possible = self._possible_rank[rank]
            if values[std] < self.min_std:
                self._say(
                    "point",
                    f"{after} {what} of all images are nearly the same ({std} {values[std]:.3f}, "
                    f"mean cosine of the features {values['mean_cosine']:.3f}): the model has "
                    "collapsed to a point. Look at the learning rate, and at what should prevent "
                    "it: negatives, predictor, teacher's momentum or the variance term.",
                )
            elif values[rank] < max(2.0, self.min_rank * possible):
                self._say(
                    "rank",
                    f"{after} {what} use about {values[rank]:.1f} of {possible} possible "
                    "dimensions: dimensional collapse. More negatives, a wider projection, weaker "
                    "augmentation or a decorrelating loss may help.",
                )

    def _warn_of_agreement(self, epoch, logs):
        divergence = logs.get("teacher_student_kl")
        if divergence is not None and divergence < self.min_kl:
            self._say(
                "agreement",
                f"After epoch {epoch + 1} the student says what its teacher says, to "
                f"{divergence:.4f} nats: either both say the same of every picture, which is "
                "collapse, or there is nothing left to learn. Look at the centring, and at the "
                "teacher's temperature and momentum.",
            )

    def _say(self, kind, text):
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, stacklevel=2)
