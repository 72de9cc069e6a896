"""Losses: pure functions of embeddings, usable alone."""

from keras_ssl.losses.barlow_twins import BarlowTwinsLoss
from keras_ssl.losses.byol import BYOLLoss
from keras_ssl.losses.clip import CLIPDistillationLoss, CLIPLoss
from keras_ssl.losses.dino import Center, DINOLoss, mean_entropy
from keras_ssl.losses.ibot import IBOTPatchLoss, masked_patches, patch_weights
from keras_ssl.losses.info_nce import InfoNCELoss
from keras_ssl.losses.koleo import KoLeoLoss
from keras_ssl.losses.negative_cosine import NegativeCosineLoss
from keras_ssl.losses.nt_xent import NTXentLoss
from keras_ssl.losses.siglip import SigLIPLoss
from keras_ssl.losses.sinkhorn import sinkhorn_knopp
from keras_ssl.losses.vicreg import VICRegLoss

__all__ = [
    "BYOLLoss",
    "BarlowTwinsLoss",
    "CLIPDistillationLoss",
    "CLIPLoss",
    "Center",
    "DINOLoss",
    "IBOTPatchLoss",
    "InfoNCELoss",
    "KoLeoLoss",
    "NTXentLoss",
    "NegativeCosineLoss",
    "SigLIPLoss",
    "VICRegLoss",
    "masked_patches",
    "mean_entropy",
    "patch_weights",
    "sinkhorn_knopp",
]
