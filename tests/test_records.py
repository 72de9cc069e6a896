"""ArrayRecord shards read by several workers: every picture once, whatever their number."""

import io

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from keras_ssl.datasets import RecordImages, record_batches

SHARDS, BATCH = (20, 7, 13), 8


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Picture `i` is of the colour `i`, in shards of unequal length."""
    folder, number, paths = tmp_path_factory.mktemp("records"), 0, []
    for shard, count in enumerate(SHARDS):
        paths.append(str(folder / f"train-{shard:05d}.array_record"))
        writer = ArrayRecordWriter(paths[-1], "group_size:1")
        for _ in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (6, 4), (number, number, number)).save(buffer, "PNG")
            writer.write(buffer.getvalue())
            number += 1
        writer.close()
    return paths


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
