"""DINOv2 (Oquab et al. 2023): DINO on whole views, iBOT on hidden patches, KoLeo; iBOT alone."""

import keras
from keras import ops

from keras_ssl.layers.block_masking import BlockMasking
from keras_ssl.layers.dino_head import DINOHead
from keras_ssl.losses.dino import Center, DINOLoss, mean_entropy
from keras_ssl.losses.ibot import IBOTPatchLoss, masked_patches
from keras_ssl.losses.koleo import KoLeoLoss
from keras_ssl.losses.sinkhorn import sinkhorn_knopp
from keras_ssl.models.resolution import at_image_size
from keras_ssl.models.self_distillation import SelfDistillation, options_of
from keras_ssl.training.cross_device import all_reduce_sum
from keras_ssl.training.optimizers import AdamW
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class DINOv2(SelfDistillation):
    """DINOv2: agree with a slow teacher on the picture and on the patches that were hidden.

    Of two global views and some local ones, the student `g` sees the global ones with blocks of
    patches replaced by a mask token, and the local ones whole; the teacher `g'` sees the global
    ones whole. Both end in a softmax over `K` prototypes, for the class token and for every patch:

    `L_dino = sum over t, s != t of H(P_t[class], P_s[class]) / (2 + 2 local views)`

    `L_ibot = mean over pictures, mean over masked patches j of H(P_t[j], P_s[j])`

    `L_koleo = sum over both global views of KoLeo(g[class])`

    `loss = dino_weight L_dino + ibot_weight L_ibot + koleo_weight L_koleo`

    `P_t` is made by Sinkhorn-Knopp over the batch, or by a running centre and a softmax, each with
    the temperature `tau_t`, which rises linearly over the first epochs. The teacher's weights are
    the moving average of the student's. Centres, counters and schedules are saved with the model.

    iBOT (Zhou et al. 2021) is `DINOv2(backbone, output_dim=8192, koleo_weight=0,
    centering="centering", layer_decay=1, patch_embedding_multiplier=1, momentum=0.996)`. For
    pictures of 32 to 96 pixels, or a few thousand of them, see `DINOv2.small`; for a last stage at
    a higher resolution, `at_image_size`.

    Metrics: the terms of the loss with their weights (`dino_global`, `dino_local`, `ibot`,
    `koleo`), `teacher_entropy` and `teacher_student_kl`, both of the class token and in nats (a
    divergence near 0 is collapse).

    Args:
        backbone: a `ViTBackbone` with `use_mask_token=True` and a class token.
        output_dim: number of prototypes `K`.
        hidden_dim: hidden width of the head.
        bottleneck_dim: width of the unit vector that is compared with the prototypes.
        num_head_layers: linear layers of the head's MLP.
        separate_head: give the patches a head of their own (the paper's larger models).
        ibot_output_dim: its prototypes; as `output_dim` when `None`.
        ibot_hidden_dim: its hidden width; as `hidden_dim` when `None`.
        ibot_bottleneck_dim: its bottleneck; as `bottleneck_dim` when `None`.
        ibot_num_head_layers: its linear layers; as `num_head_layers` when `None`.
        dino_weight, ibot_weight, koleo_weight: weights of the three losses.
        centering: `"sinkhorn_knopp"` or `"centering"`.
        num_local_views: local crops, with `augmenter="auto"`; `None` for the recipe's 8.
        student_temperature: of the student's softmax.
        teacher_temperature: `tau_t` after the warm-up.
        warmup_teacher_temperature: `tau_t` at the first step.
        warmup_teacher_epochs: length of the warm-up; an epoch is that of the first `fit`.
        center_momentum: of the centres.
        mask_ratio: smallest and largest share of masked patches in a masked view.
        mask_probability: share of the global views that are masked.
        momentum: of the teacher at the start.
        momentum_schedule: `"cosine"` or `"constant"`.
        freeze_last_layer: epochs during which the prototypes' learning rate is 0 (at most a tenth
            of all).
        layer_decay: factor of the learning rate from layer to layer, from the last one down.
        patch_embedding_multiplier: of the patch projection's learning rate, on top of it.
        base_learning_rate: of the default optimizer, for a batch of 1024.
        clip_norm: joint norm to which the gradients of each network (backbone, heads) are clipped;
            `None` for no clipping.
        predict_with: `"teacher"`, as the paper evaluates, or `"student"`.
        augmenter: makes the views, two global ones first, from images in `[0, 255]`; `"auto"` is
            the paper's at the backbone's image size. With `None` the dataset yields a tuple of
            batches of views.
        preprocessor: for `predict`; `"auto"` resizes to the backbone's size and normalises.
        recipe: of the `"auto"` views: `"dinov2"` or `"dino_small"`.
        seed: int, of the views and masks.
        name: name of the model.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4, use_mask_token=True
    )
    model = keras_ssl.models.DINOv2.small(backbone)
    images = np.random.randint(0, 256, (32, 32, 32, 3), "uint8")
    model.fit(images, batch_size=16, epochs=2)
    embeddings = model.predict(images)  # (32, 128)
    ```

    Reference:
        Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023, sections 4
        and 5; facebookresearch/dinov2, ssl_meta_arch.py and ssl_default_config.yaml.
    """

    def __init__(
        self,
        backbone,
        output_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_head_layers: int = 3,
        separate_head: bool = False,
        ibot_output_dim: int | None = None,
        ibot_hidden_dim: int | None = None,
        ibot_bottleneck_dim: int | None = None,
        ibot_num_head_layers: int | None = None,
        dino_weight: float = 1.0,
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        centering: str = "sinkhorn_knopp",
        num_local_views: int | None = None,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 30,
        center_momentum: float = 0.9,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_probability: float = 0.5,
        momentum: float = 0.992,
        momentum_schedule: str = "cosine",
        freeze_last_layer: int = 1,
        layer_decay: float = 0.9,
        patch_embedding_multiplier: float = 0.2,
        base_learning_rate: float = 4e-3,
        clip_norm: float | None = 3.0,
        predict_with: str = "teacher",
        augmenter="auto",
        preprocessor="auto",
        recipe: str = "dinov2",
        seed: int | None = None,
        name: str | None = None,
    ):
        options = options_of(locals())
        if centering not in ("sinkhorn_knopp", "centering"):
            raise ValueError(
                '`centering` must be one of "sinkhorn_knopp" and "centering". '
                f"Received: centering={centering!r}"
            )
        if not mask_probability > 0:
            raise ValueError(
                "`mask_probability` must be greater than 0; keras_ssl.models.DINO masks nothing. "
                f"Received: mask_probability={mask_probability}"
            )
        if not getattr(backbone, "use_class_token", False) or backbone.mask_token is None:
            raise ValueError(
                "DINOv2 needs a ViTBackbone with a class token and a mask token: pass "
                f"use_mask_token=True. Received: backbone={backbone!r}"
            )
        super().__init__(
            backbone,
            options,
            recipe,
            num_local_views,
            augmenter,
            seed,
            pooling="token",
            preprocessor=preprocessor,
            name=name,
        )
        dims = output_dim, hidden_dim, bottleneck_dim, num_head_layers
        self.dino_head = self._make_head("dino_head", *dims)
        self.ibot_head = self.teacher_ibot_head = None
        if separate_head:
            given = ibot_output_dim, ibot_hidden_dim, ibot_bottleneck_dim, ibot_num_head_layers
            dims = tuple(own or dim for own, dim in zip(given, dims, strict=True))
            self.ibot_head = self._make_head("ibot_head", *dims)
        networks = ("backbone", "dino_head", "ibot_head")[: 3 if separate_head else 2]
        self.add_teacher(*networks)
        self.dino_center = Center(output_dim, center_momentum, name="dino_center")
        self.ibot_center = Center(dims[0], center_momentum, name="ibot_center")
        self.masking = BlockMasking(
            backbone.patch_size, mask_ratio, mask_probability, seed=seed, name="masking"
        )
        self.dino_loss = DINOLoss(student_temperature, reduction="sum")
        self.ibot_loss = IBOTPatchLoss(student_temperature)
        self.koleo_loss = KoLeoLoss()
        names = ("dino_global", "dino_local", "ibot", "koleo")
        names = (*names, "teacher_entropy", "teacher_student_kl")
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}

    def _make_head(self, name, output_dim, hidden_dim, bottleneck_dim, num_layers):
        head = DINOHead(
            output_dim,
            hidden_dim,
            bottleneck_dim,
            num_layers,
            normalize_last_layer=False,
            dtype=self.dtype_policy,
            name=name,
        )
        head.build((None, self.backbone.hidden_dim))
        return head

    @classmethod
    def small(cls, backbone, **kwargs) -> "DINOv2":
        """DINOv2 for pictures of 32 to 96 pixels, or a few thousand of them.

        Fewer prototypes (1024) and a smaller head, four local views without blur
        (`"dino_small"`), a teacher that follows faster (a short run has few steps), `tau_t` that
        stays at 0.04, and one learning rate for all layers.

        Args:
            backbone: as for `DINOv2`.
            **kwargs: arguments of `DINOv2` that replace these.
        """
        defaults = dict(
            output_dim=1024,
            hidden_dim=512,
            bottleneck_dim=128,
            num_local_views=4,
            teacher_temperature=0.04,
            momentum=0.99,
            layer_decay=1.0,
            patch_embedding_multiplier=1.0,
            recipe="dino_small",
        )
        return cls(backbone, **{**defaults, **kwargs})

    at_image_size = at_image_size

    def draw_masks(self, views, training=False):
        """Which patches the student does not see, bool `(2N, P)`."""
        return self.masking(views, training=training)

    def encode_patches(self, views, training=False, backbone=None, masks=None):
        """Class tokens `(V N, D)` and patches `(V N, P, D)` of views of one size."""
        backbone = self.backbone if backbone is None else backbone
        tokens = backbone(views, patch_mask=masks, training=training)
        return tokens[:, 0], tokens[:, backbone.num_prefix_tokens :]

    def project(self, tokens, patches, training=False, teacher=False):
        """Logits of class tokens and of picked patches."""
        heads = [self.dino_head, self.ibot_head]
        if teacher:
            heads = [self.teacher_dino_head, self.teacher_ibot_head]
        if heads[1] is not None:
            return heads[0](tokens, training=training), heads[1](patches, training=training)
        count = ops.shape(tokens)[0]
        logits = heads[0](ops.concatenate([tokens, patches], axis=0), training=training)
        return logits[:count], logits[count:]

    def targets(self, token_logits, patch_logits, valid):
        """The teacher's probabilities; `valid` are the rows that stand for a masked patch."""
        tau = self.current_teacher_temperature()
        if self.centering == "sinkhorn_knopp":
            patches = sinkhorn_knopp(patch_logits, tau, mask=valid)
            return sinkhorn_knopp(token_logits, tau), patches
        patches = self.ibot_center.probabilities(patch_logits, tau)
        return self.dino_center.probabilities(token_logits, tau), patches

    def current_teacher_temperature(self):
        """`tau_t` of the batch that was counted last, a float32 scalar."""
        step = ops.maximum(ops.convert_to_tensor(self.seen_batches) - 1, 0)
        length = ops.convert_to_tensor(self.epoch_batches) * self.warmup_teacher_epochs
        share = ops.cast(step, "float32") / ops.cast(ops.maximum(length - 1, 1), "float32")
        share = ops.where(length > 0, ops.minimum(share, 1.0), ops.ones_like(share))
        start = self.warmup_teacher_temperature
        return start + (self.teacher_temperature - start) * share

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        views = self.make_views(x, training)
        local = len(views) - 2
        x_global = ops.concatenate(views[:2], axis=0)  # 2N, view after view
        masks = self.draw_masks(x_global, training)  # 2N x P
        places, weights = masked_patches(masks, self.masking.limit(x_global))  # M, M
        valid = weights > 0

        def pick(patches):  # 2N x P x D to M x D
            return ops.take(ops.reshape(patches, (-1, patches.shape[-1])), places, axis=0)

        tokens, patches = self.encode_patches(x_global, backbone=self.teacher_backbone)
        t_token, t_patch = self.project(tokens, pick(patches), training, teacher=True)
        p_token, p_patch = self.targets(t_token, t_patch, valid)
        p_token = ops.reshape(p_token, (2, -1, self.output_dim))  # 2 x N x K

        tokens, patches = self.encode_patches(x_global, training, masks=masks)
        koleo = sum(self.koleo_loss(view) for view in ops.split(tokens, 2, axis=0))
        if local:
            x_local = ops.concatenate(views[2:], axis=0)
            tokens = ops.concatenate([tokens, self.encode_patches(x_local, training)[0]], axis=0)
        s_token, s_patch = self.project(tokens, pick(patches), training)
        s_token = ops.reshape(s_token, (2 + local, -1, self.output_dim))  # V x N x K

        pairs = 2 + max(2 * local, 1)
        terms = {
            "dino_global": self.dino_weight / pairs * self.dino_loss(s_token[:2], p_token),
            "ibot": self.ibot_weight * self.ibot_loss(s_patch, p_patch, weights=weights),
            "koleo": self.koleo_weight * koleo,
        }
        if local:
            dino = self.dino_loss(s_token[2:], p_token, exclude_same=False)
            terms["dino_local"] = self.dino_weight / pairs * dino
        self._track(terms, p_token, s_token)
        if training and self.centering == "centering":  # after they were used
            self.dino_center.update(t_token)
            valid = ops.cast(valid, "float32")[:, None]
            count = all_reduce_sum(ops.sum(valid))
            total = ops.sum(ops.cast(t_patch, "float32") * valid, axis=0, keepdims=True)
            total = all_reduce_sum(total)
            center = ops.convert_to_tensor(self.ibot_center.center)
            mean = ops.where(count > 0, total / ops.maximum(count, 1.0), center)
            self.ibot_center.update(mean)
        return sum(terms.values())

    def _track(self, terms, p_token, s_token):
        for name, value in terms.items():
            self.trackers[name].update_state(value)
        entropy = mean_entropy(p_token)
        mean = DINOLoss(self.student_temperature)(ops.stop_gradient(s_token), p_token)
        self.trackers["teacher_entropy"].update_state(entropy)
        self.trackers["teacher_student_kl"].update_state(mean - entropy)

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """AdamW with layer-wise learning rates, ten epochs of warm-up, cosine to 1e-6.

        Weight decay rises from 0.04 to 0.4 along half a cosine; biases, normalisation and layer
        scales are left out. The prototypes' learning rate is 0 for the first epoch. The gradients
        of backbone and heads are clipped apart, each network's by its joint norm.
        """
        base = (self._auto_compile or {}).get("learning_rate") or self.base_learning_rate
        decay = self.backbone.layer_decay_multipliers(self.layer_decay)
        lowest = self.layer_decay ** (self.backbone.num_layers + 1)
        freeze = min(self.freeze_last_layer * steps_per_epoch, total_steps // 10)
        return AdamW(
            WarmupCosine(
                scale_learning_rate(base, batch_size, 1024, "sqrt"),
                total_steps=total_steps,
                warmup_steps=min(10 * steps_per_epoch, total_steps // 10),
                final=1e-6,
                warmup_includes_peak=True,
            ),
            weight_decay=WarmupCosine(0.04, total_steps=total_steps, final=0.4),
            exclude_1d=True,
            learning_rate_multipliers={
                "(^|/)patch_embedding/": lowest * self.patch_embedding_multiplier,
                **decay,
                # 0, then 1: the moments accumulate meanwhile.
                "_head/weight_[vg]$": WarmupCosine(
                    1.0, total_steps, final=1.0, freeze_steps=freeze
                ),
            },
            clip_group_norm=self.clip_norm,
            clip_groups=["(^|/)dino_head/", "(^|/)ibot_head/", ""] if self.clip_norm else None,
        )

    def get_config(self):
        config = super().get_config()
        del config["pooling"]  # the class token
        return config
