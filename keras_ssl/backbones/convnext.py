"""ConvNeXt (Liu et al. 2022), arxiv.org/abs/2201.03545, with the output that DINOv3 gave it."""

import keras
import keras_hub
from keras import ops

from keras_ssl.layers.transformer import MLP, DropPath, DropPathStream, LayerScale
from keras_ssl.training.kernels import materialize
from keras_ssl.training.subclassed import SubclassedModelType
from keras_ssl.weight_files import load_preset

# Liu et al. 2022, section 3: blocks and channels of the four stages. DINOv3 released these four.
CONVNEXT_SIZES = {
    "convnext_tiny": dict(num_blocks=(3, 3, 9, 3), hidden_dims=(96, 192, 384, 768)),
    "convnext_small": dict(num_blocks=(3, 3, 27, 3), hidden_dims=(96, 192, 384, 768)),
    "convnext_base": dict(num_blocks=(3, 3, 27, 3), hidden_dims=(128, 256, 512, 1024)),
    "convnext_large": dict(num_blocks=(3, 3, 27, 3), hidden_dims=(192, 384, 768, 1536)),
}


@keras.saving.register_keras_serializable(package="keras_ssl")
class ConvNeXtBlock(keras.layers.Layer):
    """`x + drop(scale(fc2(gelu(fc1(norm(depthwise(x)))))))`, the MLP four times as wide.

    Args:
        kernel_size: of the depthwise convolution.
        activation: of the MLP.
        layer_scale_init: start value of the gains.
        layer_norm_epsilon: added to the variance.
        drop_path_rate: stochastic depth rate of this block.

    Call arguments:
        x: a map `(batch, height, width, dim)`.
        training: whether stochastic depth drops.
        drop_path_draws: `(batch,)` uniform numbers that decide it, instead of the block's own.
    """

    def __init__(
        self,
        kernel_size: int = 7,
        activation: str = "gelu",
        layer_scale_init: float = 1e-6,
        layer_norm_epsilon: float = 1e-6,
        drop_path_rate: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.activation = activation
        self.layer_scale_init = layer_scale_init
        self.layer_norm_epsilon = layer_norm_epsilon
        self.drop_path_rate = drop_path_rate

    def build(self, input_shape):
        dim, policy = input_shape[-1], self.dtype_policy
        self.depthwise = keras.layers.DepthwiseConv2D(
            self.kernel_size,
            padding="same",
            depthwise_initializer=_kernel_initializer(),
            data_format="channels_last",
            dtype=policy,
            name="depthwise",
        )
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=policy, name="norm"
        )
        self.mlp = MLP(4 * dim, self.activation, _kernel_initializer(), dtype=policy, name="mlp")
        self.layer_scale = LayerScale(self.layer_scale_init, dtype=policy, name="layer_scale")
        self.drop_path = DropPath(self.drop_path_rate, dtype=policy, name="drop_path")
        for layer in (self.depthwise, self.norm, self.mlp, self.layer_scale):
            layer.build(input_shape)
        self.built = True

    def call(self, x, training=None, drop_path_draws=None):
        h = self.layer_scale(self.mlp(self.norm(self.depthwise(x))))
        return materialize(x + self.drop_path(h, training=training, draws=drop_path_draws))

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "activation": self.activation,
            "layer_scale_init": self.layer_scale_init,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "drop_path_rate": self.drop_path_rate,
        }


