"""All layouts by name, gathered from the files of their sources."""

from keras_ssl.converters import (
    dino,
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
    mae,
    timm,
    transformers_vit,
    transformers_vit_mae,
    transformers_dinov2,
    transformers_dinov3,
):
    LAYOUTS.update(_source.LAYOUTS)
