"""Optimizers of the papers."""

from keras_ssl.training.optimizers import LARS, AdamW, sgd

__all__ = ["LARS", "AdamW", "sgd"]
