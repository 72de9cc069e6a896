"""Does memory stay flat? A small run with all that a run does, epoch after epoch.

    KERAS_BACKEND=tensorflow python benchmarks/long_run.py --minutes 60 --output long_run

MoCo v2 (queue, teacher) over a small vision transformer on 1024 embedded pictures, with k-NN
accuracy, collapse monitor, log file and checkpoint after every epoch. Records the process' resident
memory, threads and open files after each, and prints what a line through the last four fifths says
per hour. Writes OUTPUT.json, and OUTPUT.png where matplotlib is installed.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import keras
import numpy as np

import keras_ssl
from keras_ssl import callbacks


class Memory(keras.callbacks.Callback):
    """Writes down what the process holds, and ends the run in time."""

    def __init__(self, minutes):
        super().__init__()
        self.minutes = minutes
        self.begin = time.perf_counter()
        self.rows = []

    def on_epoch_end(self, epoch, logs=None):
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        seconds = time.perf_counter() - self.begin
        self.rows.append(
            {
                "seconds": round(seconds, 1),
                "steps": int(self.model.optimizer.iterations),
                "megabytes": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                "threads": len(os.listdir("/proc/self/task")),
                "files": len(os.listdir("/proc/self/fd")),
                "loss": float(logs["loss"]),
            }
        )
        self.model.stop_training = seconds > 60 * self.minutes


def summary(rows) -> dict:
    """Growth over the last four fifths of the time, by least squares."""
    seconds, megabytes = (np.array([row[key] for row in rows]) for key in ("seconds", "megabytes"))
    late = seconds > seconds[-1] / 5
    slope, _ = np.polyfit(seconds[late] / 3600, megabytes[late], 1)
    return {
        "backend": keras.backend.backend(),
        "minutes": round(seconds[-1] / 60, 1),
        "epochs": len(rows),
        "steps": rows[-1]["steps"],
        "megabytes_after_a_fifth": round(megabytes[late][0], 1),
        "megabytes_at_the_end": round(megabytes[-1], 1),
        "megabytes_an_hour": round(slope, 1),
        "threads": [rows[0]["threads"], rows[-1]["threads"]],
        "files": [rows[0]["files"], rows[-1]["files"]],
    }


def plot(rows, said, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [row["seconds"] / 60 for row in rows]
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axes.plot(minutes, [row["megabytes"] for row in rows], lw=1.2)
    axes.set(xlabel="minutes", ylabel="resident memory (MB)", ylim=(0, None))
    axes.set_title(
        f"{said['backend']}: {said['epochs']} epochs, {said['steps']} steps, "
        f"{said['megabytes_an_hour']:+.1f} MB an hour",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("long_run"))
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    data = keras_ssl.datasets.load_emoji(image_size=32, background=(255, 255, 255))
    rows = np.random.default_rng(0).permutation(len(data.labels))[:1280]
    images, labels = data.images[rows], data.labels[rows]
    backbone = keras_ssl.backbones.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, hidden_dim=64, num_layers=2, num_heads=2
    )
    model = keras_ssl.models.MoCo(backbone, projection_dim=32, queue_size=512, seed=0)
    model.compile(epochs=100_000, non_finite="stop")
    memory = Memory(options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        watchers = [
            callbacks.KNNEvaluation((images[:512], labels[:512]), (images[1024:], labels[1024:])),
            callbacks.CollapseMonitor(images[1024:]),
            memory,
            callbacks.LogFile(os.path.join(folder, "log.csv")),
            callbacks.Checkpoint(folder),
        ]
        model.fit(images[:1024], batch_size=64, epochs=100_000, verbose=0, callbacks=watchers)
    said = summary(memory.rows)
    print(json.dumps(said))
    options.output.with_suffix(".json").write_text(json.dumps({**said, "rows": memory.rows}))
    try:
        plot(memory.rows, said, options.output.with_suffix(".png"))
    except ImportError:
        print("No picture: matplotlib is not installed.")


if __name__ == "__main__":
    main()
