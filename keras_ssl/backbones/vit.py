"""One vision transformer for every method: MAE, MoCo v3, DINO, DINOv2 and what follows them."""

import functools

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_ssl.layers.patches import gather_patches, patchify
from keras_ssl.layers.position_embedding import (
    grid_interpolation_matrix,
    rotary_angles,
    sincos_position_embedding,
)
from keras_ssl.layers.transformer import DropPathStream, TransformerBlock
from keras_ssl.training.subclassed import SubclassedModelType
from keras_ssl.weight_files import load_preset

# hidden_dim, num_layers, num_heads, mlp_ratio, and where the size was published.
VIT_SIZES = {
    # Ours: fits a CPU and 32 to 96 px pictures.
    "vit_nano": dict(hidden_dim=128, num_layers=6, num_heads=4),
    # Touvron et al. 2021 (DeiT), table 1.
    "vit_tiny": dict(hidden_dim=192, num_layers=12, num_heads=3),
    "vit_small": dict(hidden_dim=384, num_layers=12, num_heads=6),
    # Dosovitskiy et al. 2021 (ViT), table 1.
    "vit_base": dict(hidden_dim=768, num_layers=12, num_heads=12),
    "vit_large": dict(hidden_dim=1024, num_layers=24, num_heads=16),
    "vit_huge": dict(hidden_dim=1280, num_layers=32, num_heads=16),
    # Oquab et al. 2023 (DINOv2), table 17; its hub model fuses a SwiGLU of this width.
    "vit_giant2": dict(hidden_dim=1536, num_layers=40, num_heads=24, ffn="swiglu"),
}

POSITION_EMBEDDINGS = ("learned", "sincos", "sincos_moco_v3", "rotary")
INITIALIZERS = ("mae", "truncated_normal", "dinov2", "moco_v3", "clip")


