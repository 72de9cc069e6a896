"""Faults: what is not finite, kills, damaged and unwritable checkpoints, dying workers."""

import ctypes
import errno
import gc
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import types
import warnings

import keras
import numpy as np
import pytest
import toy
from PIL import Image
from test_momentum_teacher import byol, moco

from keras_ssl.callbacks import Checkpoint, LogFile, NonFiniteError
from keras_ssl.datasets import FolderImages
from keras_ssl.optimizers import sgd
from keras_ssl.runs import load_data
from keras_ssl.safe_files import check_room, replacing, sweep, whole_file
from keras_ssl.training.saving import file_size, saved_variables

ROOT = pathlib.Path(__file__).parent.parent
RNG = np.random.default_rng(0)
GOOD = [tuple(RNG.random((2, 12, 4, 4, 3)).astype("float32")) for _ in range(3)]


def spoilt(batch, value):
    views = [view.copy() for view in batch]
    views[1][5, 2, 3, 0] = value
    return tuple(views)


class Batches(keras.utils.PyDataset):
    """Batches of each epoch; the last ones again in all that follow."""

    def __init__(self, *epochs):
        super().__init__()
        self.epochs, self.epoch = epochs, -1  # Keras ends an epoch before the first

    def now(self):
        return self.epochs[min(max(self.epoch, 0), len(self.epochs) - 1)]

    def __len__(self):
        return len(self.now())

    def __getitem__(self, index):
        return (self.now()[index],)

    def on_epoch_end(self):
        self.epoch += 1


def state(model):
    return [toy.to_numpy(v).copy() for v in model.variables + model.optimizer.variables]


# === Not a number ===


@pytest.mark.parametrize("make", [byol, moco])
def test_a_skipped_batch_was_never_there(make):
    """Teacher, queue, batch norm, optimizer, counters: all as without the two bad batches."""
    runs = []
    for batches in (GOOD, [spoilt(GOOD[1], np.nan), *GOOD[:2], spoilt(GOOD[0], np.inf), GOOD[2]]):
        model = make()
        model.compile(sgd(0.1), non_finite="skip")
        model.teacher_total_steps.assign(9)  # one schedule for three batches and for five
        history = model.fit(Batches(batches), shuffle=False, verbose=0).history
        runs.append((state(model), history))
    (without, history), (skipped, other) = runs
    for one, two in zip(without, skipped, strict=True):
        np.testing.assert_array_equal(one, two)
    assert history["skipped_batches"] == [0] and other["skipped_batches"] == [2]
    assert history["loss"] == other["loss"] and np.isfinite(history["loss"]).all()


def test_a_bad_batch_stops_the_run_and_is_named(tmp_path):
    """The third batch of the second epoch; nothing is saved after it."""
    model = byol()
    model.compile(sgd(0.1), non_finite="stop")
    data = Batches([*GOOD, GOOD[0]], [*GOOD[:2], spoilt(GOOD[2], np.nan), GOOD[0]])
    callbacks = [LogFile(tmp_path / "log.csv"), Checkpoint(tmp_path)]
    with pytest.raises(NonFiniteError, match="batch 3 of epoch 2. The data of this batch") as e:
        model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
    assert (e.value.epoch, e.value.batch, e.value.in_data) == (2, 3, True)
    path, done = Checkpoint.latest(tmp_path)
    assert done == 1 and len(LogFile.read(tmp_path / "log.csv")) == 1
    # What was said is saved with the model, and may be changed for the next try.
    loaded = keras.saving.load_model(path)
    assert loaded.step_guard.action == "stop" and "skipped_batches" not in loaded.evaluate(
        Batches(GOOD), verbose=0, return_dict=True
    )
    loaded.watch_steps("skip")
    data = Batches([*GOOD[:2], spoilt(GOOD[2], np.nan), GOOD[0]])
    history = loaded.fit(data, shuffle=False, verbose=0).history
    assert history["skipped_batches"] == [1]


def test_a_step_that_explodes_is_named():
    """Weights overflow with finite data: the first bad step by NumPy, on a twin."""
    twin = byol()
    twin.compile(sgd(1e30, momentum=0.0))
    for first in range(1, 9):
        loss = twin.train_on_batch(GOOD[(first - 1) % 3])
        if not all(np.isfinite(x).all() for x in [loss, *map(toy.to_numpy, twin.weights)]):
            break
    model = byol()
    model.compile(sgd(1e30, momentum=0.0), non_finite="stop")
    with pytest.raises(NonFiniteError, match="lower the learning rate") as error:
        model.fit(Batches(GOOD * 3), shuffle=False, verbose=0)
    assert error.value.batch == first and not error.value.in_data


