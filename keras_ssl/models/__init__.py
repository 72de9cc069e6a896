"""The methods, one file each."""

from keras_ssl.models.align import ALIGN
from keras_ssl.models.barlow_twins import BarlowTwins
from keras_ssl.models.byol import BYOL
from keras_ssl.models.clip import CLIP
from keras_ssl.models.dino import DINO
from keras_ssl.models.dinov2 import DINOv2
from keras_ssl.models.image_classifier import ConvNeXtImageClassifier, ImageClassifier
from keras_ssl.models.mae import MAE
from keras_ssl.models.moco import MoCo
from keras_ssl.models.moco_v3 import MoCoV3
from keras_ssl.models.siglip import SigLIP
from keras_ssl.models.simclr import SimCLR
from keras_ssl.models.simsiam import SimSiam
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.models.vicreg import VICReg

__all__ = [
    "ALIGN",
    "BYOL",
    "BarlowTwins",
    "CLIP",
    "ConvNeXtImageClassifier",
    "DINO",
    "DINOv2",
    "ImageClassifier",
    "MAE",
    "MoCo",
    "MoCoV3",
    "SSLTask",
    "SigLIP",
    "SimCLR",
    "SimSiam",
    "VICReg",
]
