"""Trains a method on one device and on several, and measures how far the two runs are apart.

A program of its own, because the number of devices is fixed when a backend starts:
`KERAS_BACKEND=jax python tests/several_devices.py all` (or `moco simclr ...`) prints a line of JSON
for each method. JAX has eight virtual devices, TensorFlow two logical CPUs, PyTorch two processes.
"""

import json
import os
import sys

if __name__ == "__main__" and os.environ.get("KERAS_BACKEND") == "jax":
    # Of little optimised code, which takes less time to compile than it saves here.
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {flags}"

import contextlib
import subprocess
import tempfile
import time
import traceback

import keras
import keras_hub
import numpy as np
import toy

from keras_ssl.augmentation import Views
from keras_ssl.backbones import TextTransformer, small_resnet
from keras_ssl.callbacks import CollapseMonitor, KNNEvaluation
from keras_ssl.distribution import vit_layout_map
from keras_ssl.evaluation import patch_features
from keras_ssl.models import ALIGN, CLIP, SigLIP, SimCLR
from keras_ssl.optimizers import LARS, AdamW
from keras_ssl.training.replicas import process_share

STEPS, BATCH, MICRO_BATCH = 3, 16, 4
ZERO = 5e-5  # of the largest gradient: what rounding leaves of one that is zero
TWICE = ("simclr",)  # on two devices and on eight
SHARDED = ("mae", "dino")  # with the transformer's weights shared among devices too


def _text(**kwargs):
    options = dict(hidden_dim=8, num_heads=2, num_layers=1, context_length=6, vocabulary_size=99)
    return TextTransformer(**{**options, **kwargs})


def _align():
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=99, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, dropout=0.0
    )
    return ALIGN(toy.vit(num_layers=1, hidden_dim=8), bert, tokenizer=None, augmenter=None, seed=1)


def _convolutional():
    return small_resnet((16, 16, 3), 4)


def _one_view():
    return Views([{"crop": {"scale": (0.2, 1.0)}, "flip": {}}], size=16, seed=1)


class PreparedViews(keras.utils.PyDataset):
    """One batch of views that were cut before: compiles faster than `Views` inside the step."""

    def __init__(self, method):
        super().__init__()
        x = toy.images(BATCH, size=20).astype("float32") / 127.5 - 1.0
        # A new view each, as a random one would be.
        self.views = (x[:, :16, :16], x[:, 4:, 4:, ::-1])
        if method.startswith("dino"):
            self.views += (x[:, :8, :8], x[:, 8:16, 4:12])

    def __len__(self):
        return 1

    def __getitem__(self, index):
        share, count = process_share()
        own = slice(share * BATCH // count, (share + 1) * BATCH // count)
        return (tuple(view[own] for view in self.views),)


# Every method, and beside it what else is computed over a batch: batch normalisation in a backbone,
# whole and in parts; a bank of negatives; centring; stochastic depth of a fixed number of samples.
METHODS = {
    **toy.METHODS,
    "mae": lambda: toy.mae(toy.vit(num_layers=1), augmenter=_one_view()),
    "simclr": lambda: toy.simclr(toy.vit(num_layers=1), augmenter=toy.crops()),
    "simclr_bank": lambda: toy.simclr(_convolutional(), augmenter=toy.crops(), memory_bank_size=20),
    "simclr_cached": lambda: toy.simclr(toy.vit(num_layers=1), augmenter=toy.crops()),
    "moco": lambda: toy.moco(momentum=0.9),
    "moco_batch_norm": lambda: toy.moco(_convolutional(), momentum=0.9, batch_norm_groups=2),
    "moco_v3": lambda: toy.moco_v3(momentum=0.9),
    "byol": lambda: toy.byol(momentum=0.9),
    "byol_batch_norm": lambda: toy.byol(_convolutional(), momentum=0.9),
    "dino": lambda: toy.dino(momentum=0.9, head_batch_norm=True),
    "dinov2": lambda: toy.dinov2(momentum=0.9),
    "dinov2_centering": lambda: toy.dinov2(
        toy.vit(num_layers=1, use_mask_token=True, drop_path_rate=0.3, drop_path_subset=True),
        momentum=0.9,
        centering="centering",
        separate_head=True,
    ),
    "clip": lambda: CLIP(toy.vit(num_layers=1), _text(), 8, tokenizer=None, seed=1),
    "clip_cached": lambda: CLIP(toy.vit(num_layers=1), _text(), 8, tokenizer=None, seed=1),
    "siglip": lambda: SigLIP(
        toy.vit(num_layers=1, use_class_token=False),
        _text(causal=False),
        tokenizer=None,
        block_size=3,
        seed=1,
    ),
    "align": _align,
}


# What the suite runs. Every method is compiled twice on JAX and TensorFlow: there, one for each
# thing that is put together.
CHOSEN = {
    "jax": ["dino", "dinov2", "moco", "simclr"],
    "tensorflow": ["clip", "dino", "dinov2", "moco_batch_norm", "simclr", "vicreg"],
    "torch": sorted(METHODS),
}[keras.backend.backend()]


def data_of(method: str):
    if method in PREPARED:
        return PreparedViews(method)
    pictures = toy.images(BATCH, size=20)
    if not method.startswith(("clip", "siglip", "align")):
        return pictures
    # Some captions are missing and some are equal.
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 99, (BATCH, 6)).astype("int32")
    ids[3], ids[5] = 0, ids[9]
    if method == "align":  # without views: prepared pictures
        pictures = pictures[:, 2:18, 2:18].astype("float32") / 127.5 - 1.0
    return {"images": pictures, "token_ids": ids}


