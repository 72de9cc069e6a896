"""All layouts by name, gathered from the files of their sources."""

from keras_ssl.converters import mae, timm
from keras_ssl.converters.layouts import Map

LAYOUTS: dict[str, dict[str, Map]] = {}
for _source in (mae, timm):
    LAYOUTS.update(_source.LAYOUTS)
