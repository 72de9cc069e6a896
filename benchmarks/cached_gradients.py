"""What a training step of CLIP and SigLIP needs beside its weights, against the batch.

    KERAS_BACKEND=jax python benchmarks/cached_gradients.py [--batches 64 512 2048 8192]

A vision transformer of 2 blocks (width 64, 32 px in patches of 4) and a text transformer of 1
(16 ids), each case in a fresh process: the whole batch, or 64 pairs at a time with cached gradients
(`compile(micro_batch_size=64)`). On JAX the memory is what the compiler allots to the step beyond
its arguments; on the others it is the growth of the process' peak in the second step.
"""

import argparse
import json
import os
import subprocess
import sys

from memory import allotted, environment, growth

WAYS = {
    "CLIP, whole": ("CLIP", None),
    "CLIP, 64 at a time": ("CLIP", 64),
    "SigLIP, 64 at a time": ("SigLIP", 64),
}
BATCHES = (64, 512, 2048)


def make(method: str, micro_batch_size: int | None, batch: int):
    """The model, compiled, and a batch for it."""
    import keras
    import numpy as np

    from keras_ssl import models
    from keras_ssl.backbones import TextTransformer, ViTBackbone

    sizes = dict(hidden_dim=64, num_heads=2)
    model = getattr(models, method)(
        ViTBackbone(image_shape=(32, 32, 3), patch_size=4, num_layers=2, **sizes),
        TextTransformer(1000, 16, num_layers=1, **sizes),
        projection_dim=64,
        tokenizer=None,
        augmenter=None,
        preprocessor=None,
        seed=0,
    )
    model.compile(keras.optimizers.SGD(0.01), micro_batch_size=micro_batch_size)
    rng = np.random.default_rng(0)
    images = rng.random((batch, 32, 32, 3), "float32")
    return model, {"images": images, "token_ids": rng.integers(1, 1000, (batch, 16), "int32")}


def measure(way: str, batch: int) -> dict:
    """Megabytes and seconds of the second step, in this process; the first compiles."""
    import keras

    model, data = make(*WAYS[way], batch)
    model.train_on_batch(data)
    found = growth(lambda: model.train_on_batch(data))
    if keras.backend.backend() == "jax":
        found["megabytes"] = allotted(model, data)
    return found


def run(batches=BATCHES) -> None:
    """Every case in a process of its own; prints the table."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    print(f"MB (seconds) of a step, {backend}")
    print(f"{'batch':24}" + "".join(f"{batch:>16}" for batch in batches))
    for way in WAYS:
        print(f"{way:24}", end="", flush=True)
        for batch in batches:
            command = [sys.executable, __file__, "--way", way, "--batches", str(batch)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True)
            text = "failed"
            if not done.returncode:
                found = json.loads(done.stdout.splitlines()[-1])
                text = f"{found['megabytes']:.0f} ({found['seconds']:.2f})"
            print(f"{text:>16}", end="", flush=True)
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--way", choices=list(WAYS), help="only this one, in this process, as JSON")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.batches[0])))
    else:
        run(options.batches)
