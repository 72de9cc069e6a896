"""All layouts by name, gathered from the files of their sources."""

from keras_ssl.converters import (
    dino,
    dinov2,
    mae,
    timm,
    transformers_dinov2,
    transformers_dinov3,
    transformers_vit,
    transformers_vit_mae,
)
from keras_ssl.converters.layouts import Map

LAYOUTS: dict[str, dict[str, Map]] = {}
for _source in (
    dino,
    dinov2,
    mae,
    timm,
    transformers_vit,
    transformers_vit_mae,
    transformers_dinov2,
    transformers_dinov3,
):
    LAYOUTS.update(_source.LAYOUTS)
