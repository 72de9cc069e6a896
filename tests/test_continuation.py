"""A run that another backend began goes on here as if it had never stopped."""

import random

import keras
import numpy as np
import pytest
import toy
from continuation import EPOCHS, LEARNING_RATES, SAVED_AFTER, WRITERS, SaveOnce, losses, read
from PIL import Image

from keras_ssl.datasets import from_tfds, image_folder
from keras_ssl.optimizers import sgd

FOREIGN = next(w for w in WRITERS if w != keras.backend.backend())


@pytest.mark.parametrize("method", sorted(LEARNING_RATES))
def test_the_loss_curve_goes_on(method, tmp_path):
    model, curve = read(FOREIGN, method, tmp_path)
    steps = 2 * SAVED_AFTER
    assert int(model.seen_batches) == int(model.optimizer.iterations) == steps
    rest = losses(model, method, initial_epoch=SAVED_AFTER)
    np.testing.assert_allclose(rest, curve[SAVED_AFTER:], rtol=1e-4, atol=1e-4)
    # The curve moves: a run that began anew, or stood still, would be far from it.
    assert len(curve) == EPOCHS and np.ptp(curve[SAVED_AFTER - 1 :]) > 5e-3
    if hasattr(model, "teacher_step"):
        assert int(model.teacher_step) == 2 * EPOCHS
    if method == "moco":
        assert int(model.queue.pointer) == 16 * EPOCHS % model.queue.size


class Pictures(keras.utils.PyDataset):
    """Batches that `fit` shuffles; `own` is an order of the dataset's own besides."""

    def __init__(self, pictures, own=False, **kwargs):
        super().__init__(**kwargs)
        self.batches = pictures.reshape(4, -1, *pictures.shape[1:])
        self.epoch = 0
        if own:
            self.set_epoch = lambda epoch: setattr(self, "epoch", epoch)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return (self.batches[(index + self.epoch) % 4],)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    (root / "train" / "all").mkdir(parents=True)
    for i, picture in enumerate(toy.images(16)):
        Image.fromarray(picture).save(root / "train" / "all" / f"{i:02}.png")
    return root


def tfds(photos):
    import tensorflow_datasets as tfds

    builder = tfds.ImageFolder(str(photos))
    return from_tfds(builder, image_size=20, batch_size=4, shuffle=True, seed=0)


def folder(photos, backend):
    return image_folder(photos, 20, batch_size=4, shuffle=True, seed=1, backend=backend)


DATA = {
    "arrays": lambda photos: toy.images(16),
    "batches": lambda photos: Pictures(toy.images(16)),
    "batches of threads": lambda photos: Pictures(toy.images(16), workers=2),
    "batches with an order": lambda photos: Pictures(toy.images(16), own=True),
    "folder, grain": lambda photos: folder(photos, "grain"),
    "folder, tf.data": lambda photos: folder(photos, "tf.data"),
    "tfds": tfds,
}


@pytest.mark.parametrize("kind", DATA)
def test_the_order_of_the_data_goes_on(kind, photos, tmp_path):
    """A run resumed with new data of the same kind ends in the weights of the uninterrupted one."""
    options = {"batch_size": 4} if kind == "arrays" else {}
    if kind == "folder, tf.data":
        options["steps_per_epoch"] = 4  # what the data says anyway
    keras.utils.set_random_seed(0)
    whole = toy.mae(seed=1)
    whole.compile(sgd(0.5))
    save = SaveOnce(tmp_path / "run.keras")
    whole.fit(DATA[kind](photos), epochs=5, verbose=0, callbacks=[save], **options)
    ends = []
    for start in (SAVED_AFTER, SAVED_AFTER - 1):  # with the order that comes, and another
        keras.utils.set_random_seed(99)  # another process, that has drawn otherwise
        random.seed(99)
        resumed = keras.saving.load_model(tmp_path / "run.keras")
        data, epochs = DATA[kind](photos), start + 5 - SAVED_AFTER
        resumed.fit(data, epochs=epochs, initial_epoch=start, verbose=0, **options)
        pairs = zip(whole.get_weights(), resumed.get_weights(), strict=True)
        ends.append(max(np.abs(one - two).max() for one, two in pairs))
    assert ends[0] == 0 < ends[1]


def test_an_epoch_may_be_shorter_than_a_dataset_with_an_order():
    model = toy.simclr(toy.vit(num_layers=1), augmenter=toy.crops())
    model.compile("sgd")
    model.fit(Pictures(toy.images(16), own=True), steps_per_epoch=2, verbose=0)
    assert int(model.seen_batches) == 2


@pytest.mark.parametrize("kind", ["folder, grain", "folder, tf.data", "tfds"])
def test_a_pass_is_the_next_epoch_or_the_one_that_is_said(kind, photos):
    def read(data):
        batches = [batch[0] if isinstance(batch, tuple) else batch for batch in data]
        return np.concatenate([np.asarray(batch) for batch in batches])

    data = DATA[kind](photos)
    assert len(data) == 4
    passes = [read(data) for _ in range(3)]
    assert not np.array_equal(passes[1], passes[2])
    assert sorted(map(bytes, passes[1])) == sorted(map(bytes, passes[2]))
    again = DATA[kind](photos)
    for epoch in (1, 1, 2):
        again.set_epoch(epoch)
        next(iter(again))  # a look takes nothing away
        np.testing.assert_array_equal(read(again), passes[epoch])
