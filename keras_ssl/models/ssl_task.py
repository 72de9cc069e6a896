"""The base of every method: what a self-supervised model is, apart from its loss."""

import contextlib

import keras
import keras_hub
import numpy as np

from keras_ssl.augmentation import RECIPES, Views
from keras_ssl.layers.image_converter import (
    convert_images,
    default_preprocessor,
    image_shape_of,
)
from keras_ssl.models import preset_io
from keras_ssl.models.features import pool_features
from keras_ssl.models.planned_training import PlannedTraining
from keras_ssl.training import cross_device, replicas
from keras_ssl.training import data as data_utils
from keras_ssl.training.cached_gradients import in_micro_batches
from keras_ssl.training.device import clear_gradients, predict_arrays, with_static_batch
from keras_ssl.training.finite_steps import FiniteSteps
from keras_ssl.training.random import RandomStream
from keras_ssl.training.subclassed import SubclassedModelType
from keras_ssl.training.workers import WorkerBatches


class SSLTask(PlannedTraining, keras_hub.models.Task, metaclass=SubclassedModelType):
    """Base class of the self-supervised methods.

    A method is a `keras_hub.models.Task`: `fit(images)` trains, `evaluate(images)` gives the loss
    on held-out images without touching any state, `predict(images)` gives embeddings `(N, D)`,
    and `save_to_preset` / `from_preset`, `.keras` files and weight files hold the whole state:
    backbone, heads, counters and random streams.

    Images come as uint8 or float in `[0, 255]`, in anything that `keras.Model.fit` takes. In
    `fit` and `evaluate` they go through `augmenter` inside the compiled step. In `predict` they
    are resized and normalised by `preprocessor`, inside the compiled step as well.

    A method writes `compute_loss` and `default_optimizer`, and a constructor that calls this one.

    Args:
        backbone: a `keras_hub.models.Backbone` or any `keras.Model` from images to tokens
            `(N, T, D)`, a map `(N, H, W, D)` or vectors `(N, D)`.
        pooling: how `predict` makes one vector: `"token"` or `"mean"`. `None` takes the class
            token where there is one, else the mean.
        augmenter: a layer or callable `(images, training) -> views`; `"auto"` for the views of
            `recipe` at the backbone's image size; or `None`: then the data is used as it is.
        preprocessor: a `keras_hub.models.Preprocessor` with an image converter; `"auto"` for one
            that resizes to the backbone's size and normalises as the augmenter does; or `None`:
            then `predict` takes images that are ready for the backbone.
        seed: of the model's own random stream.
        name: name of the model.
        recipe: the method's row of `keras_ssl.augmentation.RECIPES`.
    """

    def __init__(
        self,
        backbone,
        pooling=None,
        augmenter=None,
        preprocessor=None,
        seed=None,
        name=None,
        recipe=None,
    ):
        image_shape_of(backbone)  # refuses what is no image model
        if augmenter == "auto":
            augmenter = default_views(recipe, backbone, seed)
        if preprocessor == "auto":
            preprocessor = default_preprocessor(backbone, augmenter)
        super().__init__(compile=False, name=name)
        self.backbone = backbone
        self.dtype_policy = backbone.dtype_policy
        self.augmenter = augmenter
        self.preprocessor = preprocessor
        if pooling is None:
            pooling = "token" if getattr(backbone, "use_class_token", False) else "mean"
        if pooling not in ("token", "mean"):
            raise ValueError(f'`pooling` must be "token" or "mean". Received: pooling={pooling!r}')
        self.pooling = pooling
        self.seed = seed
        self.random = RandomStream(seed, name="random")
        # An own counter: reading `optimizer.iterations` inside the loss fails on JAX.
        self.seen_batches = self.add_weight(
            shape=(), dtype="int", initializer="zeros", trainable=False, name="seen_batches"
        )
        self._loss_only = False
        self.built = True

    # === What a method fills in ===

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        raise NotImplementedError(f"{type(self).__name__} must define `compute_loss`.")

    def default_optimizer(self, total_steps: int, batch_size: int, steps_per_epoch: int):
        """The paper's optimizer with its schedule laid out over `total_steps`."""
        raise NotImplementedError(f"{type(self).__name__} must define `default_optimizer`.")

    # === Views, embeddings ===

    def make_views(self, images, training: bool):
        """What the augmenter makes of a batch, as a tuple of batches."""
        if self.augmenter is None:
            return images if isinstance(images, (tuple, list)) else (images,)
        views = self.augmenter(images, training=training)
        return views if isinstance(views, (tuple, list)) else (views,)

    def count_batch(self, training: bool) -> None:
        """Counts a training batch; called once by every `compute_loss`."""
        if training:
            self.seen_batches.assign_add(1)

    @property
    def embedding_backbone(self):
        """The network whose features `predict` gives."""
        return self.backbone

    def encode(self, images, training=False, backbone=None):
        """Embeddings `(N, D)` of prepared images, by the backbone or another (a teacher)."""
        backbone = self.backbone if backbone is None else backbone

        def features(images):
            return pool_features(backbone, backbone(images, training=training), self.pooling)

        return in_micro_batches(self, backbone, features, images, training)

    def preprocess(self, images):
        """Resizes and normalises images in `[0, 255]` as the preprocessor says, in the graph."""
        if self.preprocessor is None:
            return images
        return convert_images(images, self.preprocessor.image_converter)

    def call(self, images, training=False):
        if self._loss_only:
            # `compute_loss` does its own forward passes; what it is given here is not used.
            return keras.tree.flatten(images)[0]
        images = self.preprocess(data_utils.images_of(images))
        return self.encode(images, training=training, backbone=self.embedding_backbone)

    @contextlib.contextmanager
    def _without_embedding(self):
        self._loss_only = True
        try:
            yield
        finally:
            self._loss_only = False

    def train_step(self, *args):
        if self.step_guard is None:
            return self.update_step(*args)
        return self.step_guard.step(self, self.update_step, args)

    def update_step(self, *args):
        """All that a training step does: gradient, optimizer, teacher."""
        clear_gradients(self.trainable_variables)
        count = cross_device.replica_count()
        if self.micro_batch_size is not None or count > 1:
            args = (*args[:-1], with_static_batch(args[-1], self._batch_size // count))
        with self._without_embedding(), replicas.replica_step(self, args[-1]):
            return super().train_step(*args)

    def test_step(self, *args):
        with self._without_embedding(), replicas.replica_step(self, args[-1], "test"):
            return super().test_step(*args)

    def _maybe_symbolic_build(self, *args, **kwargs):
        # Under TensorFlow's strategies Keras would read a batch to build what `_plan` has built,
        # and over several hosts it cannot.
        pass

    def _compute_loss(self, *args, **kwargs):
        return cross_device.share_of_loss(super()._compute_loss(*args, **kwargs))

    @property
    def metrics(self):
        return [*super().metrics, *([self.step_guard.tally] if self.step_guard else [])]

    def get_metrics_result(self):
        results = replicas.mean_of_logs(super().get_metrics_result())
        if self.step_guard:
            del results[self.step_guard.tally.name]  # the guard's own
        return results

    # === Training ===

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        *,
        validation_data=None,
        validation_split=0.0,
        shuffle=True,
        initial_epoch=0,
        steps_per_epoch=None,
        **kwargs,
    ):
        """Trains on images; labels are ignored.

        Arrays are shuffled every epoch and the last incomplete batch of an epoch is left out, as
        in the reference codes. Pass a dataset to decide otherwise.

        The order of arrays, and of the batches of a PyDataset, depends on the model's `seed` and
        the epoch only, so that a run resumed at `initial_epoch` reads what the uninterrupted one
        would have. A dataset with an order of its own is told the epoch before each where it has a
        method `set_epoch(epoch)`, as those of `keras_ssl.datasets` have; other orders are for the
        dataset to restore. (All this of epochs that are whole passes over the data.)

        Args:
            x: images `(N, height, width, channels)`, uint8 or float in `[0, 255]`; or any dataset
                that `keras.Model.fit` takes, yielding images, `(images, labels)` or dicts with
                the key `"images"`.
            y: ignored.
            batch_size: images in a batch, with arrays; a multiple of the devices that share it.
                Default 32, or the next multiple below.
            epochs: passes over the data.
            validation_data: held-out images whose loss is shown as `val_loss`.
            validation_split: share of the array, taken from its end, to hold out.
            shuffle: whether arrays (and the batches of a PyDataset) are shuffled.
            initial_epoch: where to resume.
            steps_per_epoch: batches in an epoch, for datasets that do not say.
            **kwargs: of `keras.Model.fit`: `verbose`, `callbacks`, `validation_steps`, ...

        Returns:
            A `keras.callbacks.History`.
        """
        data_utils.check_given(x, "fit")
        set_epoch = getattr(x, "set_epoch", None)
        if data_utils.is_array(x):
            x = keras.tree.map_structure(data_utils.as_numpy, x)
            images = data_utils.images_of(x)
            self._check_images(images)
            if validation_split:
                cut = int(len(images) * (1 - validation_split))
                validation_data = keras.tree.map_structure(lambda a: a[cut:], x)
                x = keras.tree.map_structure(lambda a: a[:cut], x)
                images = data_utils.images_of(x)
            batch_size = replicas.batch_size_for(self, batch_size, len(images))
            seed, share = replicas.common_seed(self, self.seed), replicas.process_share()
            x = data_utils.ArrayBatches(x, batch_size, shuffle, seed, initial_epoch, share)
            steps = len(x)
        else:
            if batch_size is not None or validation_split:
                raise ValueError(
                    "`batch_size` and `validation_split` are for arrays; a dataset has its own "
                    f"batches. Received: batch_size={batch_size}, "
                    f"validation_split={validation_split}"
                )
            first, x = data_utils.peek(x)
            images = data_utils.images_of(first)
            self._check_images(images)
            batch_size = int(keras.tree.flatten(images)[0].shape[0])  # maybe a tuple of views
            batch_size *= replicas.process_share()[1]  # each process has its own
            steps = data_utils.num_batches(x)
            if isinstance(x, data_utils.ArrayBatches):
                x.epoch = initial_epoch or x.epoch
            elif isinstance(x, keras.utils.PyDataset):
                processes = x.use_multiprocessing and x.workers > 0
                if shuffle or processes:
                    kind = WorkerBatches if processes else data_utils.ShuffledBatches
                    x = kind(x, shuffle, self.seed, initial_epoch)
        validation_data = self._validation_batches(validation_data, batch_size)
        self._plan(batch_size, steps_per_epoch or steps, epochs, initial_epoch)
        rows = batch_size // replicas.process_share()[1]
        replicas.meet(
            f"fit of {steps_per_epoch or steps or 'unknown'} batches of {rows} rows, "
            f"epochs {initial_epoch + 1} to {epochs}"
        )
        replicas.begin_equal(self)
        callbacks = kwargs.pop("callbacks", None)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = replicas.callbacks_of_this_process(self, _as_list(callbacks))
        if self.step_guard is not None:
            # First: what is not finite must not be saved.
            callbacks = [FiniteSteps(self.step_guard), *_as_list(callbacks)]
        if set_epoch is not None:
            follow = keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: set_epoch(epoch)
            )
            callbacks = [follow, *_as_list(callbacks)]
            if steps_per_epoch == steps:
                steps_per_epoch = None  # or Keras would begin a pass before its epoch
        # Past `PipelineModel.fit`, which would preprocess on the host: the augmenter does it here.
        with replicas.explained_batches(self):
            history = keras.Model.fit(
                self,
                x,
                epochs=epochs,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                shuffle=False,  # Keras would draw the order of the batches by an unsaved seed
                validation_data=validation_data,
                callbacks=callbacks,
                **kwargs,
            )
        replicas.meet("the end of fit")
        return history

    def _validation_batches(self, data, batch_size):
        """Validation arrays, with or without labels, in batches of training's size."""
        if isinstance(data, (tuple, list)) and data and data_utils.is_array(data[0]):
            data = data[0]
        if data is None or not data_utils.is_array(data):
            return data
        data = keras.tree.map_structure(data_utils.as_numpy, data)
        images = data_utils.images_of(data)
        self._check_images(images)
        batch_size = replicas.batch_size_for(self, batch_size, len(images))
        share = replicas.process_share()
        return data_utils.ArrayBatches(data, batch_size, shuffle=False, share=share)

    def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
        """Loss on held-out images, with fixed views and masks and no state touched.

        With arrays the last incomplete batch is left out, as in `fit`.

        Args:
            x: as for `fit`.
            y: ignored.
            batch_size: as for `fit`.
            **kwargs: of `keras.Model.evaluate`.
        """
        data_utils.check_given(x, "evaluate")
        if not self.compiled:
            self.compile()
        if data_utils.is_array(x):
            x, batch_size = self._validation_batches(x, batch_size), None
        steps = kwargs.get("steps") or data_utils.num_batches(x)
        replicas.meet(f"evaluate of {steps or 'unknown'} batches")
        with replicas.explained_batches(self):
            return keras.Model.evaluate(self, x, batch_size=batch_size, **kwargs)

    def predict(self, x, batch_size=None, **kwargs):
        """Embeddings `(N, D)`, float32.

        Args:
            x: images `(N, height, width, channels)`, uint8 or float in `[0, 255]`, of any size
                (they are resized); or a dataset of them, labels ignored.
            batch_size: images in a batch, with arrays. Default 32.
            **kwargs: of `keras.Model.predict`.
        """
        data_utils.check_given(x, "predict")
        if not data_utils.is_array(x):
            with replicas.explained_batches(self):
                return np.asarray(keras.Model.predict(self, x, **kwargs), "float32")
        x = data_utils.as_numpy(data_utils.images_of(x))
        self._check_images(x, prepared=self.preprocessor is None)
        return np.asarray(predict_arrays(self, x, batch_size or 32, **kwargs), "float32")

    def train_on_batch(self, x, y=None, **kwargs):
        self._plan(len(data_utils.images_of(x)), None, 1, 0)
        replicas.check_single_batch(self)
        return keras.Model.train_on_batch(self, x, **kwargs)

    def test_on_batch(self, x, y=None, **kwargs):
        return keras.Model.test_on_batch(self, x, **kwargs)

    def predict_on_batch(self, x):
        return keras.Model.predict_on_batch(self, x)

    def _check_images(self, images, prepared=None):
        if isinstance(images, (tuple, list)):  # views made by the user's dataset
            images = images[0]
        prepared = self.augmenter is None if prepared is None else prepared
        shape = getattr(self.backbone, "image_shape", None)
        data_utils.check_images(
            images, shape[-1] if shape else None, None if prepared else (0.0, 255.0)
        )
        if prepared and hasattr(self.backbone, "grid_of"):
            self.backbone.grid_of(*images.shape[1:3])

    # === Saving ===

    def get_config(self):
        augmenter = self.augmenter
        if augmenter is not None:
            augmenter = keras.saving.serialize_keras_object(augmenter)
        return {
            **super().get_config(),
            "pooling": self.pooling,
            "augmenter": augmenter,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for key in ("backbone", "augmenter", "preprocessor"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)

    # What others take from a preset as its encoder (`model.weights.h5`) is the one that `predict`
    # uses: where a method is evaluated by its teacher, the student is among the other weights.

    def save_task_weights(self, filepath):
        """Writes all weights but those of `embedding_backbone`."""
        keras.saving.save_weights(self, filepath, objects_to_skip=[self.embedding_backbone])

    def load_task_weights(self, filepath):
        """Reads what `save_task_weights` wrote."""
        keras.saving.load_weights(self, filepath, objects_to_skip=[self.embedding_backbone])

    def save_to_preset(self, preset_dir, max_shard_size=10, storage_dtype=None):
        """Saves configuration and the full state to a folder.

        Its encoder, for `Backbone.from_preset` and classifiers, is the one that `predict` uses:
        of DINO and DINOv2 the teacher, unless `predict_with="student"`.

        The preset is written beside the folder and then takes its place, so that a save that
        fails leaves the old preset whole. Other files of an existing folder (a model card) are
        kept. The optimizer is not part of a preset: `model.save("run.keras")` keeps it.

        Args:
            preset_dir: the folder.
            max_shard_size: largest weight file in GB.
            storage_dtype: `"float16"` rounds what is stored to 11 significant bits: files of half
                the size, which load as the model's own dtype. Going on from one is then no longer
                exact. `None` stores the dtype of the variables.

        Raises:
            OSError: there is no room for it on the disk.
        """
        write = super().save_to_preset
        preset_io.save(self, preset_dir, write, storage_dtype, max_shard_size=max_shard_size)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Loads a model with its whole state.

        Args:
            preset: name of a preset that ships with keras_ssl or of released weights
                (`keras_ssl.list_presets(released=True)`), a folder (made by `save_to_preset`, or
                in the layout of transformers or timm), the path of an official file, or a hub
                handle (`hf://...`, `kaggle://...`). Of released weights that are an encoder alone
                the rest is new, which a warning names.
            load_weights: `False` for the architecture with new weights.
            **kwargs: constructor arguments that replace the saved ones, e.g. `mask_ratio=0.6`.
                `backbone=` is refused: it would not fit the saved heads.

        Raises:
            ValueError: the folder is no preset, holds another method, or its files are damaged.
        """
        return preset_io.load_task(cls, preset, load_weights, kwargs)


def default_views(recipe: str, backbone, seed: int | None, **kwargs):
    """The paper's augmentation at the backbone's image size; local crops in whole patches."""
    shape = image_shape_of(backbone)
    if shape[0] is None:
        raise ValueError(
            "The backbone has no fixed image size, so the size of the views must be given: pass "
            f"augmenter=keras_ssl.augmentation.Views({recipe!r}, size=...)."
        )
    patch = getattr(backbone, "patch_size", None)
    if patch and any(view.get("local") for view in RECIPES[recipe]["views"]):
        # 3/7 of the image, as 96 is of 224.
        sides = (patch * max(1, round(side * 3 / 7 / patch)) for side in shape[:2])
        kwargs.setdefault("local_size", tuple(sides))
    return Views(recipe, size=tuple(shape[:2]), seed=seed, **kwargs)


def _as_list(callbacks):
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks.callbacks
    return callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
