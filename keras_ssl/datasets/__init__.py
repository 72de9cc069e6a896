"""Data: embedded pictures, image folders and archives, tensorflow_datasets."""

from keras_ssl.datasets.emoji import (
    EMOJI_GROUPS,
    EMOJI_STYLES,
    EmojiDataset,
    composite,
    load_emoji,
)
from keras_ssl.datasets.folder import (
    BrokenImageWarning,
    FolderImages,
    ImageArrays,
    find_broken_images,
    image_folder,
    load_arrays,
)
from keras_ssl.datasets.scenes import paste_on_photos
from keras_ssl.datasets.tfds import from_tfds

__all__ = [
    "EMOJI_GROUPS",
    "EMOJI_STYLES",
    "BrokenImageWarning",
    "EmojiDataset",
    "FolderImages",
    "ImageArrays",
    "composite",
    "find_broken_images",
    "from_tfds",
    "image_folder",
    "load_arrays",
    "load_emoji",
    "paste_on_photos",
]
