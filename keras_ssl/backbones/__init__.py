"""Backbones."""

from keras_ssl.backbones.bert import BertEncoder
from keras_ssl.backbones.convnext import CONVNEXT_SIZES, ConvNeXtBackbone
from keras_ssl.backbones.efficientnet import EFFICIENTNET_STAGES, EfficientNet
from keras_ssl.backbones.modified_resnet import MODIFIED_RESNET_SIZES, ModifiedResNet
from keras_ssl.backbones.resnet import RESNET_BLOCKS, ResNet, resnet
from keras_ssl.backbones.small_resnet import SmallResNet, small_resnet
from keras_ssl.backbones.text_transformer import TEXT_SIZES, TextTransformer
from keras_ssl.backbones.vit import VIT_SIZES, ViTBackbone

__all__ = [
    "BertEncoder",
    "CONVNEXT_SIZES",
    "ConvNeXtBackbone",
    "EFFICIENTNET_STAGES",
    "EfficientNet",
    "MODIFIED_RESNET_SIZES",
    "ModifiedResNet",
    "RESNET_BLOCKS",
    "ResNet",
    "SmallResNet",
    "TEXT_SIZES",
    "TextTransformer",
    "VIT_SIZES",
    "ViTBackbone",
    "resnet",
    "small_resnet",
]
