"""Data: embedded pictures, image folders and archives, videos, pairs, tensorflow_datasets."""

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
from keras_ssl.datasets.pairs import ImagePairs
from keras_ssl.datasets.records import RecordImages, record_batches
from keras_ssl.datasets.scenes import moving_scene, paste_on_photos
from keras_ssl.datasets.tfds import from_tfds
from keras_ssl.datasets.video import read_video, read_videos, write_video

__all__ = [
    "EMOJI_GROUPS",
    "EMOJI_STYLES",
    "BrokenImageWarning",
    "EmojiDataset",
    "FolderImages",
    "ImageArrays",
    "ImagePairs",
    "RecordImages",
    "composite",
    "find_broken_images",
    "from_tfds",
    "image_folder",
    "load_arrays",
    "load_emoji",
    "moving_scene",
    "paste_on_photos",
    "read_video",
    "read_videos",
    "record_batches",
    "write_video",
]