@keras.saving.register_keras_serializable(package="keras_ssl")
class ConvNeXtBackbone(keras_hub.models.Backbone, metaclass=SubclassedModelType):
    """A ConvNeXt whose output has the form of a vision transformer's: one token, then patches.

    A stem of 4 x 4 patches and four stages, each after the first begun by a 2 x 2 convolution that
    halves the map: `m = stage_4(stage_3(stage_2(stage_1(stem(x)))))`. Then

    `tokens = LayerNorm([mean(m); m])`,

    so that the first token is the picture's, as a class token is, and the others are of its
    32 x 32 pixel patches. DINOv3's released ConvNeXts were trained with these two.

    Args:
        image_shape: `(height, width, channels)` that pictures are resized to; any size of at least
            32 x 32 is taken when called. What is over a multiple of 32 is left out at the end.
        num_blocks: of the four stages.
        hidden_dims: channels of the four stages.
        activation: `"gelu"` (exact), `"gelu_tanh"` or `"quick_gelu"`.
        layer_scale_init: start value of the blocks' layer scale.
        layer_norm_epsilon: added to the variance in every layer normalisation.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0.
        dtype: dtype policy.
        name: name of the model.

    Call arguments:
        images: `(batch, height, width, channels)`, float, normalised.
        training: whether stochastic depth drops.
        return_intermediate: return a dict with `"tokens"` and `"intermediate"`, the maps that the
            stages give.

    Returns:
        `(batch, 1 + height / 32 * width / 32, hidden_dim)`, `hidden_dim` the last stage's channels.

    Example:

    ```python
    backbone = keras_ssl.backbones.ConvNeXtBackbone(
        (64, 64, 3), num_blocks=(1, 1, 1, 1), hidden_dims=(8, 16, 24, 32)
    )
    backbone(np.random.rand(2, 64, 64, 3)).shape  # (2, 1 + 4, 32)
    ```

    Reference:
        Liu et al., A ConvNet for the 2020s, 2022; Siméoni et al., DINOv3, 2025, section 5.3.
    """

    # As of a vision transformer: `tokens[:, 0]` is the picture's.
    use_class_token = True
    num_prefix_tokens = 1
    patch_size = 32

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        num_blocks: tuple[int, ...] = (3, 3, 9, 3),
        hidden_dims: tuple[int, ...] = (96, 192, 384, 768),
        activation: str = "gelu",
        layer_scale_init: float = 1e-6,
        layer_norm_epsilon: float = 1e-6,
        drop_path_rate: float = 0.0,
        dtype=None,
        name: str | None = None,
        **kwargs,
    ):
        num_blocks, hidden_dims = tuple(num_blocks), tuple(hidden_dims)
        if len(num_blocks) != 4 or len(hidden_dims) != 4:
            raise ValueError(
                "A ConvNeXt has four stages: pass four numbers of blocks and of channels. "
                f"Received: num_blocks={num_blocks}, hidden_dims={hidden_dims}"
            )
        super().__init__(dtype=dtype, name=name or "convnext_backbone", **kwargs)
        self.image_shape = tuple(image_shape)
        self.num_blocks = num_blocks
        self.hidden_dims = hidden_dims
        self.hidden_dim = hidden_dims[-1]
        self.num_layers = len(num_blocks)  # what `return_intermediate` gives
        self.activation = activation
        self.layer_scale_init = layer_scale_init
        self.layer_norm_epsilon = layer_norm_epsilon
        self.drop_path_rate = drop_path_rate
        self.grid_of(*self.image_shape[:2])  # refuses pictures that nothing would be left of
        policy = self.dtype_policy

        def norm(dim, name):
            layer = keras.layers.LayerNormalization(
                epsilon=layer_norm_epsilon, dtype=policy, name=name
            )
            layer.build((None, None, None, dim))
            return layer

        self.downsamplings, self.downsampling_norms, self.stages = [], [], []
        channels, done = self.image_shape[-1], 0
        for stage, (count, dim) in enumerate(zip(num_blocks, hidden_dims, strict=True)):
            side = 2 if stage else 4
            convolution = keras.layers.Conv2D(
                dim,
                side,
                strides=side,
                kernel_initializer=_kernel_initializer(),
                data_format="channels_last",
                dtype=policy,
                name=f"downsampling_{stage}",
            )
            convolution.build((None, None, None, channels))
            self.downsamplings.append(convolution)
            # The stem is normalised after its convolution, the others before theirs.
            self.downsampling_norms.append(
                norm(channels if stage else dim, f"downsampling_norm_{stage}")
            )
            blocks = []
            for i in range(count):
                block = ConvNeXtBlock(
                    activation=activation,
                    layer_scale_init=layer_scale_init,
                    layer_norm_epsilon=layer_norm_epsilon,
                    drop_path_rate=drop_path_rate * done / max(1, sum(num_blocks) - 1),
                    dtype=policy,
                    name=f"stage_{stage}_block_{i}",
                )
                block.build((None, None, None, dim))
                blocks.append(block)
                done += 1
            self.stages.append(blocks)
            channels = dim
        self.norm = norm(channels, "norm")
        # One draw for all blocks, as the vision transformer's.
        self.drop_path_stream = DropPathStream(name="drop_path_stream") if drop_path_rate else None
        self.built = True

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "ConvNeXtBackbone":
        """A backbone of a published size, `"convnext_tiny"` to `"convnext_large"`."""
        if size not in CONVNEXT_SIZES:
            raise ValueError(
                f"`size` must be one of {sorted(CONVNEXT_SIZES)}. Received: size={size!r}"
            )
        return cls(**{**CONVNEXT_SIZES[size], **kwargs})

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> "ConvNeXtBackbone":
        """The encoder of a preset: a name, a folder, an official file or a hub handle."""
        return load_preset(super().from_preset, preset, load_weights, **kwargs)

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Rows and columns of the last map of an image; refuses images smaller than one place."""
        if height is None or width is None or min(height, width) < self.patch_size:
            raise ValueError(
                f"Height and width must be known and at least {self.patch_size}: resize the "
                f"pictures. Received: height={height}, width={width}"
            )
        return height // self.patch_size, width // self.patch_size

    def call(self, images, training=None, return_intermediate=False):
        if len(images.shape) != 4 or images.shape[-1] != self.image_shape[-1]:
            raise ValueError(
                f"Expected images of shape (batch, height, width, {self.image_shape[-1]}). "
                f"Received: shape {tuple(images.shape)}"
            )
        self.grid_of(*images.shape[1:3])
        x = ops.cast(images, self.compute_dtype)
        draws = None
        if training and self.drop_path_stream is not None:
            shape = (sum(self.num_blocks), ops.shape(x)[0])
            draws = self.drop_path_stream.uniform(shape, batch_axis=1)
        maps, done = [], 0
        layers = zip(self.downsamplings, self.downsampling_norms, self.stages, strict=True)
        for stage, (convolution, norm, blocks) in enumerate(layers):
            x = convolution(norm(x)) if stage else norm(convolution(x))
            for block in blocks:
                flags = {} if draws is None else {"drop_path_draws": draws[done]}
                x = block(x, training=training, **flags)
                done += 1
            maps.append(x)
        x = ops.reshape(x, (-1, x.shape[1] * x.shape[2], self.hidden_dim))
        tokens = self.norm(ops.concatenate([ops.mean(x, axis=1, keepdims=True), x], axis=1))
        return {"tokens": tokens, "intermediate": maps} if return_intermediate else tokens

    def pool(self, tokens, pooling: str = "token"):
        """One vector per picture, `(batch, hidden_dim)`.

        Args:
            tokens: what the backbone returned.
            pooling: `"token"`, the normalised mean of the map, DINOv3's; or `"mean"`, the mean of
                the normalised patches.
        """
        if pooling == "token":
            return tokens[:, 0]
        if pooling == "mean":
            return ops.mean(tokens[:, 1:], axis=1)
        raise ValueError(f'`pooling` must be "token" or "mean". Received: pooling={pooling!r}')

    def layer_decay_multipliers(self, decay: float) -> dict[str, float]:
        """Learning rate multipliers of layer-wise decay; see `ViTBackbone`.

        The stem is layer 0, the first two stages are layers 1 and 2, three blocks of the third are
        one layer, and the last stage is the last: 12 of them where the third has 27 blocks.

        Reference:
            Liu et al. 2022, appendix A.2.
        """
        thirds = -(-self.num_blocks[2] // 3)
        begins = (0, 2, 3, thirds + 3)  # the layer that each stage's downsampling is in
        last = thirds + 4
        multipliers = {}
        for stage, layer in enumerate(begins):
            name = rf"(^|/)downsampling(_norm)?_{stage}/"
            multipliers[name] = decay ** (last - layer)
        for stage, count in enumerate(self.num_blocks):
            for i in range(count):
                layer = (1, 2, 3 + i // 3, thirds + 3)[stage]
                multipliers[rf"(^|/)stage_{stage}_block_{i}/"] = decay ** (last - layer)
        return multipliers

    def get_config(self):
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "num_blocks": self.num_blocks,
            "hidden_dims": self.hidden_dims,
            "activation": self.activation,
            "layer_scale_init": self.layer_scale_init,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "drop_path_rate": self.drop_path_rate,
        }


def _kernel_initializer():
    # As of the vision transformer: the official cut is at +-2, so this is a plain normal.
    return keras.initializers.RandomNormal(stddev=0.02)
