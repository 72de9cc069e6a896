"""Weights in and out of the layouts of transformers, timm and the papers' repositories."""

from keras_ssl.converters.build import from_official as from_official
from keras_ssl.converters.build import official_preprocessing as official_preprocessing
from keras_ssl.converters.build import recognise as recognise
from keras_ssl.converters.convert import LoadReport as LoadReport
from keras_ssl.converters.convert import load_official as load_official
from keras_ssl.converters.convert import official_entries as official_entries
from keras_ssl.converters.convert import to_official as to_official
from keras_ssl.converters.files import read_state_dict as read_state_dict
from keras_ssl.converters.folders import from_timm as from_timm
from keras_ssl.converters.folders import from_transformers as from_transformers
from keras_ssl.converters.folders import to_transformers as to_transformers
from keras_ssl.converters.sources import LAYOUTS as LAYOUTS
