"""What the lessons on collapse share: a short run that CollapseMonitor watches, and its curves."""

import os
import warnings

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import PROTOCOLS, small_views
from matplotlib.ticker import MaxNLocator

from keras_ssl.backbones import small_resnet
from keras_ssl.callbacks import CollapseMonitor

CURVES = {
    "loss": "loss",
    "projection_std": "projection_std (0: one point)",
    "feature_std": "feature_std (0: one point)",
    "effective_rank": "effective_rank (RankMe)",
    "mean_cosine": "mean_cosine (1: one point)",
}


def parts(data, seed: int) -> dict:
    """Backbone, views and seed that all models of a lesson have."""
    keras.utils.set_random_seed(seed)
    shape = data.train[0].shape[1:]
    return dict(
        backbone=small_resnet(shape, width=16), augmenter=small_views(shape, seed), seed=seed
    )


def watch(model, data, epochs: int, optimizer="auto", learning_rate=None, share: int = 3) -> dict:
    """Trains on every third picture; returns curves, warnings and k-NN accuracy after it.

    `max_cost=1`: the monitor looks after every epoch, however short they are here.
    """
    model.compile(optimizer, learning_rate=learning_rate)
    monitor = CollapseMonitor(data.test[0][:256], max_cost=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = data.train[0][::share]
        history = model.fit(
            images, batch_size=128, epochs=epochs, verbose=0, callbacks=[monitor]
        ).history
    said = [str(w.message) for w in caught if "collapse" in str(w.message)]
    return {"history": history, "said": said, "knn": knn(model, data)}


def knn(what, data) -> float:
    return PROTOCOLS["knn"].evaluate(what, train=data.train, test=data.test).top1


def resident_megabytes(which):
    """`"VmRSS"`: now; `"VmHWM"`: at most, since `forget_peak` (Linux)."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(which))


def forget_peak():
    """What the process holds now, in megabytes; its peak is counted anew from here (Linux)."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return resident_megabytes("VmRSS")


class Memory(keras.callbacks.Callback):
    """What training takes at most beyond what stays, after the first epoch, which compiles."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.before = forget_peak()

    def on_train_end(self, logs=None):
        self.megabytes = resident_megabytes("VmHWM") - self.before


def report(runs: dict[str, dict]) -> None:
    for name, run in runs.items():
        last = {key: run["history"][key][-1] for key in CURVES}
        values = ", ".join(f"{key} {value:.3f}" for key, value in last.items())
        print(f"{name}: k-NN {run['knn']:.3f}, {values}")
        for warning in run["said"]:
            print(f"    CollapseMonitor: {warning}")


def draw(runs: dict[str, dict], path: str) -> None:
    """One panel a curve, one line a run; a cross marks the epoch of the first warning."""
    figure, axes = plt.subplots(1, len(CURVES), figsize=(3.2 * len(CURVES), 3.2))
    for axis, (key, title) in zip(axes, CURVES.items(), strict=True):
        for name, run in runs.items():
            values = run["history"][key]
            epochs = range(1, len(values) + 1)
            (line,) = axis.plot(epochs, values, label=f"{name} (k-NN {run['knn']:.1%})")
            if run["said"] and key != "loss":
                first = int(run["said"][0].split()[2])  # "After epoch 3 the ..."
                axis.plot(first, values[first - 1], "x", color=line.get_color(), markersize=9)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key != "loss":
            axis.set_ylim(bottom=0, top=1.02 if key == "mean_cosine" else None)
    lines = dict(loc="lower center", ncols=len(runs), fontsize=9, frameon=False)
    figure.legend(*axes[0].get_legend_handles_labels(), **lines)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=80)
