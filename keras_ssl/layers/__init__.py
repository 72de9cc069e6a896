"""Layers that the methods share."""

from keras_ssl.layers.patches import gather_patches, patchify, unpatchify
from keras_ssl.layers.position_embedding import bicubic_matrix, sincos_position_embedding
from keras_ssl.layers.transformer import (
    MLP,
    DropPath,
    LayerScale,
    SelfAttention,
    SwiGLU,
    TransformerBlock,
)

__all__ = [
    "DropPath",
    "LayerScale",
    "MLP",
    "SelfAttention",
    "SwiGLU",
    "TransformerBlock",
    "bicubic_matrix",
    "gather_patches",
    "patchify",
    "sincos_position_embedding",
    "unpatchify",
]
