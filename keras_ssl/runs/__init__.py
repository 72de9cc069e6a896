"""Whole runs by name: what the command `keras-ssl` does, a function for each of its commands."""

from keras_ssl.runs.builders import (
    build_backbone,
    build_model,
    list_backbones,
    list_methods,
)
from keras_ssl.runs.config import PretrainConfig
from keras_ssl.runs.convert import convert
from keras_ssl.runs.data import RunData, default_image_size, load_data
from keras_ssl.runs.embeddings import (
    Embeddings,
    embed_folder,
    embed_pictures,
    embed_text,
    model_image_size,
    result_grid,
)
from keras_ssl.runs.evaluate import evaluate, load_model
from keras_ssl.runs.finetune import FinetuneResult, finetune
from keras_ssl.runs.pretrain import PretrainResult, pretrain

__all__ = [
    "Embeddings",
    "FinetuneResult",
    "PretrainConfig",
    "PretrainResult",
    "RunData",
    "build_backbone",
    "build_model",
    "convert",
    "default_image_size",
    "embed_folder",
    "embed_pictures",
    "embed_text",
    "evaluate",
    "finetune",
    "list_backbones",
    "list_methods",
    "load_data",
    "load_model",
    "model_image_size",
    "pretrain",
    "result_grid",
]
