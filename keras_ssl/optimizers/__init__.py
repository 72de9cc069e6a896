"""Optimizers of the papers."""

from keras_ssl.training.optimizers import LARS, AdamW

__all__ = ["LARS", "AdamW"]
