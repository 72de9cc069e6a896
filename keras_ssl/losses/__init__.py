"""Losses: pure functions of embeddings, usable alone."""

from keras_ssl.losses.nt_xent import NTXentLoss

__all__ = ["NTXentLoss"]
