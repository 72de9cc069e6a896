"""SimSiam: BYOL without the moving average (Chen & He 2021), https://arxiv.org/abs/2011.10566."""

import keras
from keras import ops

from keras_ssl.layers.heads import ProjectionHead
from keras_ssl.losses.negative_cosine import NegativeCosineLoss
from keras_ssl.models.features import feature_dim
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.training.optimizers import sgd
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class SimSiam(SSLTask):
    """SimSiam: predict the other view's projection, with no gradient through what is predicted.

    `z = g(f(view))`, `p = h(z)`, and with `D(p, z) = -cos(p, z)`

    `loss = D(p1, stop_gradient(z2)) / 2 + D(p2, stop_gradient(z1)) / 2`

    Predictor and stopped gradient are what keeps it from collapsing: there are no negatives and
    there is no teacher. Every view passes through the networks on its own.

    Args:
        backbone: any image backbone of keras-hub, Keras or keras_ssl.
        projection_dim: width of `z` and `p`.
        projection_hidden_dim: hidden width of `g`; the features' width when `None`.
        prediction_hidden_dim: hidden width of the bottleneck `h`; a quarter of `projection_dim`
            when `None`, as in the paper.
        fix_predictor_learning_rate: leave the learning rate of `h` at its start while that of `f`
            and `g` decays, as in the published code: `h` must keep up with what it predicts.
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
    model = keras_ssl.models.SimSiam(backbone, projection_dim=256)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    model.fit(images, batch_size=32, epochs=2)
    embeddings = model.predict(images)  # (64, 128)
    ```

    Reference:
        Chen and He, Exploring Simple Siamese Representation Learning, 2021, algorithm 1.
    """

    def __init__(
        self,
        backbone,
        projection_dim: int = 2048,
        projection_hidden_dim: int | None = None,
        prediction_hidden_dim: int | None = None,
        fix_predictor_learning_rate: bool = True,
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
            recipe="simsiam",
        )
        self.projection_dim = projection_dim
        self.projection_hidden_dim = projection_hidden_dim
        self.prediction_hidden_dim = prediction_hidden_dim
        self.fix_predictor_learning_rate = fix_predictor_learning_rate
        self.projection_head = ProjectionHead(
            projection_dim,
            projection_hidden_dim,
            num_layers=3,
            final_scale=False,
            initializer="torch",
            dtype=self.dtype_policy,
            name="projection_head",
        )
        self.projection_head.build((None, feature_dim(backbone, self.pooling)))
        self.prediction_head = ProjectionHead(
            projection_dim,
            prediction_hidden_dim or max(1, projection_dim // 4),
            final_batch_norm=False,
            initializer="torch",
            dtype=self.dtype_policy,
            name="prediction_head",
        )
        self.prediction_head.build((None, projection_dim))
        self.distance = NegativeCosineLoss()

    def project(self, view, training=False):
        """`z`, `(N, projection_dim)`."""
        features = self.encode(view, training)
        return self.projection_head(features, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        z1, z2 = (self.project(view, training) for view in self.make_views(x, training))
        p1, p2 = (self.prediction_head(z, training=training) for z in (z1, z2))
        z1, z2 = ops.stop_gradient(z1), ops.stop_gradient(z2)
        return self.distance(p1, z2) / 2 + self.distance(p2, z1) / 2

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """SGD(momentum 0.9), weight decay 1e-4, cosine to zero, changed every epoch.

        The base learning rate is 0.05 for a batch of 256, scaled linearly (section 3). With
        `fix_predictor_learning_rate` the decay is a multiplier of all but the predictor's rate
        (appendix B).
        """
        base = self._auto_compile["learning_rate"] or 0.05
        peak = scale_learning_rate(base, batch_size)
        decay = dict(total_steps=total_steps, update_every=steps_per_epoch)
        if not self.fix_predictor_learning_rate:
            return sgd(WarmupCosine(peak, **decay), momentum=0.9, weight_decay=1e-4)
        all_but_predictor = "^(?!.*prediction_head)"
        return sgd(
            peak,
            momentum=0.9,
            weight_decay=1e-4,
            learning_rate_multipliers={all_but_predictor: WarmupCosine(1.0, **decay)},
        )

    def get_config(self):
        return {
            **super().get_config(),
            "projection_dim": self.projection_dim,
            "projection_hidden_dim": self.projection_hidden_dim,
            "prediction_hidden_dim": self.prediction_hidden_dim,
            "fix_predictor_learning_rate": self.fix_predictor_learning_rate,
        }
