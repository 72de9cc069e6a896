"""MoCo: momentum contrast with a queue of negatives (He et al. 2019, Chen et al. 2020)."""

import keras
from keras import ops

from keras_ssl.layers.heads import ProjectionHead
from keras_ssl.layers.queue import FeatureQueue
from keras_ssl.layers.split_batch import apply_in_groups
from keras_ssl.losses.info_nce import InfoNCELoss
from keras_ssl.losses.nt_xent import l2_normalize
from keras_ssl.models.features import feature_dim
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.training.cross_device import all_gather, own_rows, whole_batch
from keras_ssl.training.momentum_teacher import MomentumTeacher
from keras_ssl.training.optimizers import sgd
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class MoCo(MomentumTeacher, SSLTask):
    """MoCo v1 and v2: a query finds its key among the keys of earlier batches.

    The query encoder `f_q` is trained; the key encoder is its moving average,
    `theta_k = m theta_k + (1 - m) theta_q`, taken before every step. With `q = f_q(view)` and
    `k = f_k(other view)` of unit length and a queue of `K` older keys `k_j`:

    `l = -log( exp(q . k / T) / (exp(q . k / T) + sum_j exp(q . k_j / T)) )`

    Then the keys are enqueued over the oldest. Queue and pointer are part of the model.

    Batch normalisation could let a query recognise its key by the statistics of their common
    batch. So the key batch is shuffled, and queries and keys are normalised in
    `batch_norm_groups` parts, as on so many devices of the paper; each part needs at least two
    images, and the paper's parts have 32 (batch 256 on 8 devices).

    Under data parallelism on JAX a batch is one global array, whatever devices hold it: the parts
    are those of the global batch, keys are shuffled across devices, and the numbers are those of
    one device. With as many parts as devices every part lies on a device of its own and its
    statistics need no communication; under TensorFlow's strategies and torch.distributed there must
    be so many, or one.

    Args:
        backbone: any image backbone of keras-hub, Keras or keras_ssl.
        projection_dim: width of queries and keys.
        version: 2 for MoCo v2 (head with a hidden layer, stronger views, `T = 0.2`), 1 for v1
            (linear head, `T = 0.07`).
        queue_size: number of negatives `K`, any positive integer.
        temperature: `T > 0`; `None` takes that of the version.
        momentum: `m`.
        batch_norm_groups: parts of a batch for batch normalisation. 1: the whole batch, no
            shuffling. `None`: 8 as in the paper where the backbone has batch normalisation, else 1.
        pooling: `"token"` or `"mean"`: how tokens or maps become features.
        augmenter: makes two views from images in `[0, 255]`; `"auto"` is the version's recipe at
            the backbone's image size. With `None` the dataset yields `(query views, key views)`,
            or those and the order `(N,)` in which keys are shuffled.
        preprocessor: for `predict`; `"auto"` resizes to the backbone's size and normalises.
        seed: int, of views, queue and shuffling.
        name: name of the model.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4
    )
    model = keras_ssl.models.MoCo(backbone, projection_dim=64, queue_size=1024)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    model.fit(images, batch_size=32, epochs=2)
    embeddings = model.predict(images)  # (64, 128)
    ```

    Reference:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020,
        algorithm 1; Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020.
    """

    teacher_update = "before"

    def __init__(
        self,
        backbone,
        projection_dim: int = 128,
        version: int = 2,
        queue_size: int = 65536,
        temperature: float | None = None,
        momentum: float = 0.999,
        batch_norm_groups: int | None = None,
        pooling: str | None = None,
        augmenter="auto",
        preprocessor="auto",
        seed: int | None = None,
        name: str | None = None,
    ):
        if version not in (1, 2):
            raise ValueError(f"`version` must be 1 or 2; see MoCoV3. Received: version={version}")
        super().__init__(
            backbone,
            pooling=pooling,
            augmenter=augmenter,
            preprocessor=preprocessor,
            seed=seed,
            name=name,
            recipe=f"mocov{version}",
        )
        if temperature is None:
            temperature = 0.2 if version == 2 else 0.07
        if batch_norm_groups is None:
            batch_norm_groups = 8 if has_batch_norm(backbone) else 1
        if batch_norm_groups < 1:
            raise ValueError(f"`batch_norm_groups` must be positive. Received: {batch_norm_groups}")
        self.projection_dim = projection_dim
        self.version = version
        self.queue_size = queue_size
        self.temperature = temperature
        self.batch_norm_groups = batch_norm_groups
        self.projection_head = ProjectionHead(
            projection_dim,
            num_layers=version,
            batch_norm=False,
            initializer="torch",
            dtype=self.dtype_policy,
            name="projection_head",
        )
        self.projection_head.build((None, feature_dim(backbone, self.pooling)))
        self.add_teacher("backbone", "projection_head", momentum=momentum)
        self.queue = FeatureQueue(queue_size, projection_dim, seed=seed, name="queue")
        self.contrastive_loss = InfoNCELoss(temperature, normalize=False)
        self.accuracy = keras.metrics.Mean(name="contrastive_accuracy")

    def project(self, images, backbone, head, training):
        """Unit vectors `(N, projection_dim)`, batch normalisation split in groups."""

        def encode(part):
            features = self.encode(part, training, backbone)
            return head(features, training=training)

        groups = self.batch_norm_groups if training else 1
        return l2_normalize(ops.cast(apply_in_groups(encode, images, groups), "float32"))

    def queries(self, images, training=False):
        """Queries `(N, projection_dim)` of unit length."""
        return self.project(images, self.backbone, self.projection_head, training)

    def keys(self, images, training=False, order=None):
        """Keys `(N, projection_dim)` of unit length, without gradient."""
        if training and self.batch_norm_groups > 1:
            if order is None:
                count = whole_batch(ops.shape(images)[0])
                order = self.random.permutation((count,), batch_axis=None)
            else:
                order = all_gather(order)
            # From all devices and back to them.
            images = own_rows(ops.take(all_gather(images), order, axis=0))
        k = self.project(images, self.teacher_backbone, self.teacher_projection_head, training)
        if training and self.batch_norm_groups > 1:
            k = own_rows(ops.take(all_gather(k), ops.argsort(order), axis=0))
        return ops.stop_gradient(k)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        query_view, key_view, *order = self.make_views(x, training)
        q = self.queries(query_view, training)  # N x C
        k = self.keys(key_view, training, *order)  # N x C
        loss, logits = self.contrastive_loss(
            q, k, negatives=self.queue.features(), return_logits=True
        )  # logits: N x (1 + K)
        if training:
            self.queue.enqueue(k)
        self.accuracy.update_state(ops.equal(ops.argmax(logits, axis=-1), 0))
        return loss

    def _plan(self, batch_size, steps_per_epoch, epochs, initial_epoch):
        if batch_size < 2 * self.batch_norm_groups and self.batch_norm_groups > 1:
            raise ValueError(
                f"A batch of {batch_size} cannot be split in {self.batch_norm_groups} parts of two "
                "images or more for batch normalisation: use larger batches or fewer "
                f"`batch_norm_groups`. Received: batch_size={batch_size}"
            )
        super()._plan(batch_size, steps_per_epoch, epochs, initial_epoch)

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """SGD(momentum 0.9), weight decay 1e-4 on everything, cosine to zero, changed every epoch.

        The learning rate is 0.03 for a batch of 256, scaled linearly (section 3.3; v2's cosine for
        both versions).
        """
        base = self._auto_compile["learning_rate"] or 0.03
        schedule = WarmupCosine(
            scale_learning_rate(base, batch_size),
            total_steps=total_steps,
            update_every=steps_per_epoch,
        )
        return sgd(schedule, momentum=0.9, weight_decay=1e-4)

    def get_config(self):
        return {
            **super().get_config(),
            "projection_dim": self.projection_dim,
            "version": self.version,
            "queue_size": self.queue_size,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "batch_norm_groups": self.batch_norm_groups,
        }


def has_batch_norm(layer) -> bool:
    """Whether there is batch normalisation anywhere in a model."""
    return any("moving_variance" in v.path for v in layer.non_trainable_variables)
