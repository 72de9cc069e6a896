"""A residual network for small pictures that trains on a CPU."""

import keras
import keras_hub
from keras import layers


@keras.saving.register_keras_serializable(package="keras_ssl")
class SmallResNet(keras_hub.models.Backbone):
    """A ResNet of three stages, two convolutions each, with `width`, 2 and 4 `width` channels.

    The stem halves the picture, as do the second and third stage: 32 pixels become a map of 4.

    Args:
        image_shape: `(height, width, channels)`; sides of 16 and more.
        width: channels of the first stage.
        dtype: dtype policy of every layer.
        name: name of the model.

    Returns:
        A map `(N, height / 8, width / 8, 4 * width)`.

    Example:

    >>> keras_ssl.backbones.SmallResNet((32, 32, 3)).output_shape
    (None, 4, 4, 128)

    Reference:
        He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2 (its shape; one
        block a stage).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        width: int = 32,
        dtype=None,
        name: str | None = None,
        **kwargs,
    ):
        def convolution(x, filters, size, strides=1):
            options = dict(padding="same", use_bias=False, dtype=dtype)
            x = layers.Conv2D(filters, size, strides, **options)(x)
            return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype)(x)

        def relu(x):
            return layers.ReLU(dtype=dtype)(x)

        x = images = keras.Input(image_shape, dtype=keras.backend.floatx())
        x = relu(convolution(x, width, 3, strides=2))
        for stage, filters in enumerate((width, 2 * width, 4 * width)):
            strides = 1 if stage == 0 else 2
            shortcut = x if stage == 0 else convolution(x, filters, 1, strides)
            x = relu(convolution(x, filters, 3, strides))
            x = relu(layers.Add(dtype=dtype)([convolution(x, filters, 3), shortcut]))
        name = name or "small_resnet"
        super().__init__(inputs=images, outputs=x, dtype=dtype, name=name, **kwargs)
        self.image_shape = tuple(image_shape)
        self.width = width

    def get_config(self):
        return {**super().get_config(), "image_shape": self.image_shape, "width": self.width}


def small_resnet(image_shape: tuple[int, int, int] = (32, 32, 3), width: int = 32) -> SmallResNet:
    """A `SmallResNet`: the network of the short recipes and of most shipped presets."""
    return SmallResNet(image_shape, width)