# Views are drawn inside the step here; everywhere on PyTorch, which compiles nothing.
DRAWN = ("mae", "moco", "moco_batch_norm", "dinov2", "clip", "clip_cached", "siglip", "align")
PREPARED = () if keras.backend.backend() == "torch" else {*METHODS} - {*DRAWN}


def trained(method: str, scope=contextlib.nullcontext) -> dict:
    """Losses, start and end of every variable of a run of three steps, and the first gradient.

    That is what the optimizer's momentum holds after one step: for SGD minus the learning rate
    times the gradient, without the rounding that weights would add; for AdamW a tenth of what
    clipping left of it; for LARS what decay and trust ratio made of it.
    """
    keras.utils.set_random_seed(0)
    with scope():
        model = METHODS[method]()
        if method in PREPARED:
            model.augmenter = None
        toy.fill(model, scale=0.2)
        if hasattr(model, "reset_teacher"):
            model.reset_teacher()
        # XLA compiles for one device only on TensorFlow: the same kernels in both runs.
        jit = "auto" if keras.backend.backend() == "jax" else False
        options = {"micro_batch_size": MICRO_BATCH} if method.endswith("cached") else {}
        model.compile(OPTIMIZERS.get(method, _sgd)(), jit_compile=jit, **options)
    start = [toy.to_numpy(v).copy() for v in model.variables]
    gradients = []

    def keep(epoch, logs):
        if epoch == 0:
            slots = [v for v in model.optimizer.variables if "momentum" in v.path]
            gradients.extend(toy.to_numpy(v).copy() for v in slots)

    history = model.fit(
        data_of(method),
        batch_size=None if method in PREPARED else BATCH,
        epochs=STEPS,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)],
        verbose=0,
    )
    return {
        "loss": np.array(history.history["loss"], "float64"),
        "gradients": gradients,
        "paths": [v.path for v in model.variables],
        "trainable": [v.trainable for v in model.variables],
        "start": start,
        "end": [toy.to_numpy(v) for v in model.variables],
    }


