"""Pictures to pretrain on and, where there are labels, to evaluate with."""

import dataclasses
import os
import pathlib
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from keras_ssl.datasets import from_tfds, load_emoji
from keras_ssl.datasets.folder import FolderImages
from keras_ssl.datasets.sources import (
    ARCHIVE_SUFFIXES,
    DECODE_ERRORS,
    display_name,
    find_images,
    label_by_folder,
    open_image,
)
from keras_ssl.evaluation import label_fraction

_TRAIN = ("train", "training", "unlabeled")
_TEST = ("test", "testing", "val", "valid", "validation")


@dataclasses.dataclass
class RunData:
    """Pictures of a run in two parts. `fit` sees the pictures of `train`, and no label.

    Attributes:
        name: of the data.
        train: pictures, uint8 `(N, height, width, 3)`: an array, or `FolderImages` where they
            are larger than memory.
        train_labels: int32 `(N,)`, or None.
        test: pictures to measure on, or None.
        test_labels: int32, or None.
        class_names: tuple of str, empty without labels.
        test_masks: bool `(N, height, width)` of the pictures in `test`, or None.
        test_captions: str `(N,)`, or None.
        broken_files: of a folder or archive, {name: reason}; those found while training come in.
        fingerprint: what must stay as it is for the parts to stay the same: the number of
            pictures, and of a folder or archive a hash of the files' names and sizes.
    """

    name: str
    train: np.ndarray
    train_labels: np.ndarray | None = None
    test: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    test_masks: np.ndarray | None = None
    test_captions: np.ndarray | None = None
    broken_files: dict[str, str] = dataclasses.field(default_factory=dict)
    fingerprint: dict | None = None

    def __post_init__(self):
        if self.fingerprint is None:
            held_out = 0 if self.test is None else len(self.test)
            self.fingerprint = {"files": len(self.train) + held_out}

    def labelled(self, limit: int, seed: int = 0) -> tuple[tuple, tuple] | None:
        """`((images, labels), (images, labels))` to learn and to measure on; None without labels.

        Args:
            limit: most pictures to learn on, drawn in every class alike; a fifth of it to measure.
            seed: which ones.
        """
        if self.train_labels is None or self.test_labels is None:
            return None
        parts = []
        for images, labels, most in (
            (self.train, self.train_labels, limit),
            (self.test, self.test_labels, max(1, limit // 5)),
        ):
            rows = np.arange(len(labels))
            if len(labels) > most:
                rows = label_fraction(labels, most / len(labels), seed)
            parts.append((np.asarray(images[rows]), labels[rows]))
        return tuple(parts)

    def __repr__(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ", no labels"
        test = f", {len(self.test)} to measure on" if self.test is not None else ""
        side = "x".join(map(str, self.train.shape[1:3]))
        return f"<{self.name}: {len(self.train)} pictures {side}{test}{classes}>"


def default_image_size(source: str | os.PathLike) -> int:
    """32 for the small sets; for a folder what its pictures have, at most 224; 224 otherwise.

    The middle one of the shorter sides of up to 64 pictures, cut to a multiple of 16 pixels: small
    pictures that are made large cost much time and gain no detail.
    """
    name = os.path.basename(os.fspath(source)).lower()
    if name == "emoji" or name.startswith("cifar"):
        return 32
    path = pathlib.Path(source).expanduser()
    if not path.is_dir():
        return 224
    files, sides = find_images(path, None, 0).sources, []
    for file in files[:: max(1, len(files) // 64)]:
        try:
            with open_image(file) as picture:
                sides.append(min(picture.size))
        except DECODE_ERRORS:  # is named when the pictures are read
            continue
    return min(224, max(16, int(np.median(sides)) // 16 * 16)) if sides else 224


def load_data(
    source: str | os.PathLike,
    image_size: int | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    memory_gb: float = 4.0,
) -> RunData:
    """Pictures by a name or a path, in a part to train on and a part to measure on.

    | source | parts |
    | --- | --- |
    | `"emoji"` | the shipped pictures; things to measure on are in no style in training |
    | `"cifar10"`, `"cifar100"` | `keras.datasets`, downloaded if need be; its own test part |
    | folder or archive with `train/` and `test/` (or `val/`) | those |
    | folder or archive with a folder for each class | a share of each class is held out |
    | folder or archive without classes | all to train on |
    | `"tfds:<name>"` | `tensorflow_datasets`: its train, and test or validation |

    Args:
        source: what to load.
        image_size: side in pixels; None for `default_image_size`: 32 with emoji and CIFAR, that
            of a folder's pictures, at most 224. Pictures are cropped to a square and resized.
        holdout: share of each class that is held out where the data has no own part for it.
        seed: which ones are held out.
        memory_gb: more than that is not read into memory but decoded when it is needed.

    Returns:
        A `RunData`.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: there are no pictures, or the name is unknown.

    Example:

    >>> keras_ssl.runs.load_data("emoji", 32)
    <emoji: 7451 pictures 32x32, 2046 to measure on, 9 classes>
    """
    source = os.fspath(source)
    size = image_size or default_image_size(source)
    if source == "emoji":
        data = load_emoji(image_size=size, background=(255, 255, 255))
        train, test = data.split(test_fraction=0.2, seed=0)
        parts = (train.images, train.labels, test.images, test.labels, data.class_names)
        masks = test.alphas > 127
        return RunData("emoji", *parts, masks, test.captions)
    if source in ("cifar10", "cifar100") and not os.path.exists(source):
        return _keras_dataset(source, size)
    if source.startswith("tfds:"):
        return _from_tfds(source.removeprefix("tfds:"), size, memory_gb)
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        archives = ", ".join(ARCHIVE_SUFFIXES)
        raise FileNotFoundError(
            f"There is no such folder or archive ({archives}). Other data: emoji, cifar10, "
            f"cifar100, tfds:<name>. Received: {source}"
        )
    return _from_folder(path, size, holdout, seed, memory_gb)


def _keras_dataset(name, size):
    import keras

    (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    names = (
        "airplane automobile bird cat deer dog frog horse ship truck".split()
        if name == "cifar10"
        else map(str, range(100))
    )
    x, x_test = (_resized(part, size) for part in (x, x_test))
    labels = (part[:, 0].astype("int32") for part in (y, y_test))
    return RunData(name, x, next(labels), x_test, next(labels), tuple(names))


def _resized(images, size):
    if images.shape[1:3] == (size, size):
        return images
    resized = (Image.fromarray(image).resize((size, size)) for image in images)
    return np.stack([np.asarray(image) for image in resized])


def _from_tfds(name, size, memory_gb):
    parts = {}
    for part, splits in (("train", ("train",)), ("test", ("test", "validation"))):
        for split in splits:
            try:
                dataset = from_tfds(name, split, size, batch_size=256)
            except ValueError:
                if split == "train":
                    raise
                continue
            images, labels, used = [], [], 0
            for batch, batch_labels in dataset.as_numpy_iterator():
                used += batch.nbytes
                if used > memory_gb * 2**30:
                    raise ValueError(
                        f"{name} needs more than {memory_gb} GB at {size} pixels. Take a smaller "
                        "image size, allow more memory, or export it to a folder. "
                        f"Received: memory_gb={memory_gb}"
                    )
                images.append(batch)
                labels.append(batch_labels)
            parts[part] = np.concatenate(images), np.concatenate(labels)
            names = dataset.class_names
            break
    test = parts.get("test", (None, None))
    return RunData(name, *parts["train"], *test, tuple(names))


def _from_folder(path, size, holdout, seed, memory_gb):
    images = FolderImages(path, size, labels=None)
    rows = _parts(images.file_names)
    name = display_name(path.name).split(".")[0]
    if rows is not None:
        labels, classes = {}, {}
        for part, chosen in rows.items():
            names = [images.file_names[row] for row in chosen]
            labels[part], classes[part] = label_by_folder(names, "auto", str(path))
        if classes["train"] != classes["test"]:  # say, an unlabelled train part
            labels, classes = {"train": None, "test": None}, {"train": ()}
        train, test = rows["train"], rows["test"]
        y, y_test, classes = labels["train"], labels["test"], classes["train"]
    else:
        every = np.arange(len(images))
        try:
            y, classes = label_by_folder(images.file_names, "auto", str(path))
        except ValueError:  # split folders of other names
            y, classes = None, ()
        train, test, y_test = every, None, None
        if y is not None and len(classes) > 1 and np.bincount(y).min() > 1:
            test = label_fraction(y, holdout, seed)
            train = np.setdiff1d(every, test)
            y, y_test = y[train], y[test]
        else:
            y, classes = None, ()
    # What takes the place of a broken picture is of the same part, and of the same class.
    groups = np.full(len(images), -1)
    for part, part_labels, first in ((train, y, 0), (test, y_test, len(classes))):
        if part is not None:
            groups[part] = first + (0 if part_labels is None else part_labels)
    images.replace_within(groups)
    bytes_needed = int(np.prod(images.shape))
    if bytes_needed <= memory_gb * 2**30:
        parts = [None if part is None else images[part] for part in (train, test)]
    else:
        parts = [None if part is None else _Rows(images, part) for part in (train, test)]
    return RunData(
        name,
        *(parts[0], y, parts[1], y_test, classes),
        broken_files=images.broken_files,
        fingerprint=images.fingerprint(),
    )


def _parts(names):
    """Rows of the train and of the test folder, or None if the names have no such folders."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    while len({folder[:1] for folder in folders}) == 1 and min(map(len, folders)) > 1:
        if folders[0][0].lower() in _TRAIN + _TEST:
            break
        folders = [folder[1:] for folder in folders]
    tops = np.array([folder[0].lower() if folder else "" for folder in folders])
    rows = {
        part: np.flatnonzero(np.isin(tops, kinds))
        for part, kinds in (("train", _TRAIN), ("test", _TEST))
    }
    return rows if all(len(chosen) for chosen in rows.values()) else None


class _Rows:
    """Some rows of `FolderImages`, in a given order."""

    dtype = np.dtype("uint8")

    def __init__(self, images, rows):
        self.images, self.rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.images[self.rows[index]]
