"""Time and peak memory of NT-Xent and of SigLIP's loss with gradient, up to batch 8192 (dim 128).

Each case runs in a process of its own: the whole similarity matrix ("plain"), blocks of rows
("blocks") and, on PyTorch, lightly's NTXentLoss as the peer; SigLIP's loss likewise. Its matrix is
N x N, a quarter of NT-Xent's.

    python benchmarks/nt_xent.py [--quick] [--backends torch jax tensorflow]

Seconds are the median of the repeated calls, after compilation; MB is the growth of the peak of
resident memory over a call at batch 64 in the same process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BACKENDS = ("torch", "jax", "tensorflow")
DIM, TEMPERATURE = 128, 0.1


def value_and_gradient(loss, backend):
    """A function of two NumPy arrays that runs loss and gradient, compiled where that is usual."""
    if backend == "jax":
        import jax

        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return lambda z1, z2: jax.block_until_ready(compiled(z1, z2))
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def compiled(z1, z2):
            with tf.GradientTape() as tape:
                tape.watch((z1, z2))
                value = loss(z1, z2)
            return value, tape.gradient(value, (z1, z2))

        def run(z1, z2):
            value, gradients = compiled(tf.constant(z1), tf.constant(z2))
            return value, [g.numpy() for g in gradients]

        return run
    import torch

    def run(z1, z2):
        z1, z2 = (torch.tensor(z, requires_grad=True) for z in (z1, z2))
        value = loss(z1, z2)
        value.backward()
        return value.detach(), (z1.grad, z2.grad)

    return run


def lightly_loss():
    import torch

    # lightly imports torchvision, whose Python code wants its compiled operations declared.
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        lightly_loss.library = library  # its declarations go when it is collected
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def peak_mb():
    # Linux counts in KB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform == "linux" else 1024**2
    )


def worker(backend, implementation, batch):
    """Measures one case in this process and prints it as JSON."""
    import numpy as np

    block_size = None if implementation.endswith("plain") else "auto"
    if implementation == "lightly":
        loss = lightly_loss()
    elif implementation.startswith("siglip"):
        from keras_ssl.losses import SigLIPLoss

        siglip = SigLIPLoss(block_size=block_size)

        def loss(z1, z2):
            return siglip(z1, z2, float(np.log(10.0)), -10.0)
    elif implementation == "clip":
        from keras_ssl.losses import CLIPLoss

        clip = CLIPLoss()

        def loss(z1, z2):
            return clip(z1, z2, float(np.log(10.0)))
    else:
        from keras_ssl.losses import NTXentLoss

        loss = NTXentLoss(TEMPERATURE, block_size=block_size)
    run = value_and_gradient(loss, backend)
    rng = np.random.default_rng(0)
    small, large = (rng.normal(size=(2, n, DIM)).astype("float32") for n in (64, batch))
    run(*small)
    before = peak_mb()
    start = time.perf_counter()
    value, gradients = run(*large)
    first = time.perf_counter() - start
    memory = peak_mb() - before
    times = []
    while len(times) < 3 or (sum(times) < 2 and len(times) < 20):
        start = time.perf_counter()
        run(*large)
        times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "backend": backend,
                "implementation": implementation,
                "batch": batch,
                "seconds": statistics.median(times),
                "first_call_seconds": first,
                "peak_mb": memory,
                "loss": float(value),
                "gradient_norm": float(np.sqrt(sum(np.sum(np.asarray(g) ** 2) for g in gradients))),
            }
        )
    )


def measure(backend, implementation, batch):
    """Runs one case in a new process; None when it fails (out of memory), which is printed."""
    root = Path(__file__).resolve().parent.parent
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", backend]
    command += [implementation, str(batch)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or [f"exit {process.returncode}"])[-1]
        print(f"{backend} {implementation} batch {batch} failed: {reason}")
        return None
    return json.loads(process.stdout.strip().splitlines()[-1])


def run(quick: bool = False, backends=BACKENDS) -> list[dict]:
    """Measures every case and prints times, memory and their ratios.

    Args:
        quick: batches 256 and 1024 instead of 512, 2048 and 8192.
        backends: which of "torch", "jax" and "tensorflow".

    Returns:
        One dict for each case that ran.
    """
    batches = (256, 1024) if quick else (512, 2048, 8192)
    rows = []
    head = f"{'backend':<11}{'batch':>6}  {'implementation':<15}{'seconds':>9}{'peak MB':>9}"
    print(f"{head}   time and memory relative to plain")
    for backend in backends:
        names = ["plain", "blocks"] + (["lightly"] if backend == "torch" else [])
        names += ["siglip plain", "siglip blocks"]
        for batch in batches:
            cases = {name: measure(backend, name, batch) for name in names}
            for name, case in cases.items():
                if case is None:
                    continue
                plain = cases["siglip plain" if name.startswith("siglip") else "plain"]
                if plain is not None:
                    case["time_ratio"] = case["seconds"] / plain["seconds"]
                    case["memory_ratio"] = case["peak_mb"] / max(plain["peak_mb"], 1.0)
                    ratios = f"   {case['time_ratio']:.2f}x {case['memory_ratio']:.2f}x"
                else:
                    ratios = ""
                rows.append(case)
                print(
                    f"{backend:<11}{batch:>6}  {name:<15}{case['seconds']:>9.3f}"
                    f"{case['peak_mb']:>9.0f}{ratios}",
                    flush=True,
                )
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--quick", action="store_true")
        parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
        arguments = parser.parse_args()
        run(arguments.quick, arguments.backends)
