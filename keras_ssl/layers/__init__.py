"""Layers that the methods share."""

from keras_ssl.layers.attention_pooling import AttentionPooling
from keras_ssl.layers.block_masking import BlockMasking, block_masks
from keras_ssl.layers.dino_head import DINOHead
from keras_ssl.layers.heads import ProjectionHead
from keras_ssl.layers.patches import gather_patches, patchify, unpatchify
from keras_ssl.layers.position_embedding import bicubic_matrix, sincos_position_embedding
from keras_ssl.layers.queue import FeatureQueue
from keras_ssl.layers.split_batch import apply_in_groups
from keras_ssl.layers.transformer import (
    MLP,
    DropPath,
    LayerScale,
    SelfAttention,
    SwiGLU,
    TransformerBlock,
)

__all__ = [
    "AttentionPooling",
    "MLP",
    "BlockMasking",
    "DINOHead",
    "DropPath",
    "FeatureQueue",
    "LayerScale",
    "ProjectionHead",
    "SelfAttention",
    "SwiGLU",
    "TransformerBlock",
    "apply_in_groups",
    "bicubic_matrix",
    "block_masks",
    "gather_patches",
    "patchify",
    "sincos_position_embedding",
    "unpatchify",
]
