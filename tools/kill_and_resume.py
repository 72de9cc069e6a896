"""Kills pretraining runs at random moments and resumes them: is anything lost?

    KERAS_BACKEND=jax python tools/kill_and_resume.py --kills 30 --methods moco dino mae

For each method one run goes through uninterrupted. Others get SIGKILL again and again, every second
time within the saving of a checkpoint, and are resumed until they have ended. Each must end in the
same weights, optimizer, teacher, queue, centre, counters, random streams and log, to the last bit;
and after every kill the newest checkpoint must be whole. Prints `kills N (...), lost M`; exits with
1 if anything was lost.

The imports are done once: every run is a fork of a process that has computed nothing yet.
"""

import argparse
import io
import os
import pathlib
import random
import select
import signal
import sys
import tempfile
import time
import traceback
import zipfile

import h5py
import numpy as np
from PIL import Image

from keras_ssl.callbacks import Checkpoint, LogFile
from keras_ssl.runs import PretrainConfig, pretrain

KILLS_A_RUN = 6


def config_of(method, folder, output, epochs, precision) -> PretrainConfig:
    """A run that has all kinds of state and takes seconds."""
    small = {"mae": dict(decoder_hidden_dim=8, decoder_num_layers=1, decoder_num_heads=2)}
    small["dino"] = dict(output_dim=24, hidden_dim=12, bottleneck_dim=8)
    small["moco"] = dict(projection_dim=8, queue_size=40)
    return PretrainConfig(
        method=method,
        data=str(folder),
        output=str(output),
        epochs=epochs,
        batch_size=16,
        image_size=16,
        precision=precision,
        options=small.get(method, dict(projection_dim=8)),
        backbone_options=dict(hidden_dim=16, num_layers=1, num_heads=2),
        monitor=False,
        pictures_every=0,
        report=False,
    )


def start(config) -> tuple[int, int]:
    """The run in a process of its own; a byte comes through the pipe when a save begins or ends."""
    inlet, outlet = os.pipe()
    process = os.fork()
    if process:
        os.close(outlet)
        return process, inlet
    status = 1
    try:
        save = Checkpoint.save

        def told(self, epochs_done):
            os.write(outlet, b"(")
            path = save(self, epochs_done)
            os.write(outlet, b")")
            return path

        Checkpoint.save = told
        with open(os.path.join(config.output + ".said"), "a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        pretrain(config, resume=True, say=lambda line: None)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait_until(process, inlet, moment, save) -> tuple[bool, str]:
    """Until `moment`, or the begin of the save of that number; whether the run lives, and what the
    pipe said."""
    said = ""
    while True:
        left = None if moment is None else moment - time.perf_counter()
        if left is not None and left <= 0:
            return True, said
        if not select.select([inlet], [], [], left)[0]:
            continue
        byte = os.read(inlet, 1).decode()
        if not byte:  # the process has ended
            return False, said
        said += byte
        if save is not None and said.count("(") == save:
            return True, said


def run_through(config) -> tuple[float, float]:
    """An uninterrupted run: its seconds, and those of one save."""
    begin = time.perf_counter()
    process, inlet = start(config)
    wait_until(process, inlet, None, 1)
    save = time.perf_counter()
    os.read(inlet, 1)
    save = time.perf_counter() - save
    wait_until(process, inlet, None, None)
    check_ended(process, config)
    return time.perf_counter() - begin, save


def check_ended(process, config):
    if os.waitpid(process, 0)[1] != 0:
        sys.exit(pathlib.Path(config.output + ".said").read_text()[-3000:])


def kill_until_done(config, seconds, save_seconds, kills, rng) -> dict:
    """A run that is killed so many times and then ends. Counts of where the kills fell."""
    where = {"before the first save": 0, "between saves": 0, "while saving": 0}
    for i in range(kills):
        process, inlet = start(config)
        if i % 2 == 0:
            alive, said = wait_until(process, inlet, None, rng.choice([1, 1, 2]))
            time.sleep(rng.uniform(0, 1.1 * save_seconds))
        else:
            moment = time.perf_counter() + rng.uniform(0, seconds)
            alive, said = wait_until(process, inlet, moment, None)
        os.kill(process, signal.SIGKILL)
        ended = os.waitpid(process, 0)[1]
        while byte := os.read(inlet, 1):
            said += byte.decode()
        os.close(inlet)
        if ended != signal.SIGKILL:
            break  # it was through before
        place = "between saves" if "(" in said else "before the first save"
        where["while saving" if said.endswith("(") else place] += 1
        found = Checkpoint.latest(config.output)
        if found is None and ")" in said:
            sys.exit("A checkpoint that was saved is gone.")
    process, inlet = start(config)
    wait_until(process, inlet, None, None)
    os.close(inlet)
    check_ended(process, config)
    return where


def contents(run, epochs) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, by its path."""
    arrays = {}
    with zipfile.ZipFile(pathlib.Path(run) / f"checkpoint-{epochs:05d}.keras") as file:
        with h5py.File(io.BytesIO(file.read("model.weights.h5"))) as weights:
            weights.visititems(
                lambda name, item: (
                    arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
    return arrays


def difference(one, other, epochs) -> float:
    """The largest between two runs' last checkpoints; infinite if their logs differ."""
    a, b = contents(one, epochs), contents(other, epochs)
    losses = [[row["loss"] for row in LogFile.read(run / "log.csv")] for run in (one, other)]
    if a.keys() != b.keys() or losses[0] != losses[1]:
        return float("inf")
    return max(float(np.abs(a[k].astype("float64") - b[k]).max(initial=0)) for k in a)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="in all, over the methods")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after these")
    parser.add_argument("--methods", nargs="+", default=["moco", "dino", "mae"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=0.0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    total, lost, runs, worst = {}, 0, 0, 0.0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        (place / "photos").mkdir()
        for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (50, 20, 20, 3))):
            Image.fromarray(picture.astype("uint8")).save(place / "photos" / f"{i:02d}.png")
        for k, method in enumerate(options.methods):
            share = options.kills * (k + 1) // len(options.methods) - sum(total.values())
            whole = place / f"{method}-whole"
            photos, epochs, precision = place / "photos", options.epochs, options.precision
            times = run_through(config_of(method, photos, whole, epochs, precision))
            print(f"{method}: {times[0]:.1f} s uninterrupted, {1e3 * times[1]:.0f} ms a save")
            end = begin + 60 * options.minutes * (k + 1) / len(options.methods)
            while share > 0 and time.perf_counter() < end:
                runs += 1
                run = place / f"{method}-{runs}"
                config = config_of(method, photos, run, epochs, precision)
                where = kill_until_done(config, *times, min(share, KILLS_A_RUN), rng)
                share -= sum(where.values())
                for name, count in where.items():
                    total[name] = total.get(name, 0) + count
                found = difference(whole, run, epochs)
                worst = max(worst, found)
                lost += found > options.tolerance
                killed = sum(where.values())
                print(f"  run {runs}: killed {killed} times, differs by {found:g}", flush=True)
    listed = ", ".join(f"{count} {name}" for name, count in total.items())
    print(f"kills {sum(total.values())} ({listed}) of {runs} runs, lost {lost}", end="; ")
    print(f"largest difference to the uninterrupted runs {worst:g}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
