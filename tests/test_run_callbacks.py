"""Checkpoints, log files, the progress line and TensorBoard."""

import io
import re
import sys
import time
import types

import keras
import numpy as np
import pytest
import toy

from keras_ssl.callbacks import (
    Checkpoint,
    KNNEvaluation,
    LogFile,
    Progress,
    TensorBoardLog,
    ViewsPlot,
    WandbLog,
)


class Stop(keras.callbacks.Callback):
    """Dies at the begin of an epoch, as a killed process would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_resumed_run_equals_uninterrupted(tmp_path):
    """Weights, queue, random streams, order of the images, log: all as if nothing had happened."""

    def fresh():
        keras.utils.set_random_seed(0)  # of the initial weights
        model = toy.moco()
        model.compile(epochs=4)
        return model

    images = toy.images()
    options = dict(batch_size=10, epochs=4, verbose=0)
    whole = fresh()
    whole.fit(images, callbacks=[LogFile(tmp_path / "whole.csv")], **options)

    run = tmp_path / "run"
    callbacks = [LogFile(run / "log.csv"), Checkpoint(run)]
    with pytest.raises(KeyboardInterrupt):
        fresh().fit(images, callbacks=[*callbacks, Stop(2)], **options)
    # The kill came while epoch 3 was written to the log, but not its checkpoint.
    columns = len(LogFile.read(run / "log.csv")[0])
    with open(run / "log.csv", "a", encoding="utf-8") as file:
        file.write("3" + ",99" * (columns - 1) + "\n")
    (run / ".unfinished-1.keras").write_bytes(b"half")

    path, done = Checkpoint.latest(run)
    kept = sorted(p.name for p in run.glob("checkpoint-*"))
    assert done == 2 and kept == ["checkpoint-00001.keras", "checkpoint-00002.keras"]
    resumed = keras.saving.load_model(path)
    resumed.fit(
        images,
        initial_epoch=done,
        callbacks=[LogFile(run / "log.csv"), Checkpoint(run)],
        **options,
    )
    for one, other in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(toy.to_numpy(one), toy.to_numpy(other), err_msg=one.path)
    for one, other in zip(resumed.optimizer.variables, whole.optimizer.variables, strict=True):
        np.testing.assert_array_equal(toy.to_numpy(one), toy.to_numpy(other), err_msg=one.path)
    assert LogFile.read(run / "log.csv") == LogFile.read(tmp_path / "whole.csv")
    assert Checkpoint.latest(run)[1] == 4


def test_checkpoints_kept_and_none(tmp_path):
    assert Checkpoint.latest(tmp_path / "nothing") is None
    callback = Checkpoint(tmp_path, keep=2)
    callback.set_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    for epoch in (1, 2, 10):
        callback.save(epoch)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-00002.keras",
        "checkpoint-00010.keras",
    ]
    assert Checkpoint.latest(tmp_path) == (tmp_path / "checkpoint-00010.keras", 10)
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoint(tmp_path, keep=0)


def test_a_new_run_in_the_folder_of_a_longer_one(tmp_path):
    """Refused before anything happens, unless it goes on from the last whole checkpoint."""

    def fit(model, epochs, initial_epoch=0):
        options = dict(batch_size=8, verbose=0, callbacks=[Checkpoint(tmp_path)])
        model.fit(toy.images(), epochs=epochs, initial_epoch=initial_epoch, **options)

    fit(toy.simclr(), epochs=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for begin in (0, 1, 2):
        model = toy.simclr()
        named = "checkpoint-00003.keras. .*latest.*initial_epoch=" + str(begin)
        with pytest.raises(ValueError, match=named):
            fit(model, epochs=4, initial_epoch=begin)
        assert int(model.seen_batches) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    (tmp_path / "checkpoint-00003.keras").write_bytes(before["checkpoint-00003.keras"][:-99])
    with pytest.warns(UserWarning, match="00003.keras is damaged"):
        path, done = Checkpoint.latest(tmp_path)
    fit(keras.saving.load_model(path), epochs=4, initial_epoch=done)
    assert Checkpoint.latest(tmp_path)[1] == 4


def test_the_file_just_written_is_never_removed(tmp_path):
    callback = Checkpoint(tmp_path, keep=1)
    callback.set_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    for epochs in (7, 2, 3):
        assert callback.save(epochs).exists()
    assert [p.name[-7:] for p in sorted(tmp_path.iterdir())] == ["3.keras", "7.keras"]


def test_log_file_takes_figures_that_come_later(tmp_path):
    log = LogFile(tmp_path / "log.csv")
    log.on_train_begin()
    for epoch, logs in enumerate([{"loss": 2.0}, {"loss": 1.5, "knn_top1": np.float32(0.25)}]):
        log.on_epoch_begin(epoch)
        log.on_epoch_end(epoch, logs)
    rows = LogFile.read(tmp_path / "log.csv")
    assert rows[1] == {"epoch": 2, "loss": 1.5, "knn_top1": 0.25}
    assert np.isnan(rows[0]["knn_top1"])
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_progress_line_says_what_matters():
    images, labels = toy.images(), np.arange(24) % 3
    out = io.StringIO()
    callbacks = [KNNEvaluation((images, labels), (images, labels), k=3), Progress(8, file=out)]
    history = toy.mae().fit(images, batch_size=8, epochs=2, verbose=0, callbacks=callbacks).history
    first, second = out.getvalue().splitlines()
    number = r"\d+(\.\d+)?"
    pattern = rf"epoch 1/2  loss {number}  k-NN {number}%  {number} images/s  \d+:\d\d left"
    assert re.fullmatch(pattern, first), first
    assert second.startswith("epoch 2/2") and second.endswith("done")
    assert min(history["images_per_second"]) > 0


def test_tensorboard_shows_curves_pictures_and_embeddings(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images = toy.images()
    views = ViewsPlot(images[:2], tmp_path / "pictures", zoom=1)
    board = TensorBoardLog(tmp_path / "board", [views], images[:5], list("abcde"))
    model = toy.mae()
    start = time.time()
    history = model.fit(images, batch_size=12, epochs=2, verbose=0, callbacks=[views, board])
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    losses = events.Scalars("loss")
    np.testing.assert_allclose([e.value for e in losses], history.history["loss"], rtol=1e-6)
    assert [e.step for e in losses] == [1, 2]
    assert start < losses[0].wall_time < losses[1].wall_time < time.time()  # the axis of hours
    pictures = events.Images("views")
    assert [e.step for e in pictures] == [1, 2]
    assert pictures[1].encoded_image_string == views.path.read_bytes()
    vectors = np.loadtxt(tmp_path / "board" / "embeddings.tsv", delimiter="\t")
    np.testing.assert_allclose(vectors, model.predict(images[:5], verbose=0), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "board" / "labels.tsv").read_text().split() == list("abcde")
    assert "sprites.png" in (tmp_path / "board" / "projector_config.pbtxt").read_text()


def test_weights_and_biases_gets_every_epoch(monkeypatch):
    """With a stand-in for the service, which the tests cannot reach."""
    sent = []
    run = types.SimpleNamespace(
        log=lambda values, step: sent.append((step, values)), finish=lambda: sent.append("finished")
    )
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: sent.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    callback = WandbLog("emoji", {"method": "mae"}, mode="offline")
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 1.0, "knn_top1": float("nan")})
    callback.on_train_end()
    assert sent == [
        {"project": "emoji", "config": {"method": "mae"}, "mode": "offline"},
        (1, {"loss": 1.0}),
        "finished",
    ]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        WandbLog("emoji")
