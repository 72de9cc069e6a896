"""VICReg: variance, invariance, covariance (Bardes et al. 2022), arxiv.org/abs/2105.04906."""

import keras

from keras_ssl.layers.heads import ProjectionHead
from keras_ssl.losses.vicreg import VICRegLoss
from keras_ssl.models.features import feature_dim
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.training.optimizers import LARS
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class VICReg(SSLTask):
    """VICReg: views agree, every feature varies, no two features say the same.

    `z = g(f(view))`, and with `v` a hinge on each feature's standard deviation and `c` the squared
    covariances between features (see `VICRegLoss`)

    `loss = similarity * |z1 - z2|^2 + variance * (v(z1) + v(z2)) / 2`
    `     + covariance * (c(z1) + c(z2))`

    Every view passes through the networks on its own.

    Args:
        backbone: any image backbone of keras-hub, Keras or keras_ssl.
        projection_dim: width of `z`.
        projection_hidden_dim: width of the two hidden layers of `g`, or a list with the width of
            each, which may be fewer or more; `projection_dim` when `None`.
        similarity: weight of the invariance term.
        variance: weight of the variance term.
        covariance: weight of the covariance term.
        pooling: `"token"` or `"mean"`: how tokens or maps become features.
        augmenter: makes two views from images in `[0, 255]`; `"auto"` is the paper's recipe at
            the backbone's image size. With `None` the dataset yields a tuple of two view batches.
        preprocessor: for `predict`; `"auto"` resizes to the backbone's size and normalises.
        seed: int, of the views.
        name: name of the model.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4
    )
    model = keras_ssl.models.VICReg(backbone, projection_dim=256)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    model.fit(images, batch_size=32, epochs=2)
    embeddings = model.predict(images)  # (64, 128)
    ```

    Reference:
        Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization for
        Self-Supervised Learning, 2022, algorithm 1.
    """

    def __init__(
        self,
        backbone,
        projection_dim: int = 8192,
        projection_hidden_dim: int | list[int] | None = None,
        similarity: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
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
            recipe="vicreg",
        )
        self.projection_dim = projection_dim
        self.projection_hidden_dim = projection_hidden_dim
        hidden = projection_dim if projection_hidden_dim is None else projection_hidden_dim
        self.projection_head = ProjectionHead(
            projection_dim,
            hidden,
            num_layers=3 if isinstance(hidden, int) else len(hidden) + 1,
            final_batch_norm=False,
            hidden_bias=True,
            output_bias=False,
            initializer="torch",
            dtype=self.dtype_policy,
            name="projection_head",
        )
        self.projection_head.build((None, feature_dim(backbone, self.pooling)))
        self.regularized_loss = VICRegLoss(similarity, variance, covariance)

    def project(self, view, training=False):
        """`z`, `(N, projection_dim)`."""
        features = self.encode(view, training)
        return self.projection_head(features, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        z1, z2 = (self.project(view, training) for view in self.make_views(x, training))
        return self.regularized_loss(z1, z2)

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """LARS(momentum 0.9), weight decay 1e-6, ten epochs of warm-up, cosine to a thousandth.

        The learning rate is 0.2 for a batch of 256, scaled linearly (section 4.2). Biases and
        normalisation have neither decay nor adaptation.
        """
        base = scale_learning_rate(self._auto_compile["learning_rate"] or 0.2, batch_size)
        schedule = WarmupCosine(
            base,
            total_steps=total_steps,
            warmup_steps=min(10 * steps_per_epoch, total_steps // 10),
            final=0.001 * base,
        )
        return LARS(schedule, momentum=0.9, weight_decay=1e-6, momentum_holds="scaled_gradient")

    def get_config(self):
        loss = self.regularized_loss
        return {
            **super().get_config(),
            "projection_dim": self.projection_dim,
            "projection_hidden_dim": self.projection_hidden_dim,
            "similarity": loss.similarity,
            "variance": loss.variance,
            "covariance": loss.covariance,
        }