@keras.saving.register_keras_serializable(package="keras_ssl")
class ViTBackbone(keras_hub.models.Backbone, metaclass=SubclassedModelType):
    """The vision transformer that every method here stands on.

    Patches are projected, positions are added, prefix tokens (class, registers) are put in front,
    and pre-norm blocks follow:

    `z = [class; registers; E patches + position]`, `z = block_l(z)`, output `LayerNorm(z)`.

    Any image size whose sides are multiples of `patch_size` is accepted: the positions are
    interpolated bicubically, exactly as in the official codes. With `visible_indices` only those
    patches are projected and encoded (MAE's encoder); with `patch_mask` masked patches are
    replaced by the mask token before the positions are added (iBOT, DINOv2).

    Args:
        image_shape: `(height, width, channels)` that the positions are made for, in pixels.
        patch_size: side of a patch in pixels; divides height and width.
        hidden_dim: width of the tokens.
        num_layers: number of blocks.
        num_heads: attention heads per block; divides `hidden_dim`.
        mlp_ratio: hidden width of the MLP over `hidden_dim`. A `"swiglu"` takes two thirds of
            it, rounded up to a multiple of 8, as DINOv2 does.
        mlp_dim: hidden width of the MLP (of each half of a `"swiglu"`) given outright; `None`
            takes `mlp_ratio`.
        use_class_token: put a learned token in front.
        num_register_tokens: learned tokens between class token and patches (Darcet et al. 2024).
        use_mask_token: have a mask token, so that `patch_mask` may be passed.
        position_embedding: `"learned"`, `"sincos"` (fixed, MAE's layout), `"sincos_moco_v3"`
            (fixed, MoCo v3's layout) or `"rotary"` (DINOv3: queries and keys of patches are turned
            in every block, and nothing is added to the patches).
        rotary_theta: with `"rotary"`: base of the frequencies.
        interpolation_offset: added to the new grid size when positions are interpolated: 0.1 in
            DINO and in DINOv2 without registers, else 0.
        interpolation_antialias: antialiased interpolation (DINOv2 with registers).
        use_pre_norm: layer normalisation before the first block (CLIP).
        use_final_norm: layer normalisation after the last block.
        patch_bias: bias on the patch projection; CLIP has none.
        qkv_bias: bias on queries, keys and values.
        layer_scale_init: start value of layer scale, or `None` for none.
        ffn: `"mlp"` or `"swiglu"`.
        activation: of the `"mlp"`: `"gelu"` (exact, the papers'), `"gelu_tanh"`, `"quick_gelu"`,
            `"relu"` or `"silu"`.
        layer_norm_epsilon: added to the variance in every layer normalisation.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0.
        drop_path_uniform: the same rate in every block (DINOv2).
        drop_path_subset: in blocks with a rate above 0.1, drop a fixed share of the batch and
            compute the branches of the others only (DINOv2).
        rematerialize: recompute every block in the backward pass instead of keeping its
            activations: slower, and memory grows with one block instead of all.
        freeze_patch_projection: keep the patch projection at its random start (MoCo v3).
        initializer: `"mae"` (Xavier), `"truncated_normal"` (0.02; ViT, DINO), `"dinov2"` (the
            same, with tokens that start at 1e-6), `"moco_v3"` or `"clip"`.
        dtype: dtype policy, e.g. `"float32"`, `"mixed_bfloat16"`, `"mixed_float16"`.
        name: name of the model.

    Call arguments:
        images: `(batch, height, width, channels)`, float, normalised.
        visible_indices: int `(batch, visible)`: encode these patches only.
        patch_mask: bool or 0/1 `(batch, patches)`: these become mask tokens.
        training: whether stochastic depth drops.
        return_attention: return a dict with `"attention"`, one `(batch, heads, tokens, tokens)`
            for every block.
        return_intermediate: return a dict with `"intermediate"`, the output of every block before
            the final normalisation.

    Returns:
        Tokens `(batch, prefix + patches, hidden_dim)`: class token, registers, patches in reading
        order; or, where a `return_` flag is set, a dict with `"tokens"` and what was asked for.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_tiny", image_shape=(96, 96, 3), patch_size=8
    )
    tokens = backbone(np.random.rand(2, 96, 96, 3))
    tokens.shape  # (2, 1 + 144, 192)
    ```

    Reference:
        Dosovitskiy et al., An Image is Worth 16x16 Words, 2021; and the papers of the methods.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        patch_size: int = 16,
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        mlp_dim: int | None = None,
        use_class_token: bool = True,
        num_register_tokens: int = 0,
        use_mask_token: bool = False,
        position_embedding: str = "learned",
        rotary_theta: float = 100.0,
        interpolation_offset: float = 0.0,
        interpolation_antialias: bool = False,
        use_pre_norm: bool = False,
        use_final_norm: bool = True,
        patch_bias: bool = True,
        qkv_bias: bool = True,
        layer_scale_init: float | None = None,
        ffn: str = "mlp",
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-6,
        drop_path_rate: float = 0.0,
        drop_path_uniform: bool = False,
        drop_path_subset: bool = False,
        rematerialize: bool = False,
        freeze_patch_projection: bool = False,
        initializer: str = "truncated_normal",
        dtype=None,
        name: str | None = None,
        **kwargs,
    ):
        image_shape = tuple(image_shape)
        if len(image_shape) != 3 or not all(isinstance(s, int) and s > 0 for s in image_shape):
            raise ValueError(
                "`image_shape` must be three positive integers (height, width, channels). "
                f"Received: image_shape={image_shape}"
            )
        if position_embedding not in POSITION_EMBEDDINGS:
            raise ValueError(
                f"`position_embedding` must be one of {POSITION_EMBEDDINGS}. "
                f"Received: position_embedding={position_embedding!r}"
            )
        if initializer not in INITIALIZERS:
            raise ValueError(
                f"`initializer` must be one of {INITIALIZERS}. "
                f"Received: initializer={initializer!r}"
            )
        if hidden_dim % num_heads:
            raise ValueError(
                "`num_heads` must divide `hidden_dim`. "
                f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}"
            )
        super().__init__(dtype=dtype, name=name or "vit_backbone", **kwargs)
        self.image_shape = image_shape
        self.patch_size = patch_size
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.mlp_dim = mlp_dim
        self.use_class_token = use_class_token
        self.num_register_tokens = num_register_tokens
        self.use_mask_token = use_mask_token
        self.position_embedding_type = position_embedding
        self.rotary_theta = rotary_theta
        self.interpolation_offset = interpolation_offset
        self.interpolation_antialias = interpolation_antialias
        self.use_pre_norm = use_pre_norm
        self.use_final_norm = use_final_norm
        self.patch_bias = patch_bias
        self.qkv_bias = qkv_bias
        self.layer_scale_init = layer_scale_init
        self.ffn = ffn
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.drop_path_rate = drop_path_rate
        self.drop_path_uniform = drop_path_uniform
        self.drop_path_subset = drop_path_subset
        self.rematerialize = rematerialize
        self.freeze_patch_projection = freeze_patch_projection
        self.initializer = initializer
        self.grid = self.grid_of(*image_shape[:2])

        # === Layers ===
        init = _initializers(initializer, hidden_dim, patch_size**2 * image_shape[2])
        policy = self.dtype_policy
        self.patch_embedding = keras.layers.Dense(
            hidden_dim,
            use_bias=patch_bias,
            kernel_initializer=init["patch_kernel"],
            bias_initializer=init["patch_bias"],
            dtype=policy,
            name="patch_embedding",
        )
        self.patch_embedding.build((None, None, patch_size**2 * image_shape[2]))
        self.patch_embedding.trainable = not freeze_patch_projection
        if mlp_dim is None:
            mlp_dim = int(hidden_dim * mlp_ratio)
            if ffn == "swiglu":
                mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
        self.blocks = []
        for i in range(num_layers):
            block = TransformerBlock(
                num_heads,
                mlp_dim,
                ffn=ffn,
                activation=activation,
                qkv_bias=qkv_bias,
                layer_scale_init=layer_scale_init,
                drop_path_rate=drop_path_rate
                * (1 if drop_path_uniform else i / max(1, num_layers - 1)),
                drop_path_subset=drop_path_subset,
                layer_norm_epsilon=layer_norm_epsilon,
                qkv_initializer=init["qkv"],
                kernel_initializer=init["kernel"],
                dtype=policy,
                name=f"block_{i}",
            )
            block.build((None, None, hidden_dim))
            self.blocks.append(block)
        self.pre_norm = self.norm = None
        if use_pre_norm:
            self.pre_norm = keras.layers.LayerNormalization(
                epsilon=layer_norm_epsilon, dtype=policy, name="pre_norm"
            )
            self.pre_norm.build((None, None, hidden_dim))
        if use_final_norm:
            self.norm = keras.layers.LayerNormalization(
                epsilon=layer_norm_epsilon, dtype=policy, name="norm"
            )
            self.norm.build((None, None, hidden_dim))

        # One draw for all blocks, outside of what may be recomputed.
        self.drop_path_stream = None
        if drop_path_rate > 0:
            self.drop_path_stream = DropPathStream(name="drop_path_stream")

        # === Tokens and positions ===
        self.class_token = self.register_tokens = self.mask_token = None
        if use_class_token:
            self.class_token = self.add_weight(
                shape=(1, 1, hidden_dim), initializer=init["class_token"], name="class_token"
            )
        if num_register_tokens:
            self.register_tokens = self.add_weight(
                shape=(1, num_register_tokens, hidden_dim),
                initializer=keras.initializers.RandomNormal(stddev=1e-6),
                name="register_tokens",
            )
        if use_mask_token:
            self.mask_token = self.add_weight(
                shape=(1, hidden_dim), initializer="zeros", name="mask_token"
            )
        rows, columns = self.grid
        positions = int(use_class_token) + rows * columns
        self.position_embedding = None
        if position_embedding == "rotary":
            rotary_angles(1, 1, hidden_dim // num_heads)  # refuses widths that it cannot turn
        elif position_embedding == "learned":
            self.position_embedding = self.add_weight(
                shape=(1, positions, hidden_dim),
                initializer=init["position"],
                name="position_embedding",
            )
        else:

            def table(shape, dtype=None):
                layout = "mae" if position_embedding == "sincos" else "moco_v3"
                table = sincos_position_embedding(hidden_dim, rows, columns, layout)
                table = np.concatenate([np.zeros((int(use_class_token), hidden_dim)), table])
                return ops.convert_to_tensor(table[None], dtype)

            self.position_embedding = self.add_weight(
                shape=(1, positions, hidden_dim),
                initializer=table,
                trainable=False,
                name="position_embedding",
            )
        self.built = True

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "ViTBackbone":
        """A backbone of a published size, e.g. `ViTBackbone.from_size("vit_small")`.

        Args:
            size: a key of `keras_ssl.backbones.VIT_SIZES`.
            **kwargs: any argument of `ViTBackbone`.
        """
        if size not in VIT_SIZES:
            raise ValueError(f"`size` must be one of {sorted(VIT_SIZES)}. Received: size={size!r}")
        return cls(**{**VIT_SIZES[size], **kwargs})

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> "ViTBackbone":
        """The encoder of a preset: a name, a folder, an official file or a hub handle.

        Args:
            preset: as for the methods' `from_preset`: any name of
                `keras_ssl.list_presets(released=True)`, a folder, the path of a paper's file,
                `hf://...` or `kaggle://...`.
            load_weights: `False` for new weights.
            **kwargs: arguments that replace the saved ones, e.g. `drop_path_rate=0.1`.
        """
        return load_preset(super().from_preset, preset, load_weights, **kwargs)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: class token and registers."""
        return int(self.use_class_token) + self.num_register_tokens

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_shape`."""
        return self.grid[0] * self.grid[1]

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Rows and columns of patches of an image; refuses sizes that do not divide."""
        if height is None or width is None:
            raise ValueError(
                "The image size must be known when the model is traced: batch pictures of one "
                f"size, or resize them first. Received: height={height}, width={width}"
            )
        p = self.patch_size
        if height % p or width % p or height < p or width < p:
            raise ValueError(
                f"Height and width must be multiples of patch_size={p}. Resize or crop the "
                f"pictures, or choose another patch size. Received: height={height}, width={width}"
            )
        return height // p, width // p

    def interpolate_position_embedding(self, height: int, width: int):
        """Positions for another image size.

        Args:
            height: image height in pixels.
            width: image width in pixels.

        Returns:
            `(1, class + patches, hidden_dim)`; the class row is unchanged.

        Raises:
            ValueError: sizes that do not divide, or a backbone with rotary positions.
        """
        if self.position_embedding is None:
            raise ValueError("Rotary positions are not added to anything; see `rotary`.")
        grid = self.grid_of(height, width)
        positions = ops.convert_to_tensor(self.position_embedding)
        if grid == self.grid:
            return positions
        matrix = grid_interpolation_matrix(
            self.grid, grid, self.interpolation_offset, self.interpolation_antialias
        )
        prefix = int(self.use_class_token)
        patches = ops.matmul(ops.cast(matrix, positions.dtype), positions[:, prefix:])
        return ops.concatenate([positions[:, :prefix], patches], axis=1)

    def embed(self, images, visible_indices=None, patch_mask=None):
        """Prefix tokens and embedded patches: what enters the first block."""
        if len(images.shape) != 4 or images.shape[-1] != self.image_shape[-1]:
            raise ValueError(
                f"Expected images of shape (batch, height, width, {self.image_shape[-1]}). "
                f"Received: shape {tuple(images.shape)}"
            )
        height, width = images.shape[1:3]
        self.grid_of(height, width)  # refuses sizes that do not divide
        positions = class_position = None
        if self.position_embedding is not None:
            positions = self.interpolate_position_embedding(height, width)
            positions = ops.cast(positions, self.compute_dtype)
            prefix = int(self.use_class_token)
            class_position, positions = positions[:, :prefix], positions[:, prefix:]

        patches = patchify(ops.cast(images, self.compute_dtype), self.patch_size)
        if visible_indices is not None:
            # The patches are picked before they are projected: nothing is computed for the rest.
            patches = gather_patches(patches, visible_indices)
            if positions is not None:
                positions = ops.take(positions[0], ops.cast(visible_indices, "int32"), axis=0)
        x = self.patch_embedding(patches)
        if patch_mask is not None:
            if self.mask_token is None:
                raise ValueError(
                    "`patch_mask` needs a backbone with a mask token: pass use_mask_token=True."
                )
            if visible_indices is not None:
                patch_mask = ops.take_along_axis(patch_mask, visible_indices, axis=1)
            mask_token = ops.cast(self.mask_token, x.dtype)
            x = ops.where(ops.cast(patch_mask, "bool")[..., None], mask_token, x)
        if positions is not None:
            x = x + positions

        def repeat(token):
            token = ops.cast(token, x.dtype)
            return ops.broadcast_to(token, (ops.shape(x)[0], *token.shape[1:]))

        tokens = [x]
        if self.register_tokens is not None:
            tokens.insert(0, repeat(self.register_tokens))
        if self.class_token is not None:
            class_token = ops.cast(self.class_token, x.dtype)
            if class_position is not None:
                class_token = class_token + class_position
            tokens.insert(0, repeat(class_token))
        return ops.concatenate(tokens, axis=1) if len(tokens) > 1 else x

    def rotary(self, height: int, width: int, visible_indices=None):
        """Cosines and sines of the patches' angles, or `None` where positions are added.

        Args:
            height: image height in pixels.
            width: image width in pixels.
            visible_indices: int `(batch, visible)`: of these patches only.

        Returns:
            Two tensors `(patches, head_dim)`, or `(batch, visible, head_dim)`.
        """
        if self.position_embedding_type != "rotary":
            return None
        head_dim = self.hidden_dim // self.num_heads
        angles = rotary_angles(*self.grid_of(height, width), head_dim, self.rotary_theta)
        tables = (np.cos(angles), np.sin(angles))
        tables = tuple(ops.convert_to_tensor(t, dtype="float32") for t in tables)
        if visible_indices is not None:
            visible_indices = ops.cast(visible_indices, "int32")
            tables = tuple(ops.take(table, visible_indices, axis=0) for table in tables)
        return tables

    def call(
        self,
        images,
        visible_indices=None,
        patch_mask=None,
        training=None,
        return_attention=False,
        return_intermediate=False,
    ):
        x = self.embed(images, visible_indices, patch_mask)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        attention, intermediate = [], []
        flags = {"return_attention": True} if return_attention else {}
        rotary = self.rotary(*images.shape[1:3], visible_indices)
        if rotary is not None:
            flags["rotary"] = rotary
        draws = self.draw_drop_path(ops.shape(x)[0]) if training else None
        for i, block in enumerate(self.blocks):
            if draws is not None:
                flags["drop_path_draws"] = draws[i]
            run = functools.partial(block, training=training, **flags)
            if self.rematerialize and training and not return_attention:
                # Not `keras.RematScope`: in a compiled step, TensorFlow recomputes what takes
                # tensors by position alone, and JAX makes arrays of flags.
                run = keras.remat(run)
            x = run(x)
            if return_attention:
                x, weights = x
                attention.append(weights)
            if return_intermediate:
                intermediate.append(x)
        tokens = self.norm(x) if self.norm is not None else x
        if not (return_attention or return_intermediate):
            return tokens
        outputs = {"tokens": tokens}
        if return_attention:
            outputs["attention"] = attention
        if return_intermediate:
            outputs["intermediate"] = intermediate
        return outputs

    def draw_drop_path(self, batch):
        """What stochastic depth drops in one pass, or `None` where it is off.

        Args:
            batch: samples in the batch.

        Returns:
            Uniform numbers `(num_layers, 2, batch)` for the two branches of every block; see
            `keras_ssl.layers.DropPath`.
        """
        if self.drop_path_stream is None:
            return None
        return self.drop_path_stream.uniform((self.num_layers, 2, batch), batch_axis=2)

    def pool(self, tokens, pooling: str = "token"):
        """One vector per picture.

        Args:
            tokens: what the backbone returned, `(batch, prefix + patches, hidden_dim)`.
            pooling: `"token"` (the class token) or `"mean"` (mean over patches).

        Returns:
            `(batch, hidden_dim)`.
        """
        if pooling == "token":
            if not self.use_class_token:
                raise ValueError(
                    'This backbone has no class token: use pooling="mean". '
                    f"Received: pooling={pooling!r}"
                )
            return tokens[:, 0]
        if pooling == "mean":
            return ops.mean(tokens[:, self.num_prefix_tokens :], axis=1)
        raise ValueError(f'`pooling` must be "token" or "mean". Received: pooling={pooling!r}')

    def layer_decay_multipliers(self, decay: float) -> dict[str, float]:
        """Learning rate multipliers of layer-wise decay, for `keras_ssl.optimizers.AdamW`.

        Tokens, positions and the patch projection are layer 0, block `i` is layer `i + 1`,
        whatever comes after them counts as layer `num_layers + 1`:
        `multiplier = decay ** (num_layers + 1 - layer)`.

        Args:
            decay: factor per layer, e.g. 0.65 to 0.75.

        Returns:
            A dict from a regular expression on `variable.path` to the multiplier; variables
            that match none have multiplier 1.

        Reference:
            Clark et al. 2020 (ELECTRA); Bao et al. 2022 (BEiT); He et al. 2021, appendix A.
        """
        last = self.num_layers + 1
        first = "class_token|register_tokens|mask_token|position_embedding|patch_embedding"
        multipliers = {rf"(^|/)({first})(/|$)": decay**last}
        for i in range(self.num_layers):
            multipliers[rf"(^|/)block_{i}/"] = decay ** (last - i - 1)
        return multipliers

    def default_lora_layer_names(self):
        return ["qkv", "projection"]

    def enable_lora(self, rank, target_layer_names=None):
        """Trains low-rank updates of attention's projections, and nothing else of the backbone.

        `W x` becomes `W x + A B x` with `A` and `B` of rank `rank`; saving adds `A B` to `W`.

        Args:
            rank: int.
            target_layer_names: layers that get one; `None` for `default_lora_layer_names()`.

        Reference:
            Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2022.
        """
        super().enable_lora(rank, target_layer_names)
        # keras-hub leaves biases of those layers and the backbone's own tokens and positions to
        # learn, though `save_lora_weights` does not hold them.
        for variable in self.trainable_variables:
            variable.trainable = "lora_kernel" in variable.path

    def get_config(self):
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "patch_size": self.patch_size,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "mlp_dim": self.mlp_dim,
            "use_class_token": self.use_class_token,
            "num_register_tokens": self.num_register_tokens,
            "use_mask_token": self.use_mask_token,
            "position_embedding": self.position_embedding_type,
            "rotary_theta": self.rotary_theta,
            "interpolation_offset": self.interpolation_offset,
            "interpolation_antialias": self.interpolation_antialias,
            "use_pre_norm": self.use_pre_norm,
            "use_final_norm": self.use_final_norm,
            "patch_bias": self.patch_bias,
            "qkv_bias": self.qkv_bias,
            "layer_scale_init": self.layer_scale_init,
            "ffn": self.ffn,
            "activation": self.activation,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "drop_path_rate": self.drop_path_rate,
            "drop_path_uniform": self.drop_path_uniform,
            "drop_path_subset": self.drop_path_subset,
            "rematerialize": self.rematerialize,
            "freeze_patch_projection": self.freeze_patch_projection,
            "initializer": self.initializer,
        }


def _initializers(kind: str, dim: int, patch_dim: int) -> dict:
    """The start values of each paper's code."""
    init = keras.initializers
    # PyTorch's default for a convolution, which the papers leave in place where they set none.
    default = init.RandomUniform(-(patch_dim**-0.5), patch_dim**-0.5)
    # timm cuts at +-2, not at two deviations: at 0.02 this is a plain normal. Keras' truncated one
    # would have a deviation of 0.0176.
    truncated = init.RandomNormal(stddev=0.02)
    if kind == "mae":
        return dict(
            patch_kernel="glorot_uniform",
            patch_bias=default,
            qkv="glorot_uniform",
            kernel="glorot_uniform",
            class_token=init.RandomNormal(stddev=0.02),
            position=truncated,
        )
    if kind == "moco_v3":
        # The fused kernel is three square ones: its own fan-out would make the limit too small.
        limit = (6 / (dim + dim)) ** 0.5
        return dict(
            patch_kernel="glorot_uniform",
            patch_bias="zeros",
            qkv=init.RandomUniform(-limit, limit),
            kernel="glorot_uniform",
            class_token=init.RandomNormal(stddev=1e-6),
            position=truncated,
        )
    if kind == "clip":
        # Tokens and positions at the width's scale, PyTorch's own defaults elsewhere.
        token = init.RandomNormal(stddev=dim**-0.5)
        return dict(
            patch_kernel=default,
            patch_bias=default,
            qkv="glorot_uniform",
            kernel=init.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform"),
            class_token=token,
            position=token,
        )
    return dict(
        patch_kernel=default,
        patch_bias=default,
        qkv=truncated,
        kernel=truncated,
        class_token=init.RandomNormal(stddev=1e-6) if kind == "dinov2" else truncated,
        position=truncated,
    )
