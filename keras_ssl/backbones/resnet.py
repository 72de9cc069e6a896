"""ResNets of the papers whose released weights were not trained in PyTorch."""

import keras
import keras_hub
from keras import layers

# Blocks of the four stages; He et al. 2016, table 1.
RESNET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


@keras.saving.register_keras_serializable(package="keras_ssl")
class ResNet(keras_hub.models.Backbone):
    """A ResNet of bottleneck blocks whose 3 x 3 convolutions have the stride ("v1.5").

    `keras_hub.models.ResNetBackbone` is the same network for `padding="torch"` and `width=1`, with
    the same names of layers; where the padding differs, so do the features at every border.

    Args:
        num_blocks: blocks of every stage.
        width: multiplies the number of channels.
        padding: `"torch"` (the same on both sides: MoCo, Barlow Twins, VICReg, timm), `"simclr"`
            (as torch, but the pooling pads at the end only) or `"same"` (strided layers pad at the
            end first: haiku, BYOL).
        image_shape: `(height, width, channels)`; sides may be `None`.
        filters: channels of the stem before `width`.
        dtype: dtype policy of every layer.
        name: name of the model.

    Returns:
        A map `(N, height / 32, width / 32, 32 * filters * width)`.

    Example:

    >>> keras_ssl.backbones.ResNet((3, 4, 6, 3), image_shape=(64, 64, 3)).output_shape
    (None, 2, 2, 2048)

    Reference:
        He et al., Deep Residual Learning for Image Recognition, 2016; Goyal et al., Accurate, Large
        Minibatch SGD, 2017, section 5.1 (where the stride is).
    """

    def __init__(
        self,
        num_blocks: tuple[int, ...] = RESNET_BLOCKS[50],
        width: int = 1,
        padding: str = "torch",
        image_shape: tuple = (224, 224, 3),
        filters: int = 64,
        dtype=None,
        name: str | None = None,
        **kwargs,
    ):
        if padding not in ("torch", "simclr", "same"):
            raise ValueError(
                f'`padding` must be "torch", "simclr" or "same". Received: padding={padding!r}'
            )

        def convolution(x, units, size, strides, name, relu=True):
            how = "same"
            if strides > 1 and padding != "same":
                how = "valid"  # "same" would pad more at the end than at the start
                x = layers.ZeroPadding2D(size // 2, dtype=dtype, name=f"{name}_pad")(x)
            options = dict(use_bias=False, dtype=dtype, name=f"{name}_conv")
            x = layers.Conv2D(units, size, strides, padding=how, **options)(x)
            options = dict(momentum=0.9, epsilon=1e-5, dtype=dtype, name=f"{name}_bn")
            x = layers.BatchNormalization(**options)(x)
            return layers.ReLU(dtype=dtype, name=f"{name}_relu")(x) if relu else x

        x = images = keras.Input(image_shape, dtype=keras.backend.floatx())
        x = convolution(x, filters * width, 7, 2, "conv1")
        if padding == "torch":  # after the ReLU zeros are as good as minus infinity
            x = layers.ZeroPadding2D(1, dtype=dtype, name="pool1_pad")(x)
        how = "valid" if padding == "torch" else "same"
        x = layers.MaxPooling2D(3, strides=2, padding=how, dtype=dtype, name="pool1_pool")(x)
        for stack, blocks in enumerate(num_blocks):
            units = filters * width * 2**stack
            for block in range(blocks):
                place = f"stack{stack}_block{block}"
                strides = 2 if block == 0 and stack > 0 else 1
                shortcut = x
                if block == 0:
                    shortcut = convolution(x, 4 * units, 1, strides, f"{place}_0", relu=False)
                x = convolution(x, units, 1, 1, f"{place}_1")
                x = convolution(x, units, 3, strides, f"{place}_2")
                x = convolution(x, 4 * units, 1, 1, f"{place}_3", relu=False)
                x = layers.Add(dtype=dtype, name=f"{place}_add")([x, shortcut])
                x = layers.ReLU(dtype=dtype, name=f"{place}_out")(x)
        super().__init__(inputs=images, outputs=x, dtype=dtype, name=name or "resnet", **kwargs)
        self.num_blocks = tuple(num_blocks)
        self.width = width
        self.padding = padding
        self.image_shape = tuple(image_shape)
        self.filters = filters

    def get_config(self):
        names = ("num_blocks", "width", "padding", "image_shape", "filters")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def resnet(
    depth: int = 50, width: int = 1, num_blocks: tuple[int, ...] | None = None, **kwargs
) -> ResNet:
    """A `ResNet` by its depth.

    Args:
        depth: 50, 101, 152 or 200.
        width: multiplies the number of channels.
        num_blocks: blocks of every stage, in place of `depth`.
        **kwargs: of `ResNet`.

    Example:

    >>> keras_ssl.backbones.resnet(50, image_shape=(64, 64, 3)).output_shape
    (None, 2, 2, 2048)
    """
    if num_blocks is None:
        if depth not in RESNET_BLOCKS:
            raise ValueError(
                f"`depth` must be one of {sorted(RESNET_BLOCKS)}. Received: depth={depth}"
            )
        num_blocks = RESNET_BLOCKS[depth]
    return ResNet(num_blocks, width, name=f"resnet{depth}", **kwargs)
