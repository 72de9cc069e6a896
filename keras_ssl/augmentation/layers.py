"""Random image operations as layers, one parameter per image, compiled into the step."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssl.augmentation import functional, operations
from keras_ssl.augmentation.recipes import IMAGENET_MEAN, IMAGENET_STD
from keras_ssl.training.random import RandomStream


def check_images(images: Any) -> Any:
    """A batch of RGB images from what was given; 1-channel images are repeated over 3."""
    images = ops.convert_to_tensor(images)
    functional._check_images(images)
    channels = images.shape[-1]
    if channels == 1:
        return ops.repeat(images, 3, axis=-1)
    if channels == 4:
        raise ValueError(
            "Augmentation works on RGB images and does not guess a background for RGBA. Blend them "
            "first, for instance on white: rgb * alpha / 255 + 255 - alpha. "
            f"Received: images of shape {tuple(images.shape)}"
        )
    if channels != 3:
        raise ValueError(
            "Expected images with 3 channels in the last axis (or 1, which is repeated). "
            f"Received: images of shape {tuple(images.shape)}"
        )
    return images


def check_value_range(value_range: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(value) for value in value_range)
    if not low < high:
        raise ValueError(f"`value_range` must be (low, high). Received: value_range={value_range}")
    return low, high


def to_unit(images: Any, value_range: tuple[float, float]) -> Any:
    low, high = value_range
    if low != 0.0:
        images = images - low
    return images * (1.0 / (high - low)) if high - low != 1.0 else images


class _RandomLayer(keras.layers.Layer):
    """What the random layers share: a stream, the value range, given parameters."""

    def __init__(
        self,
        operation: Any,
        value_range: tuple[float, float] = (0, 255),
        seed: int | None = None,
        **kwargs: Any,
    ):
        # Without `autocast` the pixels stay in float32 under mixed precision until the end.
        super().__init__(autocast=False, **kwargs)
        self.operation = operation
        self.value_range = check_value_range(value_range)
        self.seed = seed
        self.stream = RandomStream(seed, name="stream")

    def call(self, images, training=True, parameters=None, return_parameters=False):
        images = check_images(images)
        height, width = images.shape[1:3]
        if parameters is None:
            shape = (ops.shape(images)[0], self.operation.draws)
            uniforms = self.stream.uniform(shape, advance=training is not False)
            parameters = self.operation.parameters(uniforms, height, width)
        unit = to_unit(functional.to_row_planar(images), self.value_range)
        unit = self.operation.apply(unit, parameters)
        low, high = self.value_range
        images = functional.from_row_planar(unit) * (high - low) + low
        images = ops.cast(images, self.compute_dtype)
        return (images, parameters) if return_parameters else images

    def get_config(self) -> dict:
        config = super().get_config()
        config.pop("autocast", None)
        config.update({"value_range": self.value_range, "seed": self.seed})
        config.update(vars(self.operation))
        return config


@keras.saving.register_keras_serializable(package="keras_ssl")
class RandomResizedCrop(_RandomLayer):
    """Crops a random part of each image and resizes it.

    The law is torchvision's: up to 10 times an area share `a ~ U(scale)` and a ratio
    `r = exp(U(log ratio))` are drawn; the crop has `w = round(sqrt(a H W r))` and
    `h = round(sqrt(a H W / r))` pixels; the first that fits is placed uniformly. If none fits, the
    largest central crop of an allowed ratio is taken.

    Args:
        size: Output (height, width), or one integer.
        scale: Range of the area share, in [0, 1].
        ratio: Range of width / height.
        interpolation: `"bilinear"`, `"bicubic"` or `"nearest"`.
        antialias: Whether to filter when shrinking.
        definition: `"torchvision"` or `"tensorflow"`; see `functional.resize_matrix`.
        value_range: Range of the pixel values, in and out.
        seed: Integer seed, or `None`.

    Call arguments:
        images: uint8 or float `(B, H, W, 3)`; one channel is repeated to three.
        training: `False` uses fixed draws and writes no state.
        parameters: What an earlier call returned, to apply the same again: here `{"boxes": (B, 4)}`
            of (top, left, height, width).
        return_parameters: Whether to return `(images, parameters)`.

    Raises:
        ValueError: For a range that is empty or out of bounds, and images that are not RGB.

    Example:

    >>> layer = RandomResizedCrop(size=24, scale=(0.2, 1.0), seed=0)
    >>> tuple(layer(np.zeros((2, 32, 32, 3), "uint8")).shape)
    (2, 24, 24, 3)

    Reference: Szegedy et al., "Going Deeper with Convolutions", 2015, section 6.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
        antialias: bool = True,
        definition: str = "torchvision",
        **kwargs: Any,
    ):
        super().__init__(
            operations.Crop(size, tuple(scale), tuple(ratio), interpolation, antialias, definition),
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_ssl")
class RandomHorizontalFlip(_RandomLayer):
    """Mirrors each image left-right with a probability.

    Args:
        probability: In [0, 1].
        value_range, seed: As `RandomResizedCrop`; so are the call arguments, with parameters
            `{"selected": (B,)}`.

    Example:

    >>> tuple(RandomHorizontalFlip(seed=0)(np.zeros((2, 8, 8, 3))).shape)
    (2, 8, 8, 3)
    """

    def __init__(self, probability: float = 0.5, **kwargs: Any):
        super().__init__(operations.Flip(probability), **kwargs)


@keras.saving.register_keras_serializable(package="keras_ssl")
class RandomColorJitter(_RandomLayer):
    """Changes brightness, contrast, saturation and hue by random amounts, in a random order.

    Factors are uniform in `[max(0, 1 - s), 1 + s]` for each strength `s`, the hue in
    `[-hue, hue]` turns. Values are clipped to the range after each of the four. See
    `functional.color_jitter` for the definitions.

    Args:
        brightness, contrast, saturation: Strengths >= 0.
        hue: In [0, 0.5] turns.
        probability: Share of the images that are changed.
        order: `"random"`, an order for each image, or a permutation of (0, 1, 2, 3) = (brightness,
            contrast, saturation, hue) for all.
        definition: `"torchvision"`, `"simclr_v2"` or `"simclr_v1"` (brightness is added, uniform in
            `[-s, s]`).
        value_range, seed: As `RandomResizedCrop`; so are the call arguments, with parameters
            `selected`, `brightness`, `contrast`, `saturation`, `hue` `(B,)` and `order` `(B, 4)`.

    Example:

    >>> layer = RandomColorJitter(0.4, 0.4, 0.2, 0.1, probability=0.8, seed=0)
    >>> tuple(layer(np.zeros((2, 8, 8, 3), "uint8")).shape)
    (2, 8, 8, 3)

    Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual
    Representations", 2020, appendix A.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        probability: float = 1.0,
        order: Any = "random",
        definition: str = "torchvision",
        **kwargs: Any,
    ):
        super().__init__(
            operations.Jitter(
                brightness, contrast, saturation, hue, probability, order, definition
            ),
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_ssl")
class RandomGrayscale(_RandomLayer):
    """Replaces an image by its luma in all three channels with a probability.

    Args:
        probability: In [0, 1].
        value_range, seed: As `RandomResizedCrop`; so are the call arguments, with parameters
            `{"selected": (B,)}`.

    Example:

    >>> tuple(RandomGrayscale(0.2, seed=0)(np.zeros((2, 8, 8, 3))).shape)
    (2, 8, 8, 3)
    """

    def __init__(self, probability: float = 0.2, **kwargs: Any):
        super().__init__(operations.Grayscale(probability), **kwargs)


@keras.saving.register_keras_serializable(package="keras_ssl")
class RandomGaussianBlur(_RandomLayer):
    """Blurs an image with a probability, by a Gaussian of a random width.

    Args:
        probability: In [0, 1].
        sigma: Range of the standard deviation in pixels.
        kernel_size: Taps; a float is a share of the height; `None` for no limit.
        padding: `"pil"` (PIL's approximation by three box blurs, which most references use),
            `"reflect"` (torchvision), `"zero"` (SimCLR) or `"edge"`.
        value_range, seed: As `RandomResizedCrop`; so are the call arguments, with parameters
            `selected` and `sigma`, `(B,)` each.

    Example:

    >>> tuple(RandomGaussianBlur(0.5, seed=0)(np.zeros((2, 8, 8, 3))).shape)
    (2, 8, 8, 3)
    """

    def __init__(
        self,
        probability: float = 0.5,
        sigma: tuple[float, float] = (0.1, 2.0),
        kernel_size: int | float | None = None,
        padding: str = "pil",
        **kwargs: Any,
    ):
        super().__init__(operations.Blur(probability, tuple(sigma), kernel_size, padding), **kwargs)


@keras.saving.register_keras_serializable(package="keras_ssl")
class RandomSolarize(_RandomLayer):
    """Inverts the values at or above a threshold, with a probability.

    Args:
        probability: In [0, 1].
        threshold: Share of the value range. The default inverts 8-bit values of 128 or more, as
            PIL does.
        value_range, seed: As `RandomResizedCrop`; so are the call arguments, with parameters
            `{"selected": (B,)}`.

    Example:

    >>> tuple(RandomSolarize(0.2, seed=0)(np.zeros((2, 8, 8, 3))).shape)
    (2, 8, 8, 3)

    Reference: Grill et al., "Bootstrap Your Own Latent", 2020, appendix B.
    """

    def __init__(self, probability: float = 0.2, threshold: float = 0.5, **kwargs: Any):
        super().__init__(operations.Solarize(probability, threshold), **kwargs)


@keras.saving.register_keras_serializable(package="keras_ssl")
class Normalize(keras.layers.Layer):
    """`((x - low) / (high - low) - mean) / std` for each channel.

    Args:
        mean: Per-channel means of values in [0, 1].
        std: Per-channel standard deviations, > 0.
        value_range: Range (low, high) of the pixel values.

    Example:

    >>> tuple(Normalize()(np.zeros((1, 2, 2, 3), "uint8")).shape)
    (1, 2, 2, 3)
    """

    def __init__(
        self,
        mean: Any = IMAGENET_MEAN,
        std: Any = IMAGENET_STD,
        value_range: tuple[float, float] = (0, 255),
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.mean, self.std = (tuple(float(v) for v in np.atleast_1d(s)) for s in (mean, std))
        self.value_range = check_value_range(value_range)
        if min(self.std) <= 0.0:
            raise ValueError(f"`std` must be positive. Received: std={std}")
        self.built = True

    def call(self, images):
        images = to_unit(ops.cast(images, "float32"), self.value_range)
        return ops.cast(functional.normalize(images, self.mean, self.std), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        config = super().get_config()
        config.pop("autocast", None)
        config.update({"mean": self.mean, "std": self.std, "value_range": self.value_range})
        return config
