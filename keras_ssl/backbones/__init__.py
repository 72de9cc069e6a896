"""Backbones."""

from keras_ssl.backbones.vit import VIT_SIZES, ViTBackbone

__all__ = ["VIT_SIZES", "ViTBackbone"]
