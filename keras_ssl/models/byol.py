"""BYOL: predict the projection of a slow copy (Grill et al. 2020), arxiv.org/abs/2006.07733."""

import keras
from keras import ops

from keras_ssl.layers.heads import ProjectionHead
from keras_ssl.losses.byol import BYOLLoss
from keras_ssl.models.features import feature_dim
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.training.momentum_teacher import MomentumTeacher
from keras_ssl.training.optimizers import LARS
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class BYOL(MomentumTeacher, SSLTask):
    """BYOL: the online network predicts what the target network makes of the other view.

    Online: `z = g(f(view))`, `p = q(z)`. Target: `z' = g'(f'(other view))`, whose parameters are
    the moving average `xi = tau xi + (1 - tau) theta`, with `tau` from `momentum` to 1 along half
    a cosine. No gradient reaches the target.

    `loss = |p1 / |p1| - z2' / |z2'||^2 + |p2 / |p2| - z1' / |z1'||^2`, averaged over the batch

    The two directions are *summed*. Every view passes through the networks on its own, so batch
    normalisation sees one view at a time. `predict` gives `f(view)` of the online network.

    Args:
        backbone: any image backbone of keras-hub, Keras or keras_ssl.
        projection_dim: width of `z` and `p`.
        projection_hidden_dim: hidden width of the projection `g`.
        prediction_hidden_dim: hidden width of the prediction `q`; that of `g` when `None`.
        momentum: `tau` at the start.
        momentum_schedule: `"cosine"` or `"constant"`.
        pooling: `"token"` or `"mean"`: how tokens or maps become features.
        augmenter: makes two views from images in `[0, 255]`; `"auto"` is the paper's asymmetric
            recipe at the backbone's image size. With `None` the dataset yields a tuple of two view
            batches.
        preprocessor: for `predict`; `"auto"` resizes to the backbone's size and normalises.
        seed: int, of the views.
        name: name of the model.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4
    )
    model = keras_ssl.models.BYOL(backbone, projection_dim=64, projection_hidden_dim=256)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    model.fit(images, batch_size=32, epochs=2)
    embeddings = model.predict(images)  # (64, 128)
    ```

    Reference:
        Grill et al., Bootstrap your own latent: A new approach to self-supervised learning, 2020,
        section 3 and appendix J. (The published code starts online and target networks from two
        draws; here the target starts as a copy.)
    """

    def __init__(
        self,
        backbone,
        projection_dim: int = 256,
        projection_hidden_dim: int = 4096,
        prediction_hidden_dim: int | None = None,
        momentum: float = 0.996,
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
            recipe="byol",
        )
        self.projection_dim = projection_dim
        self.projection_hidden_dim = projection_hidden_dim
        self.prediction_hidden_dim = prediction_hidden_dim
        head = dict(
            final_batch_norm=False,
            hidden_bias=True,
            output_bias=False,
            initializer="haiku",
            dtype=self.dtype_policy,
        )
        self.projection_head = ProjectionHead(
            projection_dim, projection_hidden_dim, name="projection_head", **head
        )
        self.projection_head.build((None, feature_dim(backbone, self.pooling)))
        self.prediction_head = ProjectionHead(
            projection_dim,
            prediction_hidden_dim or projection_hidden_dim,
            name="prediction_head",
            **head,
        )
        self.prediction_head.build((None, projection_dim))
        self.add_teacher(
            "backbone", "projection_head", momentum=momentum, schedule=momentum_schedule
        )
        self.regression_loss = BYOLLoss()

    def project(self, view, training=False):
        """`z` of the online network, `(N, projection_dim)`."""
        features = self.encode(view, training)
        return self.projection_head(features, training=training)

    def project_target(self, view, training=False):
        """`z'` of the target network, `(N, projection_dim)`, without gradient."""
        features = self.encode(view, training, self.teacher_backbone)
        return ops.stop_gradient(self.teacher_projection_head(features, training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        view_1, view_2 = self.make_views(x, training)
        p1 = self.prediction_head(self.project(view_1, training), training=training)
        p2 = self.prediction_head(self.project(view_2, training), training=training)
        z1 = self.project_target(view_1, training)
        z2 = self.project_target(view_2, training)
        return self.regression_loss(p1, z2) + self.regression_loss(p2, z1)

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """LARS(momentum 0.9), weight decay 1.5e-6, ten epochs of warm-up, cosine to zero.

        The base learning rate is 0.2 for a batch of 256, scaled linearly (section 3.3). Biases and
        batch normalisation are left out of weight decay and of the layer-wise adaptation.
        """
        base = self._auto_compile["learning_rate"] or 0.2
        schedule = WarmupCosine(
            scale_learning_rate(base, batch_size),
            total_steps=total_steps,
            warmup_steps=min(10 * steps_per_epoch, total_steps // 10),
        )
        return LARS(schedule, momentum=0.9, weight_decay=1.5e-6, momentum_holds="scaled_gradient")

    def get_config(self):
        return {
            **super().get_config(),
            "projection_dim": self.projection_dim,
            "projection_hidden_dim": self.projection_hidden_dim,
            "prediction_hidden_dim": self.prediction_hidden_dim,
            "momentum": self.momentum,
            "momentum_schedule": self.momentum_schedule,
        }
