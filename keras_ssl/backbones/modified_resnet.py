"""CLIP's ResNets: an antialiased ResNet-D that ends in attention pooling."""

import keras
import keras_hub
from keras import ops

from keras_ssl.layers.attention_pooling import AttentionPooling
from keras_ssl.training.subclassed import SubclassedModelType
from keras_ssl.weight_files import load_preset

# Radford et al. 2021, table 19; sizes of the released models. Width is that of the first stage.
MODIFIED_RESNET_SIZES = {
    "rn50": dict(stackwise_num_blocks=(3, 4, 6, 3), width=64, output_dim=1024),
    "rn101": dict(stackwise_num_blocks=(3, 4, 23, 3), width=64, output_dim=512),
    "rn50x4": dict(
        image_shape=(288, 288, 3), stackwise_num_blocks=(4, 6, 10, 6), width=80, output_dim=640
    ),
    "rn50x16": dict(
        image_shape=(384, 384, 3), stackwise_num_blocks=(6, 8, 18, 8), width=96, output_dim=768
    ),
    "rn50x64": dict(
        image_shape=(448, 448, 3), stackwise_num_blocks=(3, 15, 36, 10), width=128, output_dim=1024
    ),
}


def _convolution(filters, kernel_size, strides=1, dtype=None, name=None):
    # Padding is written out: "same" pads one side only where the stride is 2.
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        dtype=dtype,
        name=name,
    )


def _norm(dtype, name, gamma="ones"):
    return keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, gamma_initializer=gamma, dtype=dtype, name=name
    )


def _pad(x):
    return ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


@keras.saving.register_keras_serializable(package="keras_ssl")
class ModifiedBottleneck(keras.layers.Layer):
    """Bottleneck whose stride is an average pooling before the last convolution (antialiased).

    `relu(shortcut(x) + bn3(conv3(pool(relu(bn2(conv2(relu(bn1(conv1(x)))))))))`; the shortcut of a
    block that changes the shape is `bn(conv(pool(x)))`.

    Args:
        filters: of the inner convolutions; the result has four times as many.
        stride: 1 or 2.
        shortcut: whether the shortcut has a convolution.
    """

    def __init__(self, filters: int, stride: int = 1, shortcut: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.stride, self.shortcut = filters, stride, shortcut
        d = self.dtype_policy
        self.conv1, self.bn1 = _convolution(filters, 1, dtype=d, name="conv1"), _norm(d, "bn1")
        self.conv2, self.bn2 = _convolution(filters, 3, dtype=d, name="conv2"), _norm(d, "bn2")
        self.conv3 = _convolution(4 * filters, 1, dtype=d, name="conv3")
        # The branch starts at zero (He et al. 2019), as in the published code.
        self.bn3 = _norm(d, "bn3", gamma="zeros")
        self.pool = keras.layers.AveragePooling2D(stride, dtype=d, name="pool")
        self.shortcut_conv = self.shortcut_bn = None
        if shortcut:
            self.shortcut_conv = _convolution(4 * filters, 1, dtype=d, name="shortcut_conv")
            self.shortcut_bn = _norm(d, "shortcut_bn")

    def build(self, input_shape):
        inner = (*input_shape[:-1], self.filters)
        outer = (*input_shape[:-1], 4 * self.filters)
        self.conv1.build(input_shape)
        self.conv2.build(inner)
        self.conv3.build(inner)
        for norm, shape in ((self.bn1, inner), (self.bn2, inner), (self.bn3, outer)):
            norm.build(shape)
        if self.shortcut:
            self.shortcut_conv.build(input_shape)
            self.shortcut_bn.build(outer)
        self.built = True

    def call(self, x, training=None):
        h = ops.relu(self.bn1(self.conv1(x), training=training))
        h = ops.relu(self.bn2(self.conv2(_pad(h)), training=training))
        h = self.pool(h) if self.stride > 1 else h
        h = self.bn3(self.conv3(h), training=training)
        if self.shortcut:
            x = self.pool(x) if self.stride > 1 else x
            x = self.shortcut_bn(self.shortcut_conv(x), training=training)
        return ops.relu(x + h)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "stride": self.stride,
            "shortcut": self.shortcut,
        }


