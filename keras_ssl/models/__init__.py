"""The methods, one file each."""

from keras_ssl.models.byol import BYOL
from keras_ssl.models.image_classifier import ImageClassifier
from keras_ssl.models.mae import MAE
from keras_ssl.models.moco import MoCo
from keras_ssl.models.simclr import SimCLR
from keras_ssl.models.ssl_task import SSLTask

__all__ = ["BYOL", "MAE", "MoCo", "ImageClassifier", "SSLTask", "SimCLR"]
