"""Views of images, built on the device inside the compiled training step."""

from keras_ssl.augmentation import functional as functional
