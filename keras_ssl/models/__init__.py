"""The methods, one file each."""

from keras_ssl.models.image_classifier import ImageClassifier
from keras_ssl.models.mae import MAE
from keras_ssl.models.simclr import SimCLR
from keras_ssl.models.ssl_task import SSLTask

__all__ = ["MAE", "ImageClassifier", "SSLTask", "SimCLR"]
