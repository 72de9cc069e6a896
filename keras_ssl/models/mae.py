"""MAE: masked autoencoders (He et al. 2021), https://arxiv.org/abs/2111.06377."""

import math

import keras
import numpy as np
from keras import ops

from keras_ssl.layers.patches import gather_patches, patchify, unpatchify
from keras_ssl.layers.position_embedding import sincos_position_embedding
from keras_ssl.layers.transformer import TransformerBlock
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.training.optimizers import AdamW
from keras_ssl.training.schedules import WarmupCosine, scale_learning_rate


@keras.saving.register_keras_serializable(package="keras_ssl")
class MAE(SSLTask):
    """Masked autoencoder: hides most patches of a picture and learns to paint them.

    The encoder sees the visible patches only and never a mask token; a light decoder gets its
    output, mask tokens and all positions, and predicts the pixels `x` of every patch. The loss is
    the mean squared error on the hidden patches `M`:

    `loss = 1 / |M| * sum_{i in M} mean((pred_i - target_i) ** 2)`

    where `target_i` is the normalised picture's patch, or with `normalize_targets` the patch after
    its own mean is subtracted and its own standard deviation divided out.

    Args:
        backbone: a `keras_ssl.backbones.ViTBackbone` without registers or stochastic depth,
            with `initializer="mae"` and `position_embedding="sincos"` in the paper.
        decoder_hidden_dim: width of the decoder; a multiple of 4 and of `decoder_num_heads`. Its
            blocks have the encoder's epsilon, activation and `qkv_bias`.
        decoder_num_layers: blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        decoder_mlp_ratio: hidden width of the decoder's MLP over its width.
        mask_ratio: share of patches that are hidden, in `[0, 1)`; `int(N * (1 - ratio))` are kept.
        normalize_targets: normalise the pixels of each target patch.
        pooling: `"token"` or `"mean"`, for `predict`.
        augmenter: makes the training picture from a batch of images in `[0, 255]`. `"auto"` is the
            paper's random resized crop and flip. With `None` images are used as they are, and
            a dict `{"images": ..., "noise": (batch, patches)}` may give the masking noise.
        preprocessor: for `predict` and `reconstruct`; `"auto"` resizes to the backbone's size and
            normalises as the augmenter does.
        seed: int, of masks and views.
        base_learning_rate: of the default optimizer, for a batch of 256.
        name: name of the model.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4,
        position_embedding="sincos", initializer="mae",
    )
    model = keras_ssl.models.MAE.small(backbone)  # MAE(backbone) has the paper's decoder
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    model.fit(images, batch_size=32, epochs=2)
    embeddings = model.predict(images)  # (64, 128)
    picture, masked, painted = model.reconstruct(images[:4])
    ```

    Reference:
        He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, sections 3 and 4.
    """

    def __init__(
        self,
        backbone,
        decoder_hidden_dim: int = 512,
        decoder_num_layers: int = 8,
        decoder_num_heads: int = 16,
        decoder_mlp_ratio: float = 4.0,
        mask_ratio: float = 0.75,
        normalize_targets: bool = False,
        pooling: str | None = None,
        augmenter="auto",
        preprocessor="auto",
        seed: int | None = None,
        base_learning_rate: float = 1.5e-4,
        name: str | None = None,
    ):
        if not hasattr(backbone, "patch_embedding"):
            raise ValueError(
                "MAE encodes visible patches only, which needs a keras_ssl.backbones.ViTBackbone. "
                f"Received: backbone={backbone!r}"
            )
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must lie in [0, 1). Received: mask_ratio={mask_ratio}")
        num_patches = backbone.num_patches
        num_visible = int(num_patches * (1 - mask_ratio))
        if num_visible < 1:
            raise ValueError(
                f"mask_ratio={mask_ratio} leaves none of {num_patches} patches visible. Lower "
                "it, or take smaller patches."
            )
        super().__init__(
            backbone,
            pooling=pooling,
            augmenter=augmenter,
            preprocessor=preprocessor,
            seed=seed,
            name=name,
            recipe="mae",
        )
        self.decoder_hidden_dim = decoder_hidden_dim
        self.decoder_num_layers = decoder_num_layers
        self.decoder_num_heads = decoder_num_heads
        self.decoder_mlp_ratio = decoder_mlp_ratio
        self.mask_ratio = mask_ratio
        self.normalize_targets = normalize_targets
        self.num_visible = num_visible
        self.base_learning_rate = base_learning_rate

        # === Decoder ===
        dim, policy = decoder_hidden_dim, self.dtype_policy
        patch_dim = backbone.patch_size**2 * backbone.image_shape[-1]
        epsilon = backbone.layer_norm_epsilon
        self.decoder_embedding = keras.layers.Dense(dim, dtype=policy, name="decoder_embedding")
        self.decoder_blocks = []
        for i in range(decoder_num_layers):
            block = TransformerBlock(
                decoder_num_heads,
                int(dim * decoder_mlp_ratio),
                activation=backbone.activation,
                qkv_bias=backbone.qkv_bias,
                layer_norm_epsilon=epsilon,
                dtype=policy,
                name=f"decoder_block_{i}",
            )
            block.build((None, None, dim))
            self.decoder_blocks.append(block)
        self.decoder_norm = keras.layers.LayerNormalization(
            epsilon=epsilon, dtype=policy, name="decoder_norm"
        )
        self.decoder_prediction = keras.layers.Dense(
            patch_dim, dtype=policy, name="decoder_prediction"
        )
        self.decoder_embedding.build((None, None, backbone.hidden_dim))
        for layer in (self.decoder_norm, self.decoder_prediction):
            layer.build((None, None, dim))
        self.mask_token = self.add_weight(
            shape=(1, 1, dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="mask_token",
        )
        rows, columns = backbone.grid

        def table(shape, dtype=None):
            table = sincos_position_embedding(dim, rows, columns)
            table = np.concatenate([np.zeros((backbone.num_prefix_tokens, dim)), table])
            return ops.convert_to_tensor(table[None], dtype)

        self.decoder_position_embedding = self.add_weight(
            shape=(1, backbone.num_prefix_tokens + rows * columns, dim),
            initializer=table,
            trainable=False,
            name="decoder_position_embedding",
        )

    @classmethod
    def small(cls, backbone, **kwargs) -> "MAE":
        """MAE for pictures of 32 to 96 pixels, or a small encoder.

        The paper's decoder (512 wide, 8 blocks) is light beside a ViT-Large; beside a network of a
        million parameters it is most of the work. Here it has half the encoder's width, 2 blocks
        and as many heads; `predict` averages the patches, which is better without fine-tuning; and
        the learning rate is 1e-3 for a batch of 256, for runs of a few thousand steps.

        Args:
            backbone: as for `MAE`.
            **kwargs: arguments of `MAE` that replace these.
        """
        if not hasattr(backbone, "num_heads"):
            return cls(backbone, **kwargs)  # which says what it needs
        step = math.lcm(4, backbone.num_heads)
        defaults = dict(
            decoder_hidden_dim=max(step, backbone.hidden_dim // 2 // step * step),
            decoder_num_layers=2,
            decoder_num_heads=backbone.num_heads,
            pooling="mean",
            base_learning_rate=1e-3,
        )
        return cls(backbone, **{**defaults, **kwargs})

    # === The method ===

    def mask_patches(self, noise):
        """Random masking by sorting noise (section 3, "Simple implementation").

        Args:
            noise: float `(batch, patches)`; the patches with the least noise stay visible.

        Returns:
            `(visible_indices, mask, restore_indices)`: int `(batch, visible)`, float
            `(batch, patches)` with 1 for hidden, int `(batch, patches)` that undoes the shuffle.
        """
        shuffle = ops.argsort(noise, axis=1)
        restore_indices = ops.argsort(shuffle, axis=1)
        mask = ops.cast(restore_indices >= self.num_visible, "float32")
        return shuffle[:, : self.num_visible], mask, restore_indices

    def encode_visible(self, images, visible_indices, training=False):
        """Encodes visible patches: `(batch, prefix + visible, hidden_dim)`."""
        return self.backbone(images, visible_indices=visible_indices, training=training)

    def decode(self, latent, restore_indices):
        """Predicts the pixels of every patch: `(batch, patches, patch_dim)`.

        Args:
            latent: output of `encode_visible`.
            restore_indices: from `mask_patches`.
        """
        prefix = self.backbone.num_prefix_tokens
        x = self.decoder_embedding(latent)
        batch, dim = ops.shape(x)[0], self.decoder_hidden_dim
        mask_token = ops.cast(self.mask_token, x.dtype)
        # After the visible tokens, one mask token stands for all the hidden ones.
        tokens = ops.concatenate([x, ops.broadcast_to(mask_token, (batch, 1, dim))], axis=1)
        indices = ops.minimum(restore_indices, self.num_visible) + prefix
        x = ops.concatenate([x[:, :prefix], gather_patches(tokens, indices)], axis=1)
        x = x + ops.cast(self.decoder_position_embedding, x.dtype)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_prediction(self.decoder_norm(x))[:, prefix:]

    def patchify(self, images):
        """Pictures to patches `(batch, patches, patch_dim)`: row, column, channel."""
        return patchify(images, self.backbone.patch_size)

    def unpatchify(self, patches):
        """Patches to pictures; the inverse of `patchify`."""
        return unpatchify(patches, self.backbone.patch_size, self.backbone.grid)

    def reconstruction_loss(self, images, prediction, mask):
        """Mean squared error over the hidden patches of the whole batch; a scalar."""
        target = self.patchify(ops.cast(images, "float32"))
        if self.normalize_targets:
            mean, std = self._patch_statistics(target)
            target = (target - mean) / std
        error = ops.mean(ops.square(ops.cast(prediction, "float32") - target), axis=-1)
        # With nothing hidden there is nothing to learn: zero rather than 0 / 0.
        return ops.sum(error * mask) / ops.maximum(ops.sum(mask), 1.0)

    @staticmethod
    def _patch_statistics(target):
        """Mean and standard deviation of each patch; unbiased, as in the official code."""
        n = target.shape[-1]
        mean = ops.mean(target, axis=-1, keepdims=True)
        variance = ops.sum(ops.square(target - mean), axis=-1, keepdims=True) / (n - 1)
        return mean, ops.sqrt(variance + 1e-6)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        noise = x["noise"] if isinstance(x, dict) and "noise" in x else None
        (images,) = self.make_views(x["images"] if isinstance(x, dict) else x, training)
        if noise is None:
            shape = (ops.shape(images)[0], self.backbone.num_patches)
            noise = self.random.uniform(shape, advance=training)
        visible_indices, mask, restore_indices = self.mask_patches(noise)
        latent = self.encode_visible(images, visible_indices, training=training)
        prediction = self.decode(latent, restore_indices)
        return self.reconstruction_loss(images, prediction, mask)

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """AdamW(0.9, 0.95), weight decay 0.05, linear warm-up for a twentieth, cosine to zero.

        `base_learning_rate` is scaled linearly with the batch (table 8: 1.5e-4 for 256).
        """
        base = self._auto_compile["learning_rate"] or self.base_learning_rate
        schedule = WarmupCosine(
            scale_learning_rate(base, batch_size),
            total_steps=total_steps,
            warmup_steps=min(40 * steps_per_epoch, total_steps // 20),
        )
        return AdamW(
            schedule,
            weight_decay=0.05,
            beta_1=0.9,
            beta_2=0.95,
            # One-dimensional parameters are not decayed; the tokens are, as in the official code.
            exclude_from_weight_decay=["bias$", "gamma$", "beta$"],
        )

    # === Looking at it ===

    def reconstruct(self, images, noise=None, batch_size: int = 32, seed: int = 0):
        """Hides patches of pictures and paints them.

        Args:
            images: `(N, height, width, channels)`, uint8 or float in `[0, 255]` (or ready for
                the backbone, when the model has no preprocessor).
            noise: `(N, patches)`, to choose what is hidden; random when `None`.
            batch_size: pictures at a time.
            seed: of the random noise.

        Returns:
            `(picture, masked, reconstruction)`, float32 `(N, H, W, C)`, in `[0, 1]` when the
            model has a preprocessor: the input, the input with hidden patches in grey, and visible
            patches with the painted ones between them. With `normalize_targets` the
            painted patches get back the true patch's mean and deviation, as in the paper's
            figures.
        """
        images = np.asarray(images)
        if noise is None:
            rng = np.random.default_rng(seed)
            noise = rng.random((len(images), self.backbone.num_patches), dtype="float32")
        parts = [
            self._reconstruct_batch(images[i : i + batch_size], noise[i : i + batch_size])
            for i in range(0, len(images), batch_size)
        ]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _reconstruct_batch(self, images, noise):
        x = self.preprocess(ops.convert_to_tensor(images))
        visible_indices, mask, restore_indices = self.mask_patches(ops.convert_to_tensor(noise))
        prediction = self.decode(self.encode_visible(x, visible_indices), restore_indices)
        prediction = ops.cast(prediction, "float32")
        target = self.patchify(ops.cast(x, "float32"))
        if self.normalize_targets:
            mean, std = self._patch_statistics(target)
            prediction = prediction * std + mean
        hidden = mask[..., None]
        pictures = (target, target * (1 - hidden), target * (1 - hidden) + prediction * hidden)
        pictures = [ops.convert_to_numpy(self.unpatchify(p)) for p in pictures]
        if self.preprocessor is not None:
            converter = self.preprocessor.image_converter
            scale, offset = (np.asarray(v, "float32") for v in (converter.scale, converter.offset))
            pictures = [np.clip((p - offset) / scale / 255.0, 0, 1) for p in pictures]
        return pictures

    def get_config(self):
        return {
            **super().get_config(),
            "decoder_hidden_dim": self.decoder_hidden_dim,
            "decoder_num_layers": self.decoder_num_layers,
            "decoder_num_heads": self.decoder_num_heads,
            "decoder_mlp_ratio": self.decoder_mlp_ratio,
            "mask_ratio": self.mask_ratio,
            "normalize_targets": self.normalize_targets,
            "base_learning_rate": self.base_learning_rate,
        }
