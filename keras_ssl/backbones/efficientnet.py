"""EfficientNet as ALIGN has it: without a head, padded as in TensorFlow."""

import math

import keras
import keras_hub
from keras import layers

# Tan & Le 2019, table 1; the stages of B0, which the coefficients scale.
EFFICIENTNET_STAGES = dict(
    kernel_sizes=(3, 3, 5, 3, 5, 5, 3),
    out_channels=(16, 24, 40, 80, 112, 192, 320),
    strides=(1, 2, 2, 2, 1, 2, 1),
    num_repeats=(1, 2, 2, 3, 3, 4, 1),
    expand_ratios=(1, 6, 6, 6, 6, 6, 6),
)


@keras.saving.register_keras_serializable(package="keras_ssl")
class EfficientNet(keras_hub.models.Backbone):
    """Inverted residual blocks with squeeze-and-excitation, whose last map is the output.

    A block widens by a 1 x 1 convolution, filters each channel by itself, weighs the channels, and
    narrows: `x + narrow(weigh(depthwise(widen(x))))`. `keras_hub.models.EfficientNetBackbone` has a
    1 x 1 convolution more at its end and pads strided layers on both sides (as timm), where this
    one pads after the picture (as TensorFlow): released weights of ALIGN need the latter.

    Args:
        image_shape: `(height, width, channels)`; sides may be `None`.
        width_coefficient: scales all channels, which are rounded to multiples of `depth_divisor`;
            2.0 in ALIGN (B7).
        depth_coefficient: scales the blocks of every stage, rounded up; 3.1 in ALIGN.
        depth_divisor: int.
        kernel_sizes, out_channels, strides, num_repeats, expand_ratios: of every stage; B0's by
            default.
        squeeze_ratio: width of squeeze-and-excitation, as a share of a block's input.
        padded_both_sides: blocks (counted from 0) whose strided layer pads on both sides.
        drop_rate: probability of dropping the last block's branch in training; it grows from 0
            with depth.
        activation: of the hidden layers.
        batch_norm_epsilon: added to the variance.
        dtype: dtype policy.
        name: name of the model.

    Returns:
        A map `(N, height / 32, width / 32, C)`, `C` the last stage's channels.

    Example:

    >>> EfficientNet((64, 64, 3), width_coefficient=0.25, depth_coefficient=0.5).output_shape
    (None, 2, 2, 80)

    Reference:
        Tan & Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019;
        Jia et al. (ALIGN), 2021, section 4.
    """

    def __init__(
        self,
        image_shape: tuple = (None, None, 3),
        width_coefficient: float = 1.0,
        depth_coefficient: float = 1.0,
        depth_divisor: int = 8,
        kernel_sizes: tuple = EFFICIENTNET_STAGES["kernel_sizes"],
        out_channels: tuple = EFFICIENTNET_STAGES["out_channels"],
        strides: tuple = EFFICIENTNET_STAGES["strides"],
        num_repeats: tuple = EFFICIENTNET_STAGES["num_repeats"],
        expand_ratios: tuple = EFFICIENTNET_STAGES["expand_ratios"],
        squeeze_ratio: float = 0.25,
        padded_both_sides: tuple = (),
        drop_rate: float = 0.2,
        activation: str = "swish",
        batch_norm_epsilon: float = 1e-3,
        dtype=None,
        name: str | None = None,
        **kwargs,
    ):
        stages = (kernel_sizes, out_channels, strides, num_repeats, expand_ratios)
        if len({len(stage) for stage in stages}) != 1:
            raise ValueError(
                "Every stage needs a kernel size, channels, a stride, repeats and an expansion. "
                f"Received: lengths {[len(stage) for stage in stages]}"
            )

        def channels(number):
            scaled = number * width_coefficient
            rounded = int(scaled + depth_divisor / 2) // depth_divisor * depth_divisor
            rounded = max(depth_divisor, rounded)
            return rounded + depth_divisor if rounded < 0.9 * scaled else rounded

        def normalized(x, layer, name, active=True):
            x = layer(x)
            norm = dict(momentum=0.99, epsilon=batch_norm_epsilon, dtype=dtype, name=f"{name}_bn")
            x = layers.BatchNormalization(**norm)(x)
            return layers.Activation(activation, dtype=dtype)(x) if active else x

        def pointwise(units, name, **options):
            options = {"use_bias": False, **options}
            return layers.Conv2D(units, 1, dtype=dtype, name=f"{name}_conv", **options)

        def block(x, name, kernel_size, units, stride, expand, rate, both_sides, first):
            inputs, narrow = x, x.shape[-1]
            if expand != 1:
                x = normalized(x, pointwise(narrow * expand, f"{name}_expand"), f"{name}_expand")
            half = kernel_size // 2
            if stride > 1:
                padding = (half, half) if both_sides else (half - 1, half)
                x = layers.ZeroPadding2D((padding, padding), dtype=dtype)(x)
            depthwise = layers.DepthwiseConv2D(
                kernel_size,
                stride,
                padding="valid" if stride > 1 else "same",
                use_bias=False,
                dtype=dtype,
                name=f"{name}_depthwise_conv",
            )
            x = normalized(x, depthwise, f"{name}_depthwise")
            weight = layers.GlobalAveragePooling2D(keepdims=True, dtype=dtype)(x)
            for part, size, active in (
                ("squeeze", max(1, int(narrow * squeeze_ratio)), activation),
                ("excite", x.shape[-1], "sigmoid"),
            ):
                options = dict(use_bias=True, activation=active)
                weight = pointwise(size, f"{name}_{part}", **options)(weight)
            x = layers.Multiply(dtype=dtype)([x, weight])
            project = pointwise(units, f"{name}_project")
            x = normalized(x, project, f"{name}_project", active=False)
            if not first:  # the first of a stage has no shortcut, whatever its shape
                if rate > 0:
                    x = layers.Dropout(rate, noise_shape=(None, 1, 1, 1), dtype=dtype)(x)
                x = layers.Add(dtype=dtype)([x, inputs])
            return x

        x = images = keras.Input(image_shape, dtype=keras.backend.floatx(), name="images")
        x = layers.ZeroPadding2D(((0, 1), (0, 1)), dtype=dtype)(x)
        stem = layers.Conv2D(channels(32), 3, 2, use_bias=False, dtype=dtype, name="stem_conv")
        x = normalized(x, stem, "stem")
        repeats = [math.ceil(depth_coefficient * n) for n in num_repeats]
        done = 0
        for stage, (size, units, stride, expand) in enumerate(
            zip(kernel_sizes, out_channels, strides, expand_ratios, strict=True)
        ):
            for i in range(repeats[stage]):
                rate = drop_rate * done / sum(repeats)
                x = block(
                    x,
                    f"block_{done}",
                    size,
                    channels(units),
                    stride if i == 0 else 1,
                    expand,
                    rate,
                    done in padded_both_sides,
                    first=i == 0,
                )
                done += 1
        super().__init__(
            inputs=images, outputs=x, dtype=dtype, name=name or "efficientnet", **kwargs
        )
        self.image_shape = tuple(image_shape)
        self.width_coefficient = width_coefficient
        self.depth_coefficient = depth_coefficient
        self.depth_divisor = depth_divisor
        self.kernel_sizes = tuple(kernel_sizes)
        self.out_channels = tuple(out_channels)
        self.strides = tuple(strides)
        self.num_repeats = tuple(num_repeats)
        self.expand_ratios = tuple(expand_ratios)
        self.squeeze_ratio = squeeze_ratio
        self.padded_both_sides = tuple(padded_both_sides)
        self.drop_rate = drop_rate
        self.activation = activation
        self.batch_norm_epsilon = batch_norm_epsilon

    def get_config(self):
        names = (
            *("image_shape", "width_coefficient", "depth_coefficient", "depth_divisor"),
            *EFFICIENTNET_STAGES,
            *("squeeze_ratio", "padded_both_sides", "drop_rate", "activation"),
            "batch_norm_epsilon",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
