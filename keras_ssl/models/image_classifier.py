"""Fine-tuning: an image classifier over our backbones."""

import random
import warnings

import keras
import keras_hub
import numpy as np

from keras_ssl.backbones import ConvNeXtBackbone, EfficientNet, ResNet, SmallResNet, ViTBackbone
from keras_ssl.layers.image_converter import ImagePreprocessor, convert_images
from keras_ssl.models import preset_io
from keras_ssl.models.features import feature_dim, pool_features
from keras_ssl.presets import clear_errors, resolve_preset
from keras_ssl.training import data as data_utils
from keras_ssl.training.labelled_batches import LabelledBatches
from keras_ssl.training.optimizers import AdamW
from keras_ssl.training.schedules import WarmupCosine
from keras_ssl.training.subclassed import SubclassedModelType
from keras_ssl.weight_files import load_preset


@keras.saving.register_keras_serializable(package="keras_ssl")
class ImageClassifier(keras_hub.models.ImageClassifier, metaclass=SubclassedModelType):
    """Classifier over one of our backbones; what `keras_hub.models.ImageClassifier` finds for it.

    `logits = W pool(z) + b`. Of a `ViTBackbone`, with `pooling="token"` the class token of the
    output is used; with `"mean"` the mean over patches before the final normalisation, which then
    gets a layer normalisation of its own (MAE's fine-tuning). Of a `ConvNeXtBackbone` the first
    token, which is the mean already; of a network that gives a map, its mean.

    Args:
        backbone: a `keras_ssl.backbones.ViTBackbone`, for example
            `ViTBackbone.from_preset(preset, drop_path_rate=0.1)`, or any other image backbone.
        num_classes: number of classes.
        preprocessor: an `ImagePreprocessor`, or `None` for images that are ready.
        pooling: `"token"` or `"mean"`; `None` for the token where there is one, else the mean.
        activation: of the output; `None` gives logits.
        dropout: rate before the last layer.
        head_dtype: dtype policy of the head; the backbone's when `None`.
        name: name of the model.

    Example:

    ```python
    model = keras_ssl.models.ImageClassifier.from_preset(preset, num_classes=10, pooling="mean")
    model.compile(learning_rate=1e-3, layer_decay=0.75)
    model.fit(images, labels, epochs=5)  # images in [0, 255], integer labels
    ```

    Reference:
        He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, appendix A.1.
    """

    backbone_cls = ViTBackbone
    preprocessor_cls = ImagePreprocessor

    def __init__(
        self,
        backbone,
        num_classes: int,
        preprocessor=None,
        pooling: str | None = None,
        activation=None,
        dropout: float = 0.0,
        head_dtype=None,
        name: str | None = None,
    ):
        has_token = getattr(backbone, "use_class_token", False)
        pooling = pooling or ("token" if has_token else "mean")
        if pooling not in ("token", "mean"):
            raise ValueError(f'`pooling` must be "token" or "mean". Received: pooling={pooling!r}')
        if pooling == "token" and not has_token:
            raise ValueError('This backbone has no class token: use pooling="mean".')
        if pooling == "mean" and isinstance(backbone, ConvNeXtBackbone):
            raise ValueError(
                "The first token of a ConvNeXt is the mean of its map already: use "
                f'pooling="token". Received: pooling={pooling!r}'
            )
        # Not the functional constructor of the base: our backbone takes any image size.
        keras_hub.models.Task.__init__(self, compile=False, name=name)
        self.backbone = backbone
        self.dtype_policy = backbone.dtype_policy
        self.preprocessor = preprocessor
        self.num_classes = num_classes
        self.pooling = pooling
        self.activation = activation
        self.dropout = dropout
        head_dtype = keras.dtype_policies.get(head_dtype or backbone.dtype_policy)
        self.head_norm = None
        width = feature_dim(backbone, pooling)
        if pooling == "mean" and isinstance(backbone, ViTBackbone):
            self.head_norm = keras.layers.LayerNormalization(
                epsilon=backbone.layer_norm_epsilon, dtype=head_dtype, name="head_norm"
            )
            self.head_norm.build((None, width))
            if backbone.norm is not None:
                backbone.norm.trainable = False  # it takes no part
        self.output_dropout = keras.layers.Dropout(dropout, dtype=head_dtype, name="output_dropout")
        self.output_dense = keras.layers.Dense(
            num_classes,
            activation=activation,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=2e-5),
            dtype=head_dtype,
            name="predictions",
        )
        self.output_dense.build((None, width))
        self.built = True
        self.compile()

    def features(self, images, training=False):
        """What the last layer sees: `(batch, width of the features)`."""
        if self.head_norm is None:
            outputs = self.backbone(images, training=training)
            return pool_features(self.backbone, outputs, self.pooling)
        outputs = self.backbone(images, training=training, return_intermediate=True)
        return self.head_norm(self.backbone.pool(outputs["intermediate"][-1], "mean"))

    def call(self, images, training=False):
        x = self.output_dropout(self.features(images, training), training=training)
        return self.output_dense(x)

    def compile(
        self,
        optimizer="auto",
        loss="auto",
        *,
        metrics="auto",
        learning_rate: float = 5e-4,
        weight_decay: float = 0.05,
        layer_decay: float = 0.75,
        total_steps: int | None = None,
        **kwargs,
    ):
        """Configures fine-tuning; see `keras_hub.models.ImageClassifier.compile`.

        Args:
            optimizer: `"auto"` for AdamW with layer-wise learning rate decay, or any other.
            loss: `"auto"` for sparse categorical cross-entropy.
            metrics: `"auto"` for accuracy.
            learning_rate: with `"auto"`: of the last layer.
            weight_decay: with `"auto"`: not applied to biases, norms, tokens and positions.
            layer_decay: with `"auto"`: factor per layer downwards, in `(0, 1]`; of backbones that
                say which layer is which, the transformer and the ConvNeXt.
            total_steps: with `"auto"`: steps of the run, for warm-up (a twentieth) and cosine
                decay; `None` keeps the learning rate constant.
            **kwargs: of `keras.Model.compile`.
        """
        if optimizer == "auto":
            schedule = learning_rate
            if total_steps is not None:
                schedule = WarmupCosine(learning_rate, total_steps, total_steps // 20)
            of_layers = getattr(self.backbone, "layer_decay_multipliers", lambda decay: {})
            multipliers = of_layers(layer_decay)
            optimizer = AdamW(
                schedule,
                weight_decay=weight_decay,
                beta_1=0.9,
                beta_2=0.999,
                exclude_from_weight_decay=self.no_weight_decay(),
                learning_rate_multipliers=multipliers,
            )
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        sample_weight=None,
        validation_data=None,
        *,
        shuffle: bool = True,
        **kwargs,
    ):
        """Trains on labelled images; see `keras_hub.models.Task.fit`.

        Arrays are shuffled every epoch, and the last incomplete batch is left out. (keras-hub takes
        them in their order: sorted by class, as folders are, nothing is learned.)

        Args:
            x: images `(N, height, width, channels)` in `[0, 255]` of one size, or a dataset.
            y: labels, with arrays.
            batch_size: with arrays. Default 32.
            sample_weight: with arrays; these are not shuffled then.
            validation_data: `(images, labels)`, or a dataset.
            shuffle: `False` takes arrays in their order.
            **kwargs: of `keras_hub.models.Task.fit`.

        Returns:
            A `keras.callbacks.History`.
        """
        arrays = data_utils.is_array(x) and y is not None and sample_weight is None
        if not arrays or not shuffle or kwargs.get("validation_split"):
            return super().fit(x, y, batch_size, sample_weight, validation_data, **kwargs)
        prepare = None
        if self.preprocessor is not None:
            converter = self.preprocessor.image_converter
            prepare = lambda images: convert_images(images, converter)
        batch_size = batch_size or 32
        options = dict(seed=random.getrandbits(32), epoch=kwargs.get("initial_epoch", 0))
        batches = LabelledBatches(np.asarray(x), y, batch_size, prepare, **options)
        if isinstance(validation_data, (tuple, list)) and len(validation_data) == 2:
            validation_data = LabelledBatches(*validation_data, batch_size, prepare)
        elif validation_data is not None:
            raise ValueError(
                "With arrays, `validation_data` must be a pair (images, labels) as well. "
                f"Received: {type(validation_data).__name__}"
            )
        # Past keras-hub's `fit`, which takes no PyDataset: the batches are prepared.
        return keras.Model.fit(
            self, batches, shuffle=False, validation_data=validation_data, **kwargs
        )

    @staticmethod
    def no_weight_decay() -> list[str]:
        """Patterns of parameters that fine-tuning does not decay, as in the official code."""
        return ["bias$", "gamma$", "beta$", "class_token$", "position_embedding$"]

    def get_compile_config(self):
        return keras.Model.get_compile_config(self)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Saves configuration and weights to a folder, without the optimizer.

        As `SSLTask.save_to_preset`: a save that fails leaves the old preset whole.
        """
        preset_io.save(self, preset_dir, super().save_to_preset, max_shard_size=max_shard_size)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Loads a classifier, or puts a new head on the backbone of any method's preset.

        Args:
            preset: name of a shipped or released preset, a folder, the path of an official file, or
                a hub handle.
            load_weights: `False` for new weights.
            **kwargs: `num_classes` (needed where the preset holds no classifier), `pooling`, ...

        Returns:
            The class of this module that fits the preset's backbone; for a backbone of keras-hub
            (`ResNetBackbone`, `EfficientNetBackbone`, ...) keras-hub's own.
        """
        folder, load = resolve_preset(preset), super().from_preset
        backbone = preset_io.read_json(folder, "config.json", preset)
        if str(backbone.get("registered_name")).startswith("keras_hub>"):
            load = keras_hub.models.ImageClassifier.from_preset
            if "preprocessor" not in kwargs:
                with clear_errors(preset):
                    kwargs["preprocessor"] = preset_io.load_preprocessor(folder, preset)
        with warnings.catch_warnings():
            # The classifier has compiled itself, and a preset holds no optimizer.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            return load_preset(load, preset, load_weights, folder, **kwargs)


