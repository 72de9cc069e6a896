"""How pictures are made ready for a backbone, in keras-hub's form."""

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_ssl.augmentation import functional
from keras_ssl.backbones.vit import ViTBackbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _CentreCrop:
    """What our image converters have beside keras-hub's: the crop before resizing."""

    def __init__(self, *args, crop_fraction: float = 1.0, **kwargs):
        if not 0 < crop_fraction <= 1:
            raise ValueError(
                f"`crop_fraction` must lie in (0, 1]. Received: crop_fraction={crop_fraction}"
            )
        super().__init__(*args, **kwargs)
        self.crop_fraction = float(crop_fraction)

    def call(self, inputs):
        if self.crop_fraction < 1 and self.image_size is not None:
            if isinstance(inputs, dict):
                inputs = {**inputs, "images": self._crop(inputs["images"])}
            elif isinstance(inputs, (list, tuple)):
                inputs = type(inputs)(self._crop(np.asarray(image)) for image in inputs)
            else:
                inputs = self._crop(inputs)
        return super().call(inputs)

    def _crop(self, images):
        top, left, height, width = self.crop_box(*images.shape[-3:-1])
        return images[..., top : top + height, left : left + width, :]

    def crop_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`(top, left, height, width)` of what is kept of a picture, before resizing."""
        if height is None or width is None:
            raise ValueError(
                "With `crop_fraction` the size of the pictures must be known when the pipeline is "
                "traced. Batch pictures of one size, or set crop_fraction=1."
            )
        new_height, new_width = self.image_size
        kept_height, kept_width = height, width
        if self.crop_to_aspect_ratio:
            kept_height = min(height, int(width * new_height / new_width))
            kept_width = min(width, int(height * new_width / new_height))
        kept_height = max(1, round(kept_height * self.crop_fraction))
        kept_width = max(1, round(kept_width * self.crop_fraction))
        return (height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width

    def get_config(self):
        return {**super().get_config(), "crop_fraction": self.crop_fraction}


@keras.saving.register_keras_serializable(package="keras_ssl")
class ImageConverter(_CentreCrop, keras_hub.layers.ImageConverter):
    """`keras_hub.layers.ImageConverter` of our vision transformer: size, crop, scale and offset.

    Args:
        crop_fraction: share of the largest window of the wanted shape that is kept, from the
            centre: 224 / 256 is "resize the short side to 256, crop 224 from the centre", in one
            step. In `(0, 1]`.
        **kwargs: of `keras_hub.layers.ImageConverter`.
    """

    backbone_cls = ViTBackbone


@keras.saving.register_keras_serializable(package="keras_ssl")
class ResNetImageConverter(_CentreCrop, keras_hub.layers.ResNetImageConverter):
    """The same of keras-hub's ResNets; see `ImageConverter`."""


@keras.saving.register_keras_serializable(package="keras_ssl")
class ImagePreprocessor(keras_hub.models.ImageClassifierPreprocessor):
    """Preprocessor of our models; what `keras_hub.models.ImageClassifier` finds for the ViT."""

    backbone_cls = ViTBackbone
    image_converter_cls = ImageConverter


def image_shape_of(backbone) -> tuple[int | None, int | None, int]:
    """`(height, width, channels)` that a backbone was made for; sides may be `None`."""
    if not isinstance(backbone, keras.Model):
        raise ValueError(
            "`backbone` must be a keras.Model, for example a keras_ssl.backbones.ViTBackbone "
            f"or a keras_hub.models.Backbone. Received: backbone={backbone!r}"
        )
    shape = getattr(backbone, "image_shape", None) or backbone.input_shape[1:]
    if len(shape) != 3:
        raise ValueError(
            "`backbone` must take images (height, width, channels). "
            f"Received: a model that takes {tuple(shape)}"
        )
    return tuple(shape)


