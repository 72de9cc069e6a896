"""ArrayRecord shards read by several workers: every picture once, whatever their number."""

import io
import pathlib

import keras
import numpy as np
import pytest
import toy
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from keras_ssl.datasets import BrokenImageWarning, RecordImages, record_batches

SHARDS, BATCH = (20, 7, 13), 8


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Picture `i` is of the colour `i`, in shards of unequal length."""
    folder, number, paths = tmp_path_factory.mktemp("records"), 0, []
    for shard, count in enumerate(SHARDS):
        path = folder / f"train-{shard:05d}.array_record"
        paths.append(write(path, map(encoded, range(number, number + count))))
        number += count
    return paths


def write(path, contents):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for content in contents:
        writer.write(content)
    writer.close()
    return str(path)


def encoded(number):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number, number, number)).save(buffer, "PNG")
    return buffer.getvalue()


def numbers(batch):
    (images,) = batch
    assert images.shape[1:] == (4, 4, 3) and images.dtype == np.uint8
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_share_every_batch(paths, workers, shuffle):
    options = dict(image_size=4, batch_size=BATCH, shuffle=shuffle, seed=3)
    whole = record_batches(paths, **options)
    parts = [record_batches(paths, **options, share=(i, workers)) for i in range(workers)]
    epochs = []
    for _ in range(2):
        assert len(whole) == sum(SHARDS) // BATCH and {len(part) for part in parts} == {len(whole)}
        seen = []
        for step in range(len(whole)):
            batch = [n for part in parts for n in numbers(part[step])]
            assert batch == numbers(whole[step])
            seen += batch
        assert sorted(seen) == list(range(sum(SHARDS)))  # each once, none lost
        epochs.append(seen)
        for reader in (whole, *parts):
            reader.on_epoch_end()
    assert (epochs[0] == epochs[1]) == (not shuffle)
    assert (epochs[0] == sorted(epochs[0])) == (not shuffle)
    resumed = record_batches(paths, **options, epoch=1)
    assert [n for step in range(len(resumed)) for n in numbers(resumed[step])] == epochs[1]


def test_what_cannot_be_read_is_refused(paths):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        RecordImages(["nowhere.array_record"], 4)
    with pytest.raises(ValueError, match="3 processes"):
        record_batches(paths, 4, BATCH, share=(0, 3))
    with pytest.raises(ValueError, match="only 40 records, fewer than one batch.*batch_size=41"):
        record_batches(paths, 4, 41)
    with pytest.raises(ValueError, match="errors must be"):
        RecordImages(paths, 4, errors="ignore")


def test_broken_records_are_named(paths, tmp_path):
    """No picture, an empty record, damaged bytes of a shard: the next one takes the place."""
    odd = write(tmp_path / "odd.array_record", [encoded(50), b"none", b"", encoded(53)])
    content = bytearray(pathlib.Path(paths[1]).read_bytes())  # the numbers 20 to 26
    at = content.index(encoded(23)[30:50])
    content[at + 5] ^= 0xFF
    hit = tmp_path / "hit.array_record"
    hit.write_bytes(content)
    with pytest.warns(BrokenImageWarning) as caught:
        images = RecordImages([str(hit), odd], 4)
        assert numbers((images[:],)) == [20, 21, 22, 24, 24, 25, 26, 50, 53, 53, 53]
        assert numbers((images[[9]],)) == [53]
    assert sorted(images.broken_records) == [(str(hit), 3), (odd, 1), (odd, 2)]
    assert len(caught) == 3 and "Record 1 of " + odd in "".join(str(w.message) for w in caught)
    batches = record_batches([odd], 4, 2, shuffle=False, errors="raise")
    with pytest.raises(ValueError, match="Record 1 of .*odd.array_record cannot be read"):
        batches[0]


@pytest.mark.parametrize("damage", ["cut off", "garbage", "empty"])
def test_broken_shards_are_named(paths, tmp_path, damage):
    whole = pathlib.Path(paths[0]).read_bytes()
    contents = {"cut off": whole[: len(whole) // 2], "garbage": b"x" * 5000, "empty": b""}
    broken = tmp_path / "broken.array_record"
    broken.write_bytes(contents[damage])
    with pytest.raises(ValueError, match="no ArrayRecord file, or.*broken.array_record"):
        RecordImages([paths[1], broken], 4)


def test_no_batch_to_train_on():
    class Nothing(keras.utils.PyDataset):
        def __len__(self):
            return 0

    model = toy.mae()
    with pytest.raises(ValueError, match="empty: it has no batch"):
        model.fit(Nothing(), verbose=0)
