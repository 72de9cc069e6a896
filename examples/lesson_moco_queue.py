"""Lesson: many negatives in a small batch. MoCo's queue beside SimCLR, which has its batch.

Every configuration is a process of its own, so that its memory can be measured: the highest
resident size while it trains, less that before the model was made. Batches of 16, 64 and 256;
MoCo's 4,096 negatives are the same for all of them.

Paper: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, section
4.1; Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020, table 3.
Data: the shipped emoji's training part (7,451 pictures, 32 px).
Command: KERAS_BACKEND=tensorflow python examples/lesson_moco_queue.py
Result (seed 0, 3 epochs; k-NN accuracy, memory for training in MB; raw pixels 48.9 %):
    batch      16              64              256
    SimCLR     50.0 %, 74      50.2 %, 82      51.4 %, 182
    MoCo       50.2 %, 74      51.0 %, 73      47.9 %, 133
MoCo reaches with a batch of 64 what SimCLR reaches with 256, in less than half of the memory; with
256 it has too few steps here. Differences of a point are within noise in so short a run. No
collapse, and CollapseMonitor says nothing. Plot: docs/images/lesson_moco_queue.png.
"""

import argparse
import json
import subprocess
import sys
import warnings

from common import load
from watching import forget_peak, knn, parts, plt, resident_megabytes

import keras_ssl

METHODS, BATCHES, QUEUE = ("SimCLR", "MoCo"), (16, 64, 256), 4096


def measure(method, batch_size, epochs, seed):
    """Trains one configuration in this process."""
    data = load("emoji")
    if method == "SimCLR":
        make, rate, options = keras_ssl.models.SimCLR, 1.0, dict(temperature=0.2)
    else:
        make, rate = keras_ssl.models.MoCo, 0.12
        # The key encoder must keep up in a short run; one group, to compare like with like.
        options = dict(queue_size=QUEUE, temperature=0.2, momentum=0.99, batch_norm_groups=1)
    before = forget_peak()  # what reading the pictures took at most is not counted
    model = make(projection_dim=64, **options, **parts(data, seed))
    model.compile(learning_rate=rate)
    monitor = keras_ssl.callbacks.CollapseMonitor(data.test[0][:256])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = dict(batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[monitor])
        history = model.fit(data.train[0], **fit).history
    memory = resident_megabytes("VmHWM") - before
    watched = {key: history[key][-1] for key in ("projection_std", "effective_rank")}
    said = [str(w.message) for w in caught if "collapse" in str(w.message)]
    return {"knn": knn(model, data), "memory": memory, "said": said, **watched}


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="docs/images/lesson_moco_queue.png")
parser.add_argument("--worker", nargs=2, metavar=("METHOD", "BATCH_SIZE"))
args = parser.parse_args()
if args.worker:
    method, batch_size = args.worker
    print(json.dumps(measure(method, int(batch_size), args.epochs, args.seed)))
    sys.exit()

results = {}
for method in METHODS:
    for batch_size in BATCHES:
        command = [sys.executable, __file__, "--epochs", str(args.epochs), "--seed", str(args.seed)]
        command += ["--worker", method, str(batch_size)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[method, batch_size] = result = json.loads(out.splitlines()[-1])
        print(method, batch_size, {k: v if k == "said" else round(v, 3) for k, v in result.items()})

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
for axis, key, title in zip(
    axes, ("knn", "memory"), ("k-NN accuracy", "memory for training (MB)"), strict=True
):
    for method in METHODS:
        axis.plot(BATCHES, [results[method, b][key] for b in BATCHES], "o-", label=method)
    axis.set_xscale("log", base=2)
    axis.set_xticks(BATCHES, BATCHES)
    axis.set_xlabel("batch size")
    axis.set_title(title, fontsize=10)
axes[0].legend()
axes[1].set_ylim(bottom=0)
figure.tight_layout()
figure.savefig(args.output, dpi=80)