def test_statistics_that_explode_are_named():
    """The loss does not see them: training takes the statistics of the batch."""
    model = byol()
    model.compile(sgd(0.1), non_finite="stop")
    (variance, *_) = (v for v in model.backbone.variables if "moving_variance" in v.path)
    model.fit(Batches(GOOD), shuffle=False, verbose=0)
    variance.assign(np.full(variance.shape, np.inf))
    with pytest.raises(NonFiniteError, match="batch 1 of epoch 1.*data of this batch are finite"):
        model.fit(Batches(GOOD), shuffle=False, verbose=0)


def test_a_long_epoch_is_cut_short():
    """A look in every 50 steps: the bad step 2 of 300 ends the epoch long before its end."""
    model = byol()
    model.compile(sgd(0.1), non_finite="stop")
    data = Batches([GOOD[0], spoilt(GOOD[1], np.inf), *GOOD * 99])
    with pytest.raises(NonFiniteError, match="batch 2 of epoch 1"):
        model.fit(data, shuffle=False, verbose=0)
    assert int(model.seen_batches) < 120


def test_unknown_action():
    with pytest.raises(ValueError, match="non_finite='ignore'"):
        byol().compile(sgd(0.1), non_finite="ignore")


# === Checkpoints ===


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three checkpoints of a small model whose weights say which one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = byol()
    model.compile(sgd(0.1))
    model.train_on_batch(GOOD[0])
    callback = Checkpoint(folder, keep=3)
    callback.set_model(model)
    for done in (1, 2, 3):
        model.teacher_step.assign(done)
        callback.save(done)
    return folder


def copy(folder, to):
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return sorted(to.iterdir())


def test_a_damaged_checkpoint_is_passed_over(checkpoints, tmp_path):
    """Cut off, emptied, one bit turned anywhere: named, and the one before is taken."""
    one, two, three = copy(checkpoints, tmp_path)
    content = three.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}
    rng = np.random.default_rng(0)
    for place in rng.integers(200, len(content) - 200, 12):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged[f"bit at {place}"] = bytes(flipped)
    for name, data in damaged.items():
        three.write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            path, done = Checkpoint.latest(tmp_path)
        if done == 3:  # a byte that nobody reads
            assert int(keras.saving.load_model(path).teacher_step) == 3, name
        else:
            assert path == two and "checkpoint-00003.keras is damaged" in str(caught[0].message)
    assert int(keras.saving.load_model(two).teacher_step) == 2
    for path in (one, two):
        path.write_bytes(b"PK")
    three.write_bytes(content[:-1])
    with (
        pytest.raises(ValueError, match="None of the checkpoints is whole.*00003.*00001"),
        pytest.warns(UserWarning, match="00003.keras is damaged"),
    ):
        Checkpoint.latest(tmp_path)


