"""How pictures are made ready for a backbone, in keras-hub's form."""

import keras
import keras_hub

from keras_ssl.backbones.vit import ViTBackbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@keras.saving.register_keras_serializable(package="keras_ssl")
class ImageConverter(keras_hub.layers.ImageConverter):
    """`keras_hub.layers.ImageConverter` of our vision transformer: size, crop, scale and offset."""

    backbone_cls = ViTBackbone


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
