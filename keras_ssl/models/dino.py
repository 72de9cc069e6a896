"""DINO: self-distillation with no labels (Caron et al. 2021), arxiv.org/abs/2104.14294."""

import keras
from keras import ops

from keras_ssl.layers.dino_head import DINOHead
from keras_ssl.losses.dino import Center, DINOLoss, mean_entropy
from keras_ssl.models.features import feature_dim
from keras_ssl.models.self_distillation import SelfDistillation, options_of
from keras_ssl.training.optimizers import AdamW
from keras_ssl.training.schedules import LinearWarmup, WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class DINO(SelfDistillation):
    """DINO: the student's crops must agree with what a slow teacher says of whole views.

    The teacher `g'` sees the global views, the student `g` all crops; both end in a softmax over
    `K` prototypes:

    `P_t = softmax((g'(x_t) - c) / tau_t)`, `P_s = softmax(g(x_s) / tau_s)`

    `loss = mean over t, s != t of H(P_t, P_s)`

    The centre `c` is the running mean of the teacher's logits: no prototype may win everywhere. The
    low `tau_t` sharpens: the distributions may not be uniform. The teacher's weights are the moving
    average of the student's, with a momentum that rises to 1 along half a cosine. Crops of one
    size pass in one forward. `tau_t` rises linearly over the first epochs. Centre, counters and
    schedules are saved with the model.

    Metrics: `teacher_entropy` `h(P_t)` and `teacher_student_kl` `KL(P_t | P_s)`, in nats, which
    add up to the loss, and `center_entropy` of `softmax(c / tau_t)`. A divergence near 0 is
    collapse: to one prototype where the entropy is near 0 too, to the uniform distribution where
    it is near `log K`.

    For pictures of 32 to 96 pixels, or a few thousand of them, see `DINO.small`.

    Args:
        backbone: any image backbone of keras-hub, Keras or keras_ssl whose layers take pictures of
            both sizes (convolutions do); a fixed input size is lifted.
        output_dim: number of prototypes `K`.
        hidden_dim: hidden width of the head.
        bottleneck_dim: width of the unit vector that is compared with the prototypes.
        num_head_layers: linear layers of the head's MLP.
        head_batch_norm: batch normalisation in the head.
        normalize_last_layer: fix the prototypes' norms at 1. (`False` trained better for ViT-S.)
        num_local_views: local crops, with `augmenter="auto"`; `None` for the recipe's 8.
        num_global_views: how many of the views the teacher sees: the first ones.
        student_temperature: `tau_s`.
        teacher_temperature: `tau_t` after the warm-up.
        warmup_teacher_temperature: `tau_t` in the first epoch.
        warmup_teacher_epochs: length of the warm-up; an epoch is that of the first `fit`.
        center_momentum: of the centre; 1 for no centring.
        momentum: of the teacher at the start.
        momentum_schedule: `"cosine"` or `"constant"`.
        freeze_last_layer: epochs during which the prototypes rest (at most a tenth of all).
        base_learning_rate: of the default optimizer, for a batch of 256.
        predict_with: `"teacher"`, as the paper evaluates, or `"student"`.
        pooling: `"token"` or `"mean"`: how tokens or maps become features.
        augmenter: makes the views, global ones first, from images in `[0, 255]`; `"auto"` is the
            paper's multi-crop at the backbone's image size. With `None` the dataset yields a tuple
            of batches of views.
        preprocessor: for `predict`; `"auto"` resizes to the backbone's size and normalises.
        recipe: of the `"auto"` views: `"dino"` or `"dino_small"`.
        seed: int, of the views.
        name: name of the model.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4, interpolation_offset=0.1
    )
    model = keras_ssl.models.DINO.small(backbone)
    images = np.random.randint(0, 256, (32, 32, 32, 3), "uint8")
    model.fit(images, batch_size=16, epochs=2)
    embeddings = model.predict(images)  # (32, 128)
    ```

    Reference:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, section 3
        and appendix; facebookresearch/dino, main_dino.py, for the defaults.
    """

    def __init__(
        self,
        backbone,
        output_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_head_layers: int = 3,
        head_batch_norm: bool = False,
        normalize_last_layer: bool = True,
        num_local_views: int | None = None,
        num_global_views: int = 2,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 30,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        momentum_schedule: str = "cosine",
        freeze_last_layer: int = 1,
        base_learning_rate: float = 5e-4,
        predict_with: str = "teacher",
        pooling: str | None = None,
        augmenter="auto",
        preprocessor="auto",
        recipe: str = "dino",
        seed: int | None = None,
        name: str | None = None,
    ):
        options = options_of(locals())
        if getattr(backbone, "input_spec", None) is not None:
            # A functional model insists on the size that it was made with; its layers may not.
            backbone.input_spec = keras.layers.InputSpec(ndim=4)
        super().__init__(
            backbone,
            options,
            recipe,
            num_local_views,
            augmenter,
            seed,
            pooling=pooling,
            preprocessor=preprocessor,
            name=name,
        )
        self.head = DINOHead(
            output_dim,
            hidden_dim,
            bottleneck_dim,
            num_head_layers,
            use_batch_norm=head_batch_norm,
            normalize_last_layer=normalize_last_layer,
            dtype=self.dtype_policy,
            name="dino_head",
        )
        self.head.build((None, feature_dim(backbone, self.pooling)))
        self.add_teacher("backbone", "head")
        self.center = Center(output_dim, center_momentum, name="center")
        self.dino_loss = DINOLoss(student_temperature)
        self.teacher_schedule = LinearWarmup(
            teacher_temperature,
            warmup_teacher_epochs,
            start=warmup_teacher_temperature,
            warmup_includes_peak=True,
        )
        self.teacher_entropy = keras.metrics.Mean(name="teacher_entropy")
        self.teacher_student_kl = keras.metrics.Mean(name="teacher_student_kl")
        self.center_entropy = keras.metrics.Mean(name="center_entropy")

    @classmethod
    def small(cls, backbone, **kwargs) -> "DINO":
        """DINO for pictures of 32 to 96 pixels, or a few thousand of them.

        Fewer prototypes (1024, so that a batch of 64 uses many of them), a smaller head, views
        without blur and with larger local crops (`"dino_small"`), four of them, a centre that
        averages over as many pictures as the paper's does with its batch of 1024, a teacher that
        follows faster (a short run has few steps), batch normalisation in the head and `tau_t` that
        stays at 0.03: without them a narrow network's targets stay near the uniform distribution.
        A narrow `ViTBackbone` should begin with `initializer="mae"`.

        Args:
            backbone: as for `DINO`.
            **kwargs: arguments of `DINO` that replace these.
        """
        defaults = dict(
            output_dim=1024,
            hidden_dim=512,
            bottleneck_dim=128,
            head_batch_norm=True,
            num_local_views=4,
            teacher_temperature=0.03,
            warmup_teacher_temperature=0.03,
            center_momentum=0.95,
            momentum=0.99,
            base_learning_rate=2e-3,
            recipe="dino_small",
        )
        return cls(backbone, **{**defaults, **kwargs})

    def project(self, views, training=False, backbone=None, head=None):
        """Logits `(V, N, K)` of `V` views, which pass one size after the other.

        Args:
            views: batches `(N, height, width, 3)`, prepared.
            training: whether batch normalisation uses the batch.
            backbone: the student's when `None`.
            head: likewise.
        """
        sizes, features = [tuple(view.shape[1:3]) for view in views], []
        for i, size in enumerate(sizes):
            if i and sizes[i - 1] == size:
                continue
            end = next((j for j in range(i, len(sizes)) if sizes[j] != size), len(sizes))
            crops = ops.concatenate(views[i:end], axis=0) if end - i > 1 else views[i]
            features.append(self.encode(crops, training, backbone))
        features = ops.concatenate(features, axis=0) if len(features) > 1 else features[0]
        logits = (self.head if head is None else head)(features, training=training)
        return ops.reshape(logits, (len(views), -1, self.output_dim))

    def project_teacher(self, views, training=False):
        """The teacher's logits `(V, N, K)`, without gradient."""
        logits = self.project(views, training, self.teacher_backbone, self.teacher_head)
        return ops.stop_gradient(logits)

    def current_teacher_temperature(self):
        """`tau_t` of the batch that was counted last, a float32 scalar."""
        batches = ops.maximum(ops.convert_to_tensor(self.seen_batches) - 1, 0)
        length = ops.convert_to_tensor(self.epoch_batches)
        epoch = ops.where(length > 0, batches // ops.maximum(length, 1), 0)
        return self.teacher_schedule(epoch)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        views = self.make_views(x, training)  # global and local: V x (N, H, W, 3)
        temperature = self.current_teacher_temperature()
        t = self.project_teacher(views[: self.num_global_views], training)  # 2 x N x K
        s = self.project(views, training)  # V x N x K
        targets = self.center.probabilities(t, temperature)
        loss = self.dino_loss(s, targets)
        entropy = mean_entropy(targets)
        self.teacher_entropy.update_state(entropy)
        self.teacher_student_kl.update_state(ops.stop_gradient(loss) - entropy)
        share = ops.softmax(ops.convert_to_tensor(self.center.center) / temperature)
        self.center_entropy.update_state(mean_entropy(share))
        if training:
            self.center.update(t)  # after it was used
        return loss

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """AdamW, each gradient clipped to norm 3, ten epochs of warm-up, cosine to 1e-6.

        Weight decay rises from 0.04 to 0.4 along half a cosine; biases and normalisation are
        left out. The prototypes rest for the first epoch.
        """
        base = self._auto_compile["learning_rate"] or self.base_learning_rate
        return AdamW(
            WarmupCosine(
                scale_learning_rate(base, batch_size),
                total_steps=total_steps,
                warmup_steps=min(10 * steps_per_epoch, total_steps // 10),
                final=1e-6,
                warmup_includes_peak=True,
            ),
            weight_decay=WarmupCosine(0.04, total_steps=total_steps, final=0.4),
            exclude_1d=True,
            frozen_steps={
                "dino_head/weight_[vg]$": min(
                    self.freeze_last_layer * steps_per_epoch, total_steps // 10
                )
            },
            clip_group_norm=3.0,
        )