def distance(one: dict, many: dict) -> dict:
    """How far two runs are apart: losses, weights and other state, relative to what moved.

    A variable's difference is divided by its own move, or a hundredth of the largest move where
    its own is less: a bias before batch normalisation moves by rounding only. Counters must agree.
    """
    result = {"loss": float(np.max(np.abs(one["loss"] - many["loss"]) / np.abs(one["loss"])))}
    for kind in ("weights", "state"):
        floats, wrong = [], []
        for i, path in enumerate(one["paths"]):
            if one["trainable"][i] != (kind == "weights"):
                continue
            start, a, b = (np.asarray(v) for v in (one["start"][i], one["end"][i], many["end"][i]))
            if a.dtype.kind in "iu":
                if not np.array_equal(a, b):
                    wrong.append(path)
                continue
            a, b, start = (np.asarray(v, "float64") for v in (a, b, start))
            if a.size:
                floats.append((np.abs(a - b).max(), np.abs(a - start).max(), path))
        largest = max((move for _, move, _ in floats), default=0.0)
        worst = max(
            ((gap / max(move, 1e-2 * largest, 1e-30), path) for gap, move, path in floats),
            default=(0.0, None),
        )
        result[kind] = float("inf") if wrong else worst[0]
        result[f"{kind}_worst"] = wrong or worst[1]
        result[f"{kind}_move"] = largest
    result["losses"] = one["loss"].tolist()
    return {**result, **_first_gradients(one, many)}


def _first_gradients(one: dict, many: dict) -> dict:
    """The largest difference of a variable's first gradient, relative to that gradient's norm.

    Apart from those that are zero but for rounding, by their root mean square: `no_gradient`.
    """
    paths = [path for path, kept in zip(one["paths"], one["trainable"], strict=True) if kept]
    pairs = [
        (np.asarray(a, "float64"), np.asarray(b, "float64"))
        for a, b in zip(one["gradients"], many["gradients"], strict=True)
    ]
    sizes = [float(np.sqrt(np.mean(a**2))) for a, _ in pairs]
    named = list(zip(sizes, paths, pairs, strict=True))
    gaps = [
        (float(np.linalg.norm(a - b) / np.linalg.norm(a)), path)
        for size, path, (a, b) in named
        if size > ZERO * max(sizes)
    ]
    return {
        "gradients": max(gaps)[0],
        "gradients_worst": max(gaps)[1],
        "compared": len(gaps),
        "no_gradient": {
            path: size / max(sizes) for size, path, _ in named if size <= ZERO * max(sizes)
        },
    }


def _sgd():
    """Its moves are the gradients; Adam's first ones are signs, of what may be rounding only."""
    return keras.optimizers.SGD(0.02, momentum=0.9)


# Our own, with what they compute of all gradients together: norms to clip by, and trust ratios.
OPTIMIZERS = {
    "dino": lambda: AdamW(0.02, weight_decay=0.1, epsilon=0.01, clip_group_norm=0.05),
    "vicreg": lambda: LARS(
        0.1, weight_decay=1e-3, exclude_from_weight_decay=["bias$", "gamma$", "beta$"]
    ),
}


def attempt(*args):
    """A run, or the error that ended it: one method's does not hide the others."""
    try:
        return trained(*args)
    except Exception:
        return {"error": traceback.format_exc()}


# What several devices cannot do as one does: a word of the message, and the options of `compile`,
# the batch and the model.
_SGD = keras.optimizers.SGD
REFUSED = {"multiple": (lambda: {"optimizer": _SGD()}, BATCH - 1, toy.simsiam)}
if keras.backend.backend() == "tensorflow":
    for name, optimizer in {
        "gradient_accumulation_steps": lambda: _SGD(gradient_accumulation_steps=2),
        "global_clipnorm": lambda: _SGD(global_clipnorm=1.0),
        "mixed_bfloat16": lambda: keras.optimizers.LossScaleOptimizer(_SGD()),
    }.items():
        REFUSED[name] = (lambda make=optimizer: {"optimizer": make()}, BATCH, toy.simsiam)
    REFUSED["steps_per_execution"] = (
        lambda: {"optimizer": _SGD(), "steps_per_execution": 2},
        BATCH,
        toy.simsiam,
    )
