"""Data sets of tensorflow_datasets."""

import itertools
import os
import secrets
from typing import Any


def from_tfds(
    name_or_builder: Any,
    split: str = "train",
    image_size: int | tuple[int, int] = 224,
    *,
    image_key: str = "image",
    label_key: str | None = "label",
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int | None = None,
    interpolation: str = "bilinear",
    crop: bool = True,
    drop_remainder: bool = False,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
) -> Any:
    """Read a data set of `tensorflow_datasets` as batches of uint8.

    Args:
        name_or_builder: a name such as "cifar10" or "imagenette/160px", a folder with a prepared
            data set (where dataset_info.json lies), or a builder, e.g. `tfds.ImageFolder(path)`.
        split: "train", "test", "train[:10%]", ...
        image_size: int or (height, width) in pixels.
        image_key: name of the image feature; grey images become RGB, alpha is dropped.
        label_key: name of the label feature; None for no labels.
        batch_size: int, images a batch.
        shuffle: whether to shuffle, anew every epoch (in a buffer of 10,000 images). The order
            depends on `seed` and the epoch only; which epoch a pass is: as in `image_folder`.
        seed: int, for the order. None draws one.
        interpolation: "bilinear", "bicubic", "lanczos" (antialiased) or "nearest".
        crop: True takes the largest centred part of the right aspect ratio; False stretches.
        drop_remainder: whether to leave out a last, smaller batch.
        data_dir: where tensorflow_datasets keeps its data; None for its default.
        download: whether to download and prepare what is not there yet.

    Returns:
        A `tf.data.Dataset` of images (B, H, W, 3) uint8, or (images, labels (B,) int32), with the
        attribute `class_names` and, where it is shuffled, the method `set_epoch`.

    Raises:
        ImportError: if tensorflow_datasets or tensorflow is not installed.
        ValueError: if the data set is unknown or not prepared, or has no such split or feature.

    Example:

    >>> builder = tfds.ImageFolder("photos")  # photos/train/cat/1.jpg, ...
    >>> train = keras_ssl.datasets.from_tfds(builder, "train", image_size=96)
    >>> model.fit(train)
    """
    from keras_ssl.datasets.folder import Passes, _size

    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "from_tfds needs both: `pip install tensorflow-cpu tensorflow-datasets`."
        ) from error
    methods = {"nearest", "bilinear", "bicubic", "lanczos"}
    if interpolation not in methods:
        raise ValueError(
            f"interpolation must be one of {sorted(methods)}. Received: {interpolation=}"
        )
    builder = _builder(tfds, name_or_builder, data_dir)
    if download:
        builder.download_and_prepare()
    features = builder.info.features
    for key, role in ((image_key, "image_key"), (label_key, "label_key")):
        if key is not None and key not in (features or {}):
            raise ValueError(
                f"{builder.name} has no feature {key!r}; it has {sorted(features or {})}. "
                f"Received: {role}={key}"
            )
    if not isinstance(features[image_key], tfds.features.Image):
        raise ValueError(
            f"The feature {image_key!r} of {builder.name} is no image but "
            f"{type(features[image_key]).__name__}. Received: image_key={image_key}"
        )
    if not builder.info.splits:
        raise ValueError(
            f"{builder.name} is not prepared in {builder.data_path}. Pass download=True, or the "
            f"data_dir where it is. Received: name_or_builder={name_or_builder}, {data_dir=}"
        )
    try:
        dataset = builder.as_dataset(split=split, shuffle_files=False)
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"{builder.name} has no split {split!r}; it has {sorted(builder.info.splits)}. "
            f"Received: split={split}"
        ) from error
    size = _size(image_size)
    method = {"lanczos": "lanczos3"}.get(interpolation, interpolation)

    def convert(example):
        image = example[image_key]
        if image.dtype == tf.uint16:
            image = tf.cast(image, "float32") / 257.0
        image = image[..., :3]
        if image.shape[-1] is None or image.shape[-1] == 2:
            image = image[..., :1]
        if image.shape[-1] == 1:
            image = tf.repeat(image, 3, axis=-1)
        if crop:
            shape = tf.shape(image)
            scale = tf.minimum(shape[0] / size[0], shape[1] / size[1])
            height = tf.maximum(1, tf.cast(tf.round(size[0] * scale), "int32"))
            width = tf.maximum(1, tf.cast(tf.round(size[1] * scale), "int32"))
            top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
            image = image[top : top + height, left : left + width]
        image = tf.image.resize(image, size, method=method, antialias=True)
        image = tf.cast(tf.clip_by_value(tf.round(tf.cast(image, "float32")), 0, 255), "uint8")
        image.set_shape((*size, 3))
        if label_key is None:
            return image
        return image, tf.cast(example[label_key], "int32")

    passes = Passes()
    if shuffle:
        dataset = _shuffled(tf, dataset, secrets.randbits(31) if seed is None else seed, passes)
    dataset = dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=drop_remainder).prefetch(2)
    names = getattr(features[label_key], "names", None) if label_key is not None else None
    dataset.class_names = tuple(names or ())
    if shuffle:
        dataset.set_epoch = passes.set_epoch
    return dataset


def _shuffled(tf, dataset, seed, passes):
    """The data set in a new order every pass, drawn from the seed and the epoch of the pass."""

    def shuffled(epoch):
        # Of this function's graph, in place of the program's; not 0, which TensorFlow compares.
        tf.random.set_seed(1 + seed % 2**31)
        return dataset.shuffle(10_000, seed=epoch)

    epochs = tf.data.Dataset.from_generator(
        lambda: itertools.islice(passes, 1), output_signature=tf.TensorSpec((), "int64")
    )
    count = dataset.cardinality()
    return epochs.flat_map(shuffled).apply(tf.data.experimental.assert_cardinality(count))


def _builder(tfds, name_or_builder, data_dir):
    if hasattr(name_or_builder, "as_dataset"):
        return name_or_builder
    if not isinstance(name_or_builder, str | os.PathLike):
        raise ValueError(
            "name_or_builder must be a name, a prepared folder or a builder. "
            f"Received: name_or_builder={name_or_builder}"
        )
    path = os.path.expanduser(os.fspath(name_or_builder))
    if os.path.isfile(os.path.join(path, "dataset_info.json")):
        return tfds.builder_from_directory(path)
    if os.path.isdir(path):
        raise ValueError(
            "This folder holds no prepared data set (no dataset_info.json). For plain images use "
            f"image_folder. Received: name_or_builder={path}"
        )
    try:
        return tfds.builder(path, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(
            "tensorflow_datasets knows no data set of this name. "
            f"Received: name_or_builder={name_or_builder}"
        ) from error
