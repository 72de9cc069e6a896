"""What a training step needs beside its weights, and what makes it less.

    KERAS_BACKEND=jax python benchmarks/memory.py

SimCLR over a vision transformer (width 192, 8 blocks, 64 px in patches of 8), 32 pictures in two
views, each way in a fresh process. On JAX the memory is what the compiler allots to the step
beyond its arguments; on the others it is the growth of the process' peak from before the first
step to after the second.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

BATCH = 32
WAYS = {
    "as it is": {},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16"},
    "rematerialised blocks": {"rematerialize": True},
    "cached gradients, 8 at a time": {"micro_batch_size": 8},
    "both": {"rematerialize": True, "micro_batch_size": 8},
    "4 accumulated batches of 8": {"accumulate": 4},
}


def make(dtype="float32", rematerialize=False, micro_batch_size=None, accumulate=None):
    """The model, compiled, and a batch of views for it."""
    import keras
    import numpy as np

    from keras_ssl.backbones import ViTBackbone
    from keras_ssl.models import SimCLR

    backbone = ViTBackbone(
        image_shape=(64, 64, 3),
        patch_size=8,
        hidden_dim=192,
        num_layers=8,
        num_heads=3,
        rematerialize=rematerialize,
        dtype=dtype,
    )
    model = SimCLR(backbone, projection_dim=64, augmenter=None, preprocessor=None, seed=0)
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=accumulate)
    model.compile(optimizer, micro_batch_size=micro_batch_size)
    views = np.random.default_rng(0).random((2, BATCH // (accumulate or 1), 64, 64, 3), "float32")
    return model, tuple(views), accumulate or 1


def measure(way: str) -> dict:
    """Megabytes and seconds of one way, in this process."""
    import keras

    model, views, batches = make(**WAYS[way])
    if keras.backend.backend() == "jax":
        return {"megabytes": allotted(model, views), "seconds": seconds_of(model, views, batches)}
    before = resident()
    seconds = seconds_of(model, views, batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"megabytes": peak - before, "seconds": seconds}


def seconds_of(model, views, batches) -> float:
    """Of the second step of the whole batch; the first compiles."""
    for _ in range(2):
        begin = time.perf_counter()
        for _ in range(batches):
            model.train_on_batch(views)
        seconds = time.perf_counter() - begin
    return seconds


def resident() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def allotted(model, views) -> float:
    """JAX: temporary memory of the compiled step."""
    import jax
    import keras

    model.optimizer.build(model.trainable_variables)
    model._batch_size = len(keras.tree.flatten(views)[0])
    kinds = ("trainable_variables", "non_trainable_variables", None, "metrics_variables")
    state = tuple(
        [v.value for v in (getattr(model, kind) if kind else model.optimizer.variables)]
        for kind in kinds
    )
    step = jax.jit(model.train_step, donate_argnums=0).lower(state, (views,)).compile()
    return step.memory_analysis().temp_size_in_bytes / 2**20


def run(quick: bool = False) -> None:
    """Every way in a process of its own; prints the table."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    print(f"Memory of a step, {backend}, {BATCH} pictures in two views")
    first = None
    for way in list(WAYS)[: 2 if quick else None]:
        command = [sys.executable, __file__, "--way", way]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{way:32} {done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        first = first or found
        print(
            f"{way:32} {found['megabytes']:7.0f} MB ({found['megabytes'] / first['megabytes']:.2f})"
            f" {found['seconds']:6.2f} s ({found['seconds'] / first['seconds']:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=list(WAYS), help="only this one, in this process, as JSON")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way)))
    else:
        run(options.quick)
