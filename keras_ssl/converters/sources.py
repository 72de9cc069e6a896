"""All layouts by name, gathered from the files of their sources."""

from keras_ssl.converters import (
    barlow_twins,
    byol,
    dino,
    dinov2,
    mae,
    moco,
    openai_clip,
    resnet,
    simclr,
    timm,
    transformers_align,
    transformers_clip,
    transformers_dinov2,
    transformers_dinov3,
    transformers_dinov3_convnext,
    transformers_vit,
    transformers_vit_mae,
)
from keras_ssl.converters.layouts import Map

LAYOUTS: dict[str, dict[str, Map]] = {}
for _source in (
    barlow_twins,
    byol,
    dino,
    dinov2,
    mae,
    moco,
    openai_clip,
    resnet,
    simclr,
    timm,
    transformers_align,
    transformers_clip,
    transformers_dinov2,
    transformers_dinov3,
    transformers_dinov3_convnext,
    transformers_vit,
    transformers_vit_mae,
):
    LAYOUTS.update(_source.LAYOUTS)
