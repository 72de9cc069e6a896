"""What CollapseMonitor costs: its share of the training time, and what one look takes.

SimCLR on a small residual network, 32 px, batch 128, 2,048 noise pictures; the monitor looks at two
views of 256. Two runs on each backend: a look after every epoch (`max_cost=1`), and the default,
which leaves out the looks that would bring its share above 2 %. The first look compiles, and is
counted apart.

Command: python benchmarks/collapse_monitor.py [--epochs 20]
"""

import argparse
import os
import pathlib
import sys
import time

from steps import in_turns, worker

IMAGES, WATCHED, BATCH, AIM = 2048, 256, 128, 0.02


def measure(epochs, max_cost):
    import numpy as np

    import keras_ssl

    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
    from common import small_views

    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), "uint8")
    shape = images.shape[1:]
    looks = []

    class Timed(keras_ssl.callbacks.CollapseMonitor):
        def measure(self, model):
            start = time.perf_counter()
            values = super().measure(model)
            looks.append(time.perf_counter() - start)
            return values

    model = keras_ssl.models.SimCLR(
        keras_ssl.backbones.small_resnet(shape, 16), augmenter=small_views(shape, 0)
    )
    model.compile(epochs=epochs)
    monitor = Timed(images[:WATCHED], max_cost=max_cost)
    start = time.perf_counter()
    model.fit(images, batch_size=BATCH, epochs=1, verbose=0, callbacks=[monitor])
    first = time.perf_counter() - start
    compiled, looks[:] = looks[0], []
    monitor.on_train_begin = lambda logs=None: None  # the run goes on
    start = time.perf_counter()
    model.fit(
        images, batch_size=BATCH, epochs=epochs, initial_epoch=1, verbose=0, callbacks=[monitor]
    )
    seconds = time.perf_counter() - start
    return {
        "share": sum(looks) / seconds,
        "looks": len(looks),
        "look": sum(looks) / max(1, len(looks)),
        "epoch": (seconds - sum(looks)) / (epochs - 1),
        "first": compiled / first,
    }


LINES = {}
for _backend in ("torch", "tensorflow", "jax"):
    LINES[f"{_backend}, every epoch"] = (_backend, measure, {"max_cost": 1.0})
    LINES[f"{_backend}, default"] = (_backend, measure, {"max_cost": AIM})


def run(quick: bool = False, epochs: int = 20) -> list[dict]:
    """Measures all lines; prints the table and returns its rows."""
    rows = in_turns(__file__, LINES, 1, 4 if quick else epochs)
    print("\nCollapseMonitor, SimCLR, 2,048 pictures of 32 px, 256 of them watched")
    print(f"{'':24}{'share':>8}{'aim':>8}{'looks':>8}{'s a look':>10}{'s an epoch':>12}")
    for row in rows:
        aim = f"{AIM:8.1%}" if row["name"].endswith("default") else " " * 8
        print(
            f"{row['name']:24}{row['share']:8.1%}{aim}{row['looks']:8.0f}{row['look']:10.3f}"
            f"{row['epoch']:12.2f}"
        )
    return rows


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, help="of a worker: its epochs")
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(LINES[arguments.worker], arguments.steps)
    else:
        run(epochs=arguments.epochs)