if keras.backend.backend() == "torch":
    # Stochastic depth draws for the rows of whole batches.
    REFUSED["micro_batch_size"] = (
        lambda: {"optimizer": _SGD(), "micro_batch_size": MICRO_BATCH},
        BATCH,
        lambda: toy.simclr(toy.vit(drop_path_rate=0.5), augmenter=toy.crops()),
    )


def refusals(scope=contextlib.nullcontext) -> dict:
    """What a run that cannot be right says, by the word that should be in it."""
    messages = {}
    for word, (options, batch_size, make) in REFUSED.items():
        with scope():
            model = make()
            model.compile(**options())
        try:
            model.fit(toy.images(BATCH), batch_size=batch_size, verbose=0)
        except ValueError as error:
            messages[word] = str(error)
    return {"refused": messages}


class Batches(keras.utils.PyDataset):
    """Batches of so many rows."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return (toy.images(self.rows[index]),)


def _uneven_datasets() -> dict:
    """Calls with batches that the devices cannot share, by the word that the error should hold."""
    index, count = process_share()
    if count == 1:
        return {
            "evaluate": lambda model: model.evaluate(Batches(11), verbose=0),
            "fit": lambda model: model.fit(Batches(12, 11), shuffle=False, verbose=0),
        }
    generator = ((toy.images(4),) for _ in range(3 - index))
    return {
        "of 3 batches": lambda model: model.fit(Batches(*[4] * (3 - index)), verbose=0),
        "epochs 1 to 2": lambda model: model.fit(Batches(4), epochs=2 - index, verbose=0),
        "end of its batches": lambda model: model.fit(generator, verbose=0),
        "step of 4 rows": lambda model: model.fit(Batches(4, 4 - index), shuffle=False, verbose=0),
        "test step of 4": lambda model: model.evaluate(Batches(4 - index), verbose=0),
        "evaluate of 2": lambda model: model.evaluate(Batches(*[4] * (2 - index)), verbose=0),
    }


def _small_simclr():
    """One convolution and two fixed views: what compiles fastest."""
    inputs = keras.Input((20, 20, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    backbone = keras.Model(inputs, keras.layers.Conv2D(8, 5, strides=5)(x))
    return SimCLR(
        backbone,
        projection_dim=8,
        augmenter=lambda images, training: (images, keras.ops.flip(images, axis=1)),
        preprocessor=None,
        seed=1,
    )


def odd_rows(shares: int, scope=None) -> dict:
    """What a model makes of rows that `shares` devices cannot divide.

    Args:
        shares: how many devices share a batch.
        scope: where the model is made; `None` on one device, which is given what several take.
    """
    images, alone = toy.images(40), scope is None

    def make():
        keras.utils.set_random_seed(0)
        with contextlib.nullcontext() if alone else scope():
            model = _small_simclr()
            toy.fill(model, scale=0.2)
            jit = "auto" if keras.backend.backend() == "jax" else False
            model.compile(_sgd(), jit_compile=jit)
        return model

    def taken(rows):
        return images[: rows - rows % shares if alone else rows]

    model = make()
    labels = np.arange(9) % 2
    knn = KNNEvaluation((images[:5], labels[:5]), (images[5:9], labels[5:]), k=1)
    monitor = CollapseMonitor(images[:5])
    figures = {
        "predict 1": model.predict(images[:1], verbose=0).tolist(),
        "predict 5": model.predict(images[:5], verbose=0).tolist(),
        "patches": patch_features(model, images[:1]).tolist(),
        "evaluate": model.evaluate(taken(7), verbose=0),
    }
    history = model.fit(
        images[:37],
        batch_size=32 - 32 % shares if alone else None,
        validation_data=taken(7),
        shuffle=False,
        callbacks=[knn, monitor],
        verbose=0,
    ).history
    figures.update(history)
    if alone:
        return figures
    refused = {}
    calls = {"at least one picture": lambda model: model.evaluate(images[:1], verbose=0)}
    for word, call in {**calls, **_uneven_datasets()}.items():
        try:
            call(make())  # on JAX Keras leaves a model without variables where a step failed
        except ValueError as error:
            refused[word] = str(error)
    return {"figures": figures, "refused": refused}


def on_jax(methods, whole):
    """On eight devices; some on two as well, and some with divided weights on two by two. The
    suite takes one of these for each method: two devices, divided weights, or else eight."""
    distribution = keras.distribution
    devices = distribution.list_devices()
    for method in methods:
        distribution.set_distribution(None)
        one = attempt(method)
        counts = (2, 8) if method in TWICE else (8,)
        if not whole:
            counts = () if method in SHARDED else counts[:1]
        for count in counts:
            distribution.set_distribution(distribution.DataParallel(devices=devices[:count]))
            yield method, f"{count} devices", one, attempt(method)
        if method in SHARDED:
            mesh = distribution.DeviceMesh((2, 2), ["batch", "model"], devices[:4])
            distribution.set_distribution(
                distribution.ModelParallel(layout_map=vit_layout_map(mesh), batch_dim_name="batch")
            )
            yield method, "2 x 2 devices", one, attempt(method)
    distribution.set_distribution(distribution.DataParallel(devices=devices[:8]))
    yield "refusals", "8 devices", {}, refusals()
    distribution.set_distribution(None)
    one = odd_rows(3)
    distribution.set_distribution(distribution.DataParallel(devices=devices[:3]))
    yield "odd rows", "3 devices", one, odd_rows(3, contextlib.nullcontext)


def on_tensorflow(methods, whole):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration() for _ in range(2)]
    tf.config.set_logical_device_configuration(cpu, two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for method in methods:
        yield method, "2 replicas", attempt(method), attempt(method, strategy.scope)
    yield "refusals", "2 replicas", {}, refusals(strategy.scope)
    yield "odd rows", "2 replicas", odd_rows(2), odd_rows(2, strategy.scope)


def on_torch(methods, whole):
    """This process trains alone, then together with another that runs the same program."""
    import torch.distributed as distributed

    rank, folder = int(os.environ.get("RANK", 0)), os.environ.get("MEETING_PLACE")
    other = None
    if folder is None:
        folder = tempfile.mkdtemp()
        environment = {**os.environ, "RANK": "1", "MEETING_PLACE": folder}
        other = subprocess.Popen([sys.executable, __file__, *methods], env=environment)
    alone = {method: attempt(method) for method in methods if rank == 0}
    one = odd_rows(2) if rank == 0 else None
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    for method in methods:
        many = attempt(method)
        if rank == 0:
            yield method, "2 processes", alone[method], many
    refused = refusals()
    both = [None, None]
    distributed.all_gather_object(both, odd_rows(2, contextlib.nullcontext))
    if rank == 0:
        yield "refusals", "2 processes", {}, refused
        for many in both:
            yield "odd rows", "2 processes", one, many
    distributed.destroy_process_group()
    if other is not None and other.wait():
        raise RuntimeError(f"The other process ended with {other.returncode}.")


def main(methods, whole=True):
    start = time.time()
    run = {"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}[keras.backend.backend()]
    for method, devices, one, many in run(methods, whole):
        line = {"method": method, "devices": devices, "seconds": round(time.time() - start, 1)}
        error = one.get("error") or many.get("error")
        if method == "refusals":
            line.update(many)
        elif method == "odd rows":
            line.update({"one": one, **many})
        else:
            line.update({"error": error} if error else distance(one, many))
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    named = sorted(METHODS) if sys.argv[1:] == ["all"] else sys.argv[1:]
    main(named or CHOSEN, whole=bool(named))
