"""A residual network for small pictures that trains on a CPU."""

import keras
from keras import layers


def small_resnet(image_shape: tuple[int, int, int] = (32, 32, 3), width: int = 32) -> keras.Model:
    """A ResNet of three stages, two convolutions each, with `width`, 2 and 4 `width` channels.

    The stem halves the picture, as do the second and third stage: 32 pixels become a map of 4.

    Args:
        image_shape: `(height, width, channels)`; sides of 16 and more.
        width: channels of the first stage.

    Returns:
        A `keras.Model` from images to a map `(N, height / 8, width / 8, 4 * width)`.

    Example:

    >>> keras_ssl.backbones.small_resnet((32, 32, 3)).output_shape
    (None, 4, 4, 128)

    Reference:
        He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2 (its shape; one
        block a stage).
    """

    def convolution(x, filters, size, strides=1):
        x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    x = images = keras.Input(image_shape)
    x = layers.ReLU()(convolution(x, width, 3, strides=2))
    for stage, filters in enumerate((width, 2 * width, 4 * width)):
        strides = 1 if stage == 0 else 2
        shortcut = x if stage == 0 else convolution(x, filters, 1, strides)
        x = layers.ReLU()(convolution(x, filters, 3, strides))
        x = layers.ReLU()(layers.Add()([convolution(x, filters, 3), shortcut]))
    return keras.Model(images, x, name="small_resnet")
