"""SimCLR: contrastive learning of two views (Chen et al. 2020), https://arxiv.org/abs/2002.05709."""

import keras
from keras import ops

from keras_ssl.layers.heads import ProjectionHead
from keras_ssl.layers.image_converter import image_shape_of
from keras_ssl.layers.queue import FeatureQueue
from keras_ssl.losses.info_nce import InfoNCELoss
from keras_ssl.losses.nt_xent import NTXentLoss, l2_normalize
from keras_ssl.models.features import feature_dim
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.training.optimizers import LARS
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class SimCLR(SSLTask):
    """SimCLR: two views of a picture attract each other, all other pictures repel.

    `h = f(view)`, `z = g(h)`, and for every pair `(i, j)` of views of one picture

    `l(i, j) = -log( exp(cos(z_i, z_j) / T) / sum_{k != i} exp(cos(z_i, z_k) / T) )`

    over the `2N` views of the batch, averaged over all of them (equation 1; the published code adds
    the two directions instead, twice as much). `predict` gives `h`, what the paper found best
    for use.

    Args:
        backbone: any image backbone of keras-hub, Keras or keras_ssl.
        projection_dim: width of `z`.
        projection_hidden_dim: hidden width of the head `g`; the features' width when `None`.
        num_projection_layers: depth of the head: 2 in SimCLR, 3 in SimCLR v2.
        temperature: `T > 0`.
        loss: an `NTXentLoss` instead of the paper's, for its options for negatives (decoupled,
            debiased, hard): its temperature counts then.
        memory_bank_size: with `K > 0`, the negatives of first views are not the batch but the last
            `K` second views, a queue that is saved with the model:
            `l = -log( e^(z_i . z_j / T) / (e^(z_i . z_j / T) + sum_k e^(z_i . b_k / T)) )`.
            Many negatives in a small batch.
        pooling: `"token"` or `"mean"`: how tokens or maps become `h`.
        augmenter: makes two views from images in `[0, 255]`; `"auto"` is the paper's recipe at
            the backbone's image size, and at up to 64 px its CIFAR form (weaker colours, no
            blur; appendix B.9). With `None` the dataset yields a tuple of two view batches.
        preprocessor: for `predict`; `"auto"` resizes to the backbone's size and normalises.
        seed: int, of the views.
        name: name of the model.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4
    )
    model = keras_ssl.models.SimCLR(backbone, projection_dim=64)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    model.fit(images, batch_size=32, epochs=2)
    embeddings = model.predict(images)  # (64, 128)
    ```

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020;
        Chen et al., Big Self-Supervised Models are Strong Semi-Supervised Learners, 2020.
    """

    def __init__(
        self,
        backbone,
        projection_dim: int = 128,
        projection_hidden_dim: int | None = None,
        num_projection_layers: int = 2,
        temperature: float = 0.1,
        loss: NTXentLoss | None = None,
        memory_bank_size: int = 0,
        pooling: str | None = None,
        augmenter="auto",
        preprocessor="auto",
        seed: int | None = None,
        name: str | None = None,
    ):
        height, width, _ = image_shape_of(backbone)
        small = max(height or 224, width or 224) <= 64
        super().__init__(
            backbone,
            pooling=pooling,
            augmenter=augmenter,
            preprocessor=preprocessor,
            seed=seed,
            name=name,
            recipe="simclr_cifar" if small else "simclr",
        )
        self.projection_dim = projection_dim
        self.projection_hidden_dim = projection_hidden_dim
        self.num_projection_layers = num_projection_layers
        self.temperature = temperature
        self.projection_head = ProjectionHead(
            projection_dim,
            hidden_dim=projection_hidden_dim,
            num_layers=num_projection_layers,
            dtype=self.dtype_policy,
            name="projection_head",
        )
        self.projection_head.build((None, feature_dim(backbone, self.pooling)))
        self.loss_option = loss
        self.contrastive_loss = loss or NTXentLoss(temperature)
        self.memory_bank_size = memory_bank_size
        self.memory_bank = None
        if memory_bank_size:
            self.memory_bank = FeatureQueue(
                memory_bank_size, projection_dim, seed=seed, name="memory_bank"
            )
            options = self.contrastive_loss
            self.bank_loss = InfoNCELoss(
                options.temperature,
                normalize=options.normalize,
                decoupled=options.decoupled,
                class_prior=options.class_prior,
                hardness=options.hardness,
            )
        self.accuracy = keras.metrics.Mean(name="contrastive_accuracy")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        view_a, view_b = self.make_views(x, training)
        # One pass over both views, so that batch normalisation sees all 2N of them.
        views = ops.concatenate([view_a, view_b], axis=0)
        h = self.encode(views, training)  # 2N x D
        z = self.projection_head(h, training=training)  # 2N x projection_dim
        z_a, z_b = ops.split(z, 2, axis=0)
        if self.memory_bank is not None:
            return self._loss_with_bank(z_a, z_b, training)
        loss, statistics = self.contrastive_loss(z_a, z_b, return_statistics=True)
        self.accuracy.update_state(statistics["accuracy"])
        return loss

    def _loss_with_bank(self, z_a, z_b, training):
        bank = self.memory_bank.features()  # memory_bank_size x projection_dim
        loss, logits = self.bank_loss(z_a, z_b, negatives=bank, return_logits=True)
        if training:
            self.memory_bank.enqueue(l2_normalize(ops.cast(z_b, "float32")))
        self.accuracy.update_state(ops.equal(ops.argmax(logits, axis=-1), 0))
        return loss

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """LARS(momentum 0.9), weight decay 1e-6, ten epochs of warm-up, cosine to zero.

        The base learning rate is 0.3 for a batch of 256, scaled linearly (section 2.1). Biases and
        batch normalisation are left out of weight decay and of the layer-wise adaptation.
        """
        base = self._auto_compile["learning_rate"] or 0.3
        schedule = WarmupCosine(
            scale_learning_rate(base, batch_size),
            total_steps=total_steps,
            warmup_steps=min(10 * steps_per_epoch, total_steps // 10),
        )
        return LARS(
            schedule,
            momentum=0.9,
            weight_decay=1e-6,
            exclude_from_weight_decay=["bias$", "gamma$", "beta$"],
        )

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("loss"), dict):
            config["loss"] = keras.saving.deserialize_keras_object(config["loss"])
        return super().from_config(config)

    def get_config(self):
        return {
            **super().get_config(),
            "projection_dim": self.projection_dim,
            "projection_hidden_dim": self.projection_hidden_dim,
            "num_projection_layers": self.num_projection_layers,
            "temperature": self.temperature,
            "loss": self.loss_option and keras.saving.serialize_keras_object(self.loss_option),
            "memory_bank_size": self.memory_bank_size,
        }
