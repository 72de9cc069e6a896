"""Views of images, built on the device inside the compiled training step."""

from keras_ssl.augmentation import functional as functional
from keras_ssl.augmentation.layers import Normalize as Normalize
from keras_ssl.augmentation.layers import RandomColorJitter as RandomColorJitter
from keras_ssl.augmentation.layers import RandomGaussianBlur as RandomGaussianBlur
from keras_ssl.augmentation.layers import RandomGrayscale as RandomGrayscale
from keras_ssl.augmentation.layers import RandomHorizontalFlip as RandomHorizontalFlip
from keras_ssl.augmentation.layers import RandomResizedCrop as RandomResizedCrop
from keras_ssl.augmentation.layers import RandomSolarize as RandomSolarize
from keras_ssl.augmentation.pairs import PairedViews as PairedViews
from keras_ssl.augmentation.recipes import RECIPES as RECIPES
from keras_ssl.augmentation.views import Views as Views