def default_preprocessor(
    backbone, augmenter=None, mean=None, std=None, interpolation="bicubic"
) -> ImagePreprocessor:
    """Centre crop to the aspect ratio, antialiased resize, `(x / 255 - mean) / std`.

    Args:
        backbone: gives the image size, where it has a fixed one.
        augmenter: gives mean and standard deviation, where it is a layer that normalises: what
            the model sees in `predict` must be scaled as what it was trained on.
        mean: per channel, for pixels in `[0, 1]`; ImageNet's where nobody says.
        std: per channel, for pixels in `[0, 1]`.
        interpolation: `"bicubic"` or `"bilinear"`.
    """
    shape = image_shape_of(backbone)
    size = tuple(shape[:2]) if shape[0] else None
    known = shape[2] == 3
    if mean is None:
        mean = getattr(augmenter, "mean", IMAGENET_MEAN if known else (0.5,) * shape[2])
    if std is None:
        std = getattr(augmenter, "std", IMAGENET_STD if known else (0.25,) * shape[2])
    return ImagePreprocessor(
        ImageConverter(
            image_size=size,
            scale=[1 / (255 * s) for s in std],
            offset=[-m / s for m, s in zip(mean, std, strict=True)],
            interpolation=interpolation,
            antialias=True,
        )
    )


def preprocessor_for(
    image_size: tuple[int, int] | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop_fraction: float = 1.0,
    crop_to_aspect_ratio: bool = True,
    factor: float = 1 / 255,
) -> ImagePreprocessor:
    """A preprocessor as released weights describe theirs: `(factor * x - mean) / std`.

    Args:
        image_size: `(height, width)`, or `None` for no resizing.
        mean: per channel.
        std: per channel.
        interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`; antialiased.
        crop_fraction: of `ImageConverter`.
        crop_to_aspect_ratio: crop to the wanted shape; else the picture is stretched.
        factor: from a pixel to the scale of mean and std.
    """
    return ImagePreprocessor(
        ImageConverter(
            image_size=image_size,
            scale=[factor / s for s in std],
            offset=[-m / s for m, s in zip(mean, std, strict=True)],
            interpolation=interpolation,
            antialias=True,
            crop_to_aspect_ratio=crop_to_aspect_ratio,
            crop_fraction=crop_fraction,
        )
    )


def hub_preprocessor(backbone, preprocessor: ImagePreprocessor):
    """A preprocessor in the classes that keras-hub looks for beside one of its own backbones."""
    if not isinstance(backbone, keras_hub.models.ResNetBackbone):
        return preprocessor
    converter = preprocessor.image_converter
    names = ("image_size", "scale", "offset", "interpolation", "antialias", "crop_to_aspect_ratio")
    options = {name: getattr(converter, name) for name in (*names, "crop_fraction")}
    return keras_hub.models.ResNetImageClassifierPreprocessor(ResNetImageConverter(**options))


def convert_images(images, converter):
    """What a `keras_hub.layers.ImageConverter` does, inside the compiled step.

    Crop to the aspect ratio from the centre, resize, scale, shift; with the matrix products of
    `keras_ssl.augmentation`, which are the same on every backend.
    """
    x = ops.cast(images, "float32")
    if converter.image_size is not None:
        if getattr(converter, "crop_fraction", 1.0) < 1:
            top, left, height, width = converter.crop_box(*images.shape[1:3])
            x = x[:, top : top + height, left : left + width]
        height, width = x.shape[1:3]
        new_height, new_width = converter.image_size
        if (height, width) != (new_height, new_width):
            if converter.crop_to_aspect_ratio:
                crop_height = min(height, int(width * new_height / new_width))
                crop_width = min(width, int(height * new_width / new_height))
                top, left = (height - crop_height) // 2, (width - crop_width) // 2
                x = x[:, top : top + crop_height, left : left + crop_width]
            x = functional.resize(
                x,
                (new_height, new_width),
                interpolation=converter.interpolation,
                antialias=converter.antialias,
            )
    if converter.scale is not None:
        x = x * ops.convert_to_tensor(np.asarray(converter.scale, "float32"))
    if converter.offset is not None:
        x = x + ops.convert_to_tensor(np.asarray(converter.offset, "float32"))
    return x
