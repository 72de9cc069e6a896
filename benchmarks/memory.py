"""What a training step needs beside weights and optimizer, and what makes it less.

    python benchmarks/memory.py [--backends torch tensorflow jax]

SimCLR over a vision transformer (width 192, 8 blocks, 64 px in patches of 8), 16 pictures in two
views, each way in a fresh process: the growth of the process' peak in the second step (the first
compiles), and that step's seconds. Linux.
"""

import argparse
import gc
import json
import os
import pathlib
import subprocess
import sys
import time

BATCH = 16
WAYS = {
    "as it is": {},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16"},
    "rematerialised blocks": {"rematerialize": True},
    "cached gradients, 4 at a time": {"micro_batch_size": 4},
    "both": {"rematerialize": True, "micro_batch_size": 4},
    "4 accumulated batches of 4": {"accumulate": 4},
}
BACKENDS = ("torch", "tensorflow", "jax")


def make(dtype="float32", rematerialize=False, micro_batch_size=None, accumulate=None):
    """The model, compiled, a batch of views for it, and how many of them make a step."""
    import keras
    import numpy as np

    from keras_ssl.backbones import ViTBackbone
    from keras_ssl.models import SimCLR

    keras.config.set_dtype_policy(dtype)
    backbone = ViTBackbone(
        image_shape=(64, 64, 3),
        patch_size=8,
        hidden_dim=192,
        num_layers=8,
        num_heads=3,
        rematerialize=rematerialize,
    )
    model = SimCLR(backbone, projection_dim=64, augmenter=None, preprocessor=None, seed=0)
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=accumulate)
    model.compile(optimizer, micro_batch_size=micro_batch_size)
    views = np.random.default_rng(0).random((2, BATCH // (accumulate or 1), 64, 64, 3), "float32")
    return model, tuple(views), accumulate or 1


def measure(way: str) -> dict:
    """Megabytes and seconds of one way, in this process."""
    model, views, batches = make(**WAYS[way])

    def step():
        for _ in range(batches):
            model.train_on_batch(views)

    step()
    return growth(step)


def growth(step) -> dict:
    """Megabytes by which a function lets the process grow above what it held, and its seconds.

    Run it under `environment()`, where what is freed goes back to the system at once.
    """
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, begin = _status("VmRSS"), time.perf_counter()
    step()
    seconds = time.perf_counter() - begin
    return {"megabytes": _status("VmHWM") - before, "seconds": seconds}


def _status(key) -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def environment(**kwargs) -> dict:
    """Of a process in which freed arrays go back to the system at once, not to a pool."""
    settings = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "TF_ENABLE_ONEDNN_OPTS": "0"}
    return {**os.environ, **settings, **kwargs}


def allotted(model, data) -> float:
    """JAX: megabytes that the compiler allots to a step beyond its arguments."""
    import jax
    import keras

    model.optimizer.build(model.trainable_variables)
    model._batch_size = len(keras.tree.flatten(data)[0])
    kinds = ("trainable_variables", "non_trainable_variables", None, "metrics_variables")
    state = tuple(
        [v.value for v in (getattr(model, kind) if kind else model.optimizer.variables)]
        for kind in kinds
    )
    step = jax.jit(model.train_step, donate_argnums=0).lower(state, (data,)).compile()
    return step.memory_analysis().temp_size_in_bytes / 2**20


def measured(backend: str, way: str) -> dict:
    """What `measure` finds in a fresh process."""
    command = [sys.executable, __file__, "--way", way]
    variables = environment(KERAS_BACKEND=backend)
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def run(backends=BACKENDS) -> None:
    """Every way in a process of its own; prints the table."""
    print(f"MB (ratio) and seconds (ratio) of a step, {BATCH} pictures in two views")
    for backend in backends:
        first = None
        for way in WAYS:
            try:
                found = measured(backend, way)
            except RuntimeError as error:
                print(f"{backend:10} {way:30} {error}")
                continue
            first = first or found
            cells = (f"{found[k]:7.{d}f} ({found[k] / first[k]:.2f})" for k, d in PRINTED.items())
            print(f"{backend:10} {way:30}", *cells, flush=True)


PRINTED = {"megabytes": 0, "seconds": 2}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=list(WAYS), help="only this one, in this process, as JSON")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way)))
    else:
        run(options.backends)
