"""Barlow Twins: redundancy reduction (Zbontar et al. 2021), https://arxiv.org/abs/2103.03230."""

import keras

from keras_ssl.layers.heads import ProjectionHead
from keras_ssl.losses.barlow_twins import BarlowTwinsLoss
from keras_ssl.models.features import feature_dim
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.training.optimizers import LARS
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class BarlowTwins(SSLTask):
    """Barlow Twins: the cross-correlation between the views' features is to be the identity.

    `z = g(f(view))`, standardised over the batch, `C = z1^T z2 / N`, and

    `loss = sum_i (1 - C_ii)^2 + off_diagonal_weight * sum_{i != j} C_ij^2`

    Every view passes through the networks on its own. Wide projections help here: the default is
    the paper's, the width of a ResNet-50's features times four.

    Args:
        backbone: any image backbone of keras-hub, Keras or keras_ssl.
        projection_dim: width of `z`.
        projection_hidden_dim: width of the two hidden layers of `g`, or a list with the width of
            each, which may be fewer or more; `projection_dim` when `None`.
        off_diagonal_weight: lambda.
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
    model = keras_ssl.models.BarlowTwins(backbone, projection_dim=256)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    model.fit(images, batch_size=32, epochs=2)
    embeddings = model.predict(images)  # (64, 128)
    ```

    Reference:
        Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, 2021,
        algorithm 1.
    """

    def __init__(
        self,
        backbone,
        projection_dim: int = 8192,
        projection_hidden_dim: int | list[int] | None = None,
        off_diagonal_weight: float = 0.0051,
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
            recipe="barlow_twins",
        )
        self.projection_dim = projection_dim
        self.projection_hidden_dim = projection_hidden_dim
        self.off_diagonal_weight = off_diagonal_weight
        hidden = projection_dim if projection_hidden_dim is None else projection_hidden_dim
        self.projection_head = ProjectionHead(
            projection_dim,
            hidden,
            num_layers=3 if isinstance(hidden, int) else len(hidden) + 1,
            final_batch_norm=False,
            output_bias=False,
            initializer="torch",
            dtype=self.dtype_policy,
            name="projection_head",
        )
        self.projection_head.build((None, feature_dim(backbone, self.pooling)))
        self.redundancy_loss = BarlowTwinsLoss(off_diagonal_weight)

    def project(self, view, training=False):
        """`z`, `(N, projection_dim)`."""
        features = self.encode(view, training)
        return self.projection_head(features, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        z1, z2 = (self.project(view, training) for view in self.make_views(x, training))
        return self.redundancy_loss(z1, z2)

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """LARS(momentum 0.9), weight decay 1e-6, ten epochs of warm-up, cosine to a thousandth.

        The learning rate is 0.2 for weights and 0.0048 for biases and normalisation, for a batch
        of 256, scaled linearly (section 2.2). The latter have neither decay nor adaptation.
        """
        base = scale_learning_rate(self._auto_compile["learning_rate"] or 0.2, batch_size)
        schedule = WarmupCosine(
            base,
            total_steps=total_steps,
            warmup_steps=min(10 * steps_per_epoch, total_steps // 10),
            final=0.001 * base,
        )
        return LARS(
            schedule,
            momentum=0.9,
            weight_decay=1e-6,
            momentum_holds="scaled_gradient",
            learning_rate_multipliers={"(bias|gamma|beta)$": 0.0048 / 0.2},
        )

    def get_config(self):
        return {
            **super().get_config(),
            "projection_dim": self.projection_dim,
            "projection_hidden_dim": self.projection_hidden_dim,
            "off_diagonal_weight": self.off_diagonal_weight,
        }
