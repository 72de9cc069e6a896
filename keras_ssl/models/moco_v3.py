"""MoCo v3: momentum contrast without a queue, for vision transformers (Chen et al. 2021)."""

import keras
from keras import ops

from keras_ssl.backbones.vit import ViTBackbone
from keras_ssl.layers.heads import ProjectionHead
from keras_ssl.losses.info_nce import InfoNCELoss
from keras_ssl.models.features import feature_dim
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.training.momentum_teacher import MomentumTeacher
from keras_ssl.training.optimizers import LARS, AdamW
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class MoCoV3(MomentumTeacher, SSLTask):
    """MoCo v3: each view predicts the other's key among the keys of the batch.

    Queries `q = h(g(f(view)))`, keys `k = g'(f'(view))` of the momentum encoder, whose momentum
    rises from `momentum` to 1 along half a cosine. With unit vectors

    `ctr(q, k) = -2 T mean_i log( exp(q_i . k_i / T) / sum_j exp(q_i . k_j / T) )`
    `loss = ctr(q1, k2) + ctr(q2, k1)`

    The factor `2 T` keeps the size of the gradient when the temperature changes. A vision
    transformer trains stably with a patch projection that stays at its random start and with fixed
    sine-cosine positions: `ViTBackbone(freeze_patch_projection=True, initializer="moco_v3",
    position_embedding="sincos_moco_v3")`. Every view passes through the networks on its own.

    Args:
        backbone: any image backbone of keras-hub, Keras or keras_ssl.
        projection_dim: width of queries and keys.
        projection_hidden_dim: hidden width of `g` and `h`.
        num_projection_layers: depth of `g`; `None`: 3 for a `ViTBackbone`, else 2.
        normalize_prediction: end `h` with batch normalisation; `None`: for a `ViTBackbone`.
        temperature: `T`; `None`: 0.2 for a `ViTBackbone`, else 1.
        momentum: of the encoder at the start.
        momentum_schedule: `"cosine"` or `"constant"`.
        pooling: `"token"` or `"mean"`: how tokens or maps become features.
        augmenter: makes two views from images in `[0, 255]`; `"auto"` is the paper's recipe at
            the backbone's image size. With `None` the dataset yields a tuple of two view batches.
        preprocessor: for `predict`; `"auto"` resizes to the backbone's size and normalises.
        seed: int, of the views.
        name: name of the model.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano",
        image_shape=(32, 32, 3),
        patch_size=4,
        freeze_patch_projection=True,
        initializer="moco_v3",
        position_embedding="sincos_moco_v3",
    )
    model = keras_ssl.models.MoCoV3(backbone, projection_dim=64, projection_hidden_dim=256)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    model.fit(images, batch_size=32, epochs=2)
    embeddings = model.predict(images)  # (64, 128)
    ```

    Reference:
        Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, 2021,
        algorithm 1 and section 4.
    """

    teacher_update = "before"

    def __init__(
        self,
        backbone,
        projection_dim: int = 256,
        projection_hidden_dim: int = 4096,
        num_projection_layers: int | None = None,
        normalize_prediction: bool | None = None,
        temperature: float | None = None,
        momentum: float = 0.99,
        momentum_schedule: str = "cosine",
        pooling: str | None = None,
        augmenter="auto",
        preprocessor="auto",
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            backbone,
            pooling=pooling,
            augmenter=augmenter,
            preprocessor=preprocessor,
            seed=seed,
            name=name,
            recipe="mocov3",
        )
        transformer = isinstance(backbone, ViTBackbone)
        if num_projection_layers is None:
            num_projection_layers = 3 if transformer else 2
        if normalize_prediction is None:
            normalize_prediction = transformer
        if temperature is None:
            temperature = 0.2 if transformer else 1.0
        self.projection_dim = projection_dim
        self.projection_hidden_dim = projection_hidden_dim
        self.num_projection_layers = num_projection_layers
        self.normalize_prediction = normalize_prediction
        self.temperature = temperature
        self.projection_head = ProjectionHead(
            projection_dim,
            projection_hidden_dim,
            num_layers=num_projection_layers,
            final_scale=False,
            initializer="torch",
            dtype=self.dtype_policy,
            name="projection_head",
        )
        self.projection_head.build((None, feature_dim(backbone, self.pooling)))
        self.prediction_head = ProjectionHead(
            projection_dim,
            projection_hidden_dim,
            final_batch_norm=normalize_prediction,
            final_scale=False,
            output_bias=False,
            initializer="torch",
            dtype=self.dtype_policy,
            name="prediction_head",
        )
        self.prediction_head.build((None, projection_dim))
        self.add_teacher(
            "backbone", "projection_head", momentum=momentum, schedule=momentum_schedule
        )
        self.contrastive_loss = InfoNCELoss(temperature, scale=2 * temperature)

    def queries(self, view, training=False):
        """`q`, `(N, projection_dim)`, not yet of unit length."""
        features = self.encode(view, training)
        z = self.projection_head(features, training=training)
        return self.prediction_head(z, training=training)

    def keys(self, view, training=False):
        """`k`, `(N, projection_dim)`, not yet of unit length, without gradient."""
        features = self.encode(view, training, self.teacher_backbone)
        return ops.stop_gradient(self.teacher_projection_head(features, training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        view_1, view_2 = self.make_views(x, training)
        q1, q2 = self.queries(view_1, training), self.queries(view_2, training)
        k1, k2 = self.keys(view_1, training), self.keys(view_2, training)
        return self.contrastive_loss(q1, k2) + self.contrastive_loss(q2, k1)

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """AdamW for a `ViTBackbone`, LARS for other backbones, warm-up, cosine to zero.

        AdamW: 1.5e-4 for a batch of 256, weight decay 0.1 on everything, 40 epochs of warm-up
        (section 4.2 of the paper). LARS: 0.6 for a batch of 256, weight decay 1e-6, ten epochs of
        warm-up, vectors without decay and adaptation (the published ResNet-50 of 100 epochs). Both
        scaled linearly; the warm-up takes a tenth of the run at most.
        """
        transformer = isinstance(self.backbone, ViTBackbone)
        base = self._auto_compile["learning_rate"] or (1.5e-4 if transformer else 0.6)
        warmup = (40 if transformer else 10) * steps_per_epoch
        schedule = WarmupCosine(
            scale_learning_rate(base, batch_size),
            total_steps=total_steps,
            warmup_steps=min(warmup, total_steps // 10),
        )
        if transformer:
            return AdamW(schedule, weight_decay=0.1)
        return LARS(schedule, momentum=0.9, weight_decay=1e-6, momentum_holds="scaled_gradient")

    def get_config(self):
        return {
            **super().get_config(),
            "projection_dim": self.projection_dim,
            "projection_hidden_dim": self.projection_hidden_dim,
            "num_projection_layers": self.num_projection_layers,
            "normalize_prediction": self.normalize_prediction,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "momentum_schedule": self.momentum_schedule,
        }