@keras.saving.register_keras_serializable(package="keras_ssl")
class ModifiedResNet(keras_hub.models.Backbone, metaclass=SubclassedModelType):
    """The ResNet of CLIP (RN50 to RN50x64).

    Three changes to a ResNet: a stem of three convolutions and an average pooling; average pooling
    instead of strides (antialiasing); attention pooling with the mean as query at the end.

    Args:
        image_shape: `(height, width, channels)`; multiples of 32.
        stackwise_num_blocks: bottlenecks of the four stages.
        width: channels after the stem; 32 times as many come out of the last stage.
        output_dim: width of the pooled vector, which is CLIP's embedding: the pooling ends with the
            projection.
        num_heads: of the attention pooling; `width / 2` when `None`, as in the released models.
        dtype: dtype policy.
        name: name of the model.

    Call arguments:
        images: `(batch, height, width, channels)`, normalised, of the size given.
        return_map: return the map before the pooling, `(batch, height / 32, width / 32,
            32 * width)`.

    Returns:
        `(batch, output_dim)`.

    Example:

    ```python
    backbone = keras_ssl.backbones.ModifiedResNet(
        (64, 64, 3), stackwise_num_blocks=(1, 1, 1, 1), width=8, output_dim=16
    )
    backbone(np.random.rand(2, 64, 64, 3)).shape  # (2, 16)
    ```

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        2021, section 2.4; He et al., Bag of Tricks, 2019; Zhang, Making Convolutional Networks
        Shift-Invariant Again, 2019.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        stackwise_num_blocks: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        output_dim: int = 1024,
        num_heads: int | None = None,
        dtype=None,
        name: str | None = None,
        **kwargs,
    ):
        image_shape = tuple(image_shape)
        height, breadth, channels = image_shape
        if height % 32 or breadth % 32 or width % 2:
            raise ValueError(
                "Height and width of the images must be multiples of 32, and `width` even. "
                f"Received: image_shape={image_shape}, width={width}"
            )
        super().__init__(dtype=dtype, name=name or "modified_resnet", **kwargs)
        self.image_shape = image_shape
        self.stackwise_num_blocks = tuple(stackwise_num_blocks)
        self.width = width
        self.output_dim = output_dim
        self.num_heads = num_heads
        policy = self.dtype_policy

        self.stem, inputs = [], channels
        for i, filters in enumerate((width // 2, width // 2, width), 1):
            convolution = _convolution(filters, 3, 2 if i == 1 else 1, policy, f"conv{i}")
            norm = _norm(policy, f"bn{i}")
            convolution.build((None, height, breadth, inputs))
            norm.build((None, height, breadth, filters))
            self.stem.append((convolution, norm))
            inputs = filters
        self.pool = keras.layers.AveragePooling2D(2, dtype=policy, name="pool")
        self.stages = []
        for stage, count in enumerate(self.stackwise_num_blocks):
            filters, blocks = width * 2**stage, []
            for i in range(count):
                stride = 2 if stage and not i else 1
                block = ModifiedBottleneck(
                    filters,
                    stride,
                    shortcut=stride > 1 or inputs != 4 * filters,
                    dtype=policy,
                    name=f"stage{stage + 1}_block{i}",
                )
                block.build((None, None, None, inputs))
                inputs = 4 * filters
                blocks.append(block)
            self.stages.append(blocks)
        self.attention_pooling = AttentionPooling(
            num_heads or max(1, width // 2),
            query="mean",
            output_dim=output_dim,
            dtype=policy,
            name="attention_pooling",
        )
        self.attention_pooling.build((None, (height // 32) * (breadth // 32), inputs))
        self.built = True

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "ModifiedResNet":
        """A backbone of a published size, `"rn50"` to `"rn50x64"`."""
        if size not in MODIFIED_RESNET_SIZES:
            raise ValueError(
                f"`size` must be one of {sorted(MODIFIED_RESNET_SIZES)}. Received: size={size!r}"
            )
        return cls(**{**MODIFIED_RESNET_SIZES[size], **kwargs})

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> "ModifiedResNet":
        """The encoder of a preset: a name, a folder, an official file or a hub handle."""
        return load_preset(super().from_preset, preset, load_weights, **kwargs)

    def call(self, images, training=None, return_map=False):
        x = ops.cast(images, self.compute_dtype)
        for convolution, norm in self.stem:
            x = ops.relu(norm(convolution(_pad(x)), training=training))
        x = self.pool(x)
        for blocks in self.stages:
            for block in blocks:
                x = block(x, training=training)
        if return_map:
            return x
        return self.attention_pooling(ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3])))

    def get_config(self):
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "stackwise_num_blocks": self.stackwise_num_blocks,
            "width": self.width,
            "output_dim": self.output_dim,
            "num_heads": self.num_heads,
        }