# keras-hub finds a task and its preprocessor by the class of the backbone: a pair for each.


@keras.saving.register_keras_serializable(package="keras_ssl")
class ConvNeXtImagePreprocessor(ImagePreprocessor):
    """`ImagePreprocessor` of a `ConvNeXtBackbone`."""

    backbone_cls = ConvNeXtBackbone


@keras.saving.register_keras_serializable(package="keras_ssl")
class ConvNeXtImageClassifier(ImageClassifier):
    """`ImageClassifier` over a `ConvNeXtBackbone`."""

    backbone_cls = ConvNeXtBackbone


@keras.saving.register_keras_serializable(package="keras_ssl")
class ResNetImagePreprocessor(ImagePreprocessor):
    """`ImagePreprocessor` of a `keras_ssl.backbones.ResNet`."""

    backbone_cls = ResNet


@keras.saving.register_keras_serializable(package="keras_ssl")
class ResNetImageClassifier(ImageClassifier):
    """`ImageClassifier` over a `keras_ssl.backbones.ResNet`."""

    backbone_cls = ResNet


@keras.saving.register_keras_serializable(package="keras_ssl")
class SmallResNetImagePreprocessor(ImagePreprocessor):
    """`ImagePreprocessor` of a `SmallResNet`."""

    backbone_cls = SmallResNet


@keras.saving.register_keras_serializable(package="keras_ssl")
class SmallResNetImageClassifier(ImageClassifier):
    """`ImageClassifier` over a `SmallResNet`."""

    backbone_cls = SmallResNet


@keras.saving.register_keras_serializable(package="keras_ssl")
class EfficientNetImagePreprocessor(ImagePreprocessor):
    """`ImagePreprocessor` of a `keras_ssl.backbones.EfficientNet`."""

    backbone_cls = EfficientNet


@keras.saving.register_keras_serializable(package="keras_ssl")
class EfficientNetImageClassifier(ImageClassifier):
    """`ImageClassifier` over a `keras_ssl.backbones.EfficientNet`."""

    backbone_cls = EfficientNet
