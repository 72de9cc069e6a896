"""Runs that one backend began and every backend continues: `vectors/continuation_*.tar.xz`.

A file holds, for each method, a model saved in the middle of a run (`<method>.keras`: weights,
teacher, queue, counters, random streams, optimizer) and `curves.json`: the losses of the whole run
on the backend that wrote it, never interrupted. There are two, so that every backend finds one that
another has written. To write them again:

    KERAS_BACKEND=torch python tests/continuation.py
    KERAS_BACKEND=jax python tests/continuation.py
"""

import io
import json
import pathlib
import tarfile

import keras
import numpy as np
from toy import METHODS, images, vit

FOLDER = pathlib.Path(__file__).parent / "vectors"
WRITERS = ("jax", "torch")
# The paper's optimizers with rates for so small a batch, so that every epoch changes the loss.
LEARNING_RATES = {
    "barlow_twins": 4.0,
    "byol": 4.0,
    "mae": 0.5,
    "moco": 5.0,
    "simclr": 4.0,
}
EPOCHS, SAVED_AFTER, BATCH = 6, 3, 8


def file_of(writer: str) -> pathlib.Path:
    return FOLDER / f"continuation_{writer}.tar.xz"


class Batches(keras.utils.PyDataset):
    """Two batches of prepared pictures, of two views each where the method takes two."""

    def __init__(self, method):
        super().__init__()
        pictures = images(2 * BATCH, size=20).astype("float32") / 127.5 - 1.0
        views = np.stack([pictures[:, :16, :16], pictures[:, 4:, 4:]])
        self.views = views[:1] if method == "mae" else views

    def __len__(self):
        return 2

    def __getitem__(self, index):
        batch = self.views[:, index * BATCH : (index + 1) * BATCH]
        return batch[0] if len(batch) == 1 else (tuple(batch),)


def new_model(method: str):
    keras.utils.set_random_seed(0)
    # The mean over patches differs from picture to picture; a small network's class token does
    # not, and batch normalisation would make rounding of it large.
    backbone = vit(hidden_dim=8, num_layers=1, patch_size=8)
    model = METHODS[method](backbone, pooling="mean", augmenter=None, preprocessor=None)
    model.compile(epochs=EPOCHS, learning_rate=LEARNING_RATES[method])
    return model


def losses(model, method: str, callbacks=(), **kwargs) -> list[float]:
    """The loss of every epoch up to the last."""
    options = dict(epochs=EPOCHS, shuffle=False, verbose=0, callbacks=list(callbacks), **kwargs)
    return model.fit(Batches(method), **options).history["loss"]


class SaveOnce(keras.callbacks.Callback):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == SAVED_AFTER:
            self.model.save(self.path)


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes the file of this process' backend."""
    writer, curves = keras.backend.backend(), {}
    target = folder / f"continuation_{writer}.tar.xz"
    with tarfile.open(target, "w:xz") as archive:
        for method in LEARNING_RATES:
            path = folder / f"{method}.keras"
            curves[method] = losses(new_model(method), method, [SaveOnce(path)])
            archive.add(path, path.name)
            path.unlink()
        about = {"backend": writer, "keras": keras.__version__, "losses": curves}
        content = json.dumps(about, indent=1).encode()
        member = tarfile.TarInfo("curves.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return target


def read(writer: str, method: str, folder: pathlib.Path):
    """The model as it was saved, and the losses of the uninterrupted run."""
    with tarfile.open(file_of(writer)) as archive:
        about = json.load(archive.extractfile("curves.json"))
        assert about["backend"] == writer
        archive.extract(f"{method}.keras", folder, filter="data")
    return keras.saving.load_model(folder / f"{method}.keras"), about["losses"][method]


if __name__ == "__main__":
    print(write(FOLDER))