def test_a_full_disk_leaves_the_last_good_one(checkpoints, tmp_path):
    """Files may not grow beyond a limit: every place where the writing can stop."""
    copy(checkpoints, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    callback = Checkpoint(tmp_path)
    callback.set_model(keras.saving.load_model(tmp_path / "checkpoint-00003.keras"))
    size = len(before["checkpoint-00003.keras"])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, size // 3, size // 2, size - 1000, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="epoch 4 cannot be written.*00003.keras is whole"):
                callback.save(4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    callback.save(4)
    assert Checkpoint.latest(tmp_path)[1] == 4


def test_a_log_and_a_preset_survive_a_full_disk(tmp_path, monkeypatch):
    log = LogFile(tmp_path / "log.csv")
    log.on_epoch_begin(0)
    log.on_epoch_end(0, {"loss": 1.0})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.on_epoch_end(1, {"loss": 2.0})
    assert len(LogFile.read(tmp_path / "log.csv")) == 1
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "old").write_text("old")
    for exchange in (True, False):  # without it, two renames
        if not exchange:
            monkeypatch.setattr("keras_ssl.safe_files._exchange", lambda *paths: False)
        with pytest.raises(OSError), replacing(tmp_path / "preset") as new:
            pathlib.Path(new, "half").write_text("half")
            full()
        assert not (tmp_path / "preset" / "half").exists() and (tmp_path / "preset/old").exists()
        with replacing(tmp_path / "preset") as new:
            pathlib.Path(new, f"new{exchange}").write_text("new")
    assert sorted(p.name for p in (tmp_path / "preset").iterdir()) == ["newFalse", "newTrue", "old"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "preset"]


def test_no_room_for_hdf5_is_an_error(tmp_path):
    """HDF5 that cannot write takes the process along: presets, and checkpoints when memory is
    short, must not let it begin."""
    code = f"""
import pathlib, resource, types
import keras, psutil, toy
from keras_ssl.callbacks import Checkpoint

folder = pathlib.Path({str(tmp_path)!r})
psutil.virtual_memory = lambda: types.SimpleNamespace(available=0)
model = toy.moco()
model.compile("sgd")
callback = Checkpoint(folder / "run")
callback.set_model(model)
attempts = [
    lambda: model.save_to_preset(folder / "preset"),
    lambda: model.save_to_preset(folder / "preset", storage_dtype="float16"),
    lambda: callback.save(2),
]
attempts[0]()
callback.save(1)
before = {{path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}}
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (0, 8192, 40960, 90112, 120000):
    for attempt in attempts:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            attempt()
            raise AssertionError("saved")
        except OSError as error:
            print(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert {{path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}} == before
        assert sorted(path.name for path in folder.iterdir()) == ["preset", "run"]
for attempt in attempts:
    attempt()
assert Checkpoint.latest(folder / "run")[1] == 2
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("was there before is whole") == 15
    assert f"folder={str(tmp_path)!r}, needed: " in done.stdout
    assert "checkpoint-00001.keras is whole" in done.stdout


@pytest.mark.parametrize("make", [toy.moco, toy.mae, toy.simclr])
def test_the_size_of_files_is_known_before(make, tmp_path):
    """Never less than what is written, and little more."""
    model = make(toy.vit(hidden_dim=256, num_layers=1))
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    parts = {
        "a.keras": [*saved_variables(model), *model.optimizer.variables],
        "preset/model.weights.h5": saved_variables(model.backbone),
        "preset/task.weights.h5": saved_variables(model, without=model.backbone),
    }
    model.save(tmp_path / "a.keras")
    model.save_to_preset(tmp_path / "preset")
    empty = file_size([])
    for name, variables in parts.items():
        written, expected = (tmp_path / name).stat().st_size, file_size(variables)
        assert written <= expected - empty < 1.05 * written + 2**13 * len(variables), name


def test_no_room_within_a_quota_or_on_the_disk(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path, 0, 2**20)
    with pytest.raises(
        OSError, match=f"No space.*folder='{tmp_path}', needed: .* free: "
    ) as caught:
        check_room(tmp_path, free // 2, free)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2**62))
    with pytest.raises(OSError, match="needed: "):  # as where a quota is smaller than the disk
        check_room(tmp_path, 100 * free)
    assert not list(tmp_path.iterdir())


def test_saving_takes_no_memory_that_stays(tmp_path):
    """Bytes that the C library has handed out, which nothing but a leak keeps."""
    fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

    class Counts(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in fields.split()]

    counts = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if counts is None:
        pytest.skip("needs glibc 2.33")
    counts.restype = Counts

    def in_use():
        gc.collect()
        return counts().uordblks + counts().hblkhd

    model = byol()
    model.compile("sgd")
    model.train_on_batch(GOOD[0])
    callback = Checkpoint(tmp_path)
    callback.set_model(model)
    for epoch in (1, 2, 3):
        callback.save(epoch)
    before = in_use()
    for epoch in range(4, 14):
        callback.save(epoch)
    assert (in_use() - before) / 10 < 20_000
    names = [v.path for v in model.variables]
    assert not any("while_saving" in name for name in names)


def test_what_killed_processes_left_is_swept(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, "keras_ssl")  # the file alone, without Keras
from safe_files import whole_file
with whole_file({str(tmp_path / "a")!r}) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    elsewhere = tmp_path / re.sub("unfinished-.*?-", "unfinished-another.host-", left.name)
    elsewhere.mkdir()
    with whole_file(tmp_path / "b") as path:
        path.write_text("whole")
        assert len(list(tmp_path.iterdir())) == 2  # ours and the other machine's
        sweep(tmp_path)  # a living process'
        assert path.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([elsewhere.name, "b"])


def test_random_kills_lose_nothing():
    """Runs killed at random moments and while saving, resumed: the same bits at the end."""
    kills = "2" if keras.backend.backend() == "torch" else "1"  # where a run compiles for long
    command = [sys.executable, "tools/kill_and_resume.py", "--kills", kills, "--methods", "moco"]
    done = subprocess.run(
        [*command, "--epochs", "2"], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert re.search(rf"^kills {kills} .* lost 0; .* 0$", done.stdout, re.M), (
        done.stdout + done.stderr[-3000:]
    )


# === Data ===


class Deadly(keras.utils.PyDataset):
    """One batch ends the worker process that makes it."""

    def __init__(self, marker, always):
        super().__init__(workers=2, use_multiprocessing=True, max_queue_size=2)
        self.marker, self.always = marker, always

    def __len__(self):
        return 6

    def __getitem__(self, index):
        # Not one of the first, which Keras asks for before the epoch.
        if index == 5 and (self.always or not self.marker.exists()):
            self.marker.touch()
            os.kill(os.getpid(), 9)
        return (tuple(view + index for view in GOOD[0]),)


def test_a_worker_that_dies(tmp_path):
    """Once: noticed, and the run is what it would have been. Every time: an error that says so."""
    whole = byol()
    whole.compile(sgd(0.1))
    batches = [tuple(view + i for view in GOOD[0]) for i in range(6)]
    whole.fit(Batches(batches), shuffle=False, verbose=0)
    model = byol()
    model.compile(sgd(0.1))
    with pytest.warns(UserWarning, match="data worker died while batch"):
        model.fit(Deadly(tmp_path / "died", always=False), shuffle=False, verbose=0)
    for one, two in zip(state(whole), state(model), strict=True):
        np.testing.assert_array_equal(one, two)
    # TensorFlow asks from a thread of its own and wraps what it hears.
    with pytest.raises(Exception, match="data workers die of batch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Deadly(tmp_path / "died", always=True), shuffle=False, verbose=0)


def test_one_broken_picture_among_many(tmp_path):
    """A whole header over damaged content: named and counted, its place taken by the next."""
    pictures = toy.images(200, size=8)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i:03d}.png")
    content = bytearray((tmp_path / "123.png").read_bytes())
    content[60:-30] = bytes(len(content) - 90)  # what comes after the header
    (tmp_path / "123.png").write_bytes(content)
    for memory_gb in (1.0, 1e-9):  # read at once, or batch by batch
        with pytest.warns(UserWarning, match="123.png cannot be read"):
            data = load_data(tmp_path, image_size=8, memory_gb=memory_gb)
            images = np.asarray(data.train[np.arange(len(data.train))])
        assert list(data.broken_files) == ["123.png"]
        good = np.delete(np.arange(200), 123)
        np.testing.assert_array_equal(images[good], pictures[good])
        np.testing.assert_array_equal(images[123], pictures[124])
    with pytest.raises(ValueError, match="123.png cannot be read.*errors='skip'"):
        FolderImages(tmp_path, 8, errors="raise")[:]


def test_what_replaces_a_broken_picture_is_of_its_part_and_class(tmp_path):
    pictures = toy.images(24, size=8)
    paths = [tmp_path / "ab"[i // 12] / f"{i:03d}.png" for i in range(24)]
    for path, picture in zip(paths, pictures, strict=True):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    options = dict(image_size=8, holdout=0.25)
    label = {picture.tobytes(): i // 12 for i, picture in enumerate(pictures)}
    clean = load_data(tmp_path, **options)
    parts = [{picture.tobytes() for picture in part} for part in (clean.train, clean.test)]
    assert [len(part) for part in parts] == [18, 6]
    for memory_gb in (1.0, 1e-9):
        for path in paths:
            whole = path.read_bytes()
            path.write_bytes(whole[:60] + bytes(len(whole) - 90) + whole[-30:])
            with pytest.warns(UserWarning, match=f"{path.name} cannot be read"):
                data = load_data(tmp_path, **options, memory_gb=memory_gb)
                train, test = (x[np.arange(len(x))] for x in (data.train, data.test))
            path.write_bytes(whole)
            assert list(data.broken_files) == [f"{path.parent.name}/{path.name}"]
            for images, labels, part in (
                (train, data.train_labels, parts[0]),
                (test, data.test_labels, parts[1]),
            ):
                contents = [image.tobytes() for image in images]
                assert set(contents) <= part
                assert [label[content] for content in contents] == labels.tolist()
    # The folder by itself: labels are those of the pictures that are there.
    paths[11].write_bytes(bytes(60).join([paths[11].read_bytes()[:60], whole[-30:]]))
    folder = FolderImages(tmp_path, 8)
    with pytest.warns(UserWarning, match="011.png cannot be read"):
        np.testing.assert_array_equal(folder[[11, 12]], pictures[[0, 12]])
    folder.replace_within(np.arange(24))
    with pytest.raises(ValueError, match="a/011.png cannot be read, nor any.*same part and class"):
        folder[11]
