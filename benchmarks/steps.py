"""What the benchmarks of a training step share: timing, processes that take turns, the table."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time


def timed(step, steps):
    """Seconds until the first step is done (with compiling), and the median of the next."""
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return first, statistics.median(seconds)


def repeated(batch, steps):
    """A PyDataset that gives one batch again and again, as fast as can be."""
    import keras

    class Repeat(keras.utils.PyDataset):
        def __len__(self):
            return steps

        def __getitem__(self, index):
            return (batch,)

    return Repeat()


def timed_fit(model, batch, steps):
    """Like `timed`, through `fit`; an epoch is timed as a whole, since JAX runs ahead."""
    start = time.perf_counter()
    model.fit(repeated(batch, 1), verbose=0)
    first = time.perf_counter() - start
    model.fit(repeated(batch, 1), verbose=0)
    start = time.perf_counter()
    model.fit(repeated(batch, steps), verbose=0)
    return first, (time.perf_counter() - start) / steps


def worker(line, steps):
    """Measures one line in this process: seconds `(first, step)`, or a dict of its own figures."""
    _, measure, kwargs = line
    result = measure(steps, **kwargs)
    if not isinstance(result, dict):
        result = dict(zip(("first", "step"), result, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**result, "peak": peak}))


def in_turns(script, lines, rounds, steps) -> list[dict]:
    """Medians of every line of a script, each measured in processes of its own."""
    results = {name: [] for name in lines}
    for _ in range(rounds):
        for name, (backend, _, _) in lines.items():
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            out = subprocess.run(
                [sys.executable, script, "--worker", name, "--steps", str(steps)],
                env=environment,
                capture_output=True,
                text=True,
            )
            if out.returncode:
                raise RuntimeError(f"{name} failed:\n{out.stderr[-2000:]}")
            results[name].append(json.loads(out.stdout.splitlines()[-1]))
    rows = []
    for name, measured in results.items():
        row = {key: statistics.median(m[key] for m in measured) for key in measured[0]}
        rows.append({"name": name, **row, "backend": lines[name][0]})
    return rows


def print_steps(title, rows, is_peer, aim):
    """The table of steps, each as a ratio to the last peer above it, which the rows get too.

    Args:
        title: of the table.
        rows: of `in_turns`.
        is_peer: from a row's name, whether others are compared with it.
        aim: from a row, the ratio that was aimed at.
    """
    print(f"\n{title}")
    print(f"{'':42}{'step s':>8}{'ratio':>8}{'aim':>6}{'first step s':>14}{'peak MB':>9}")
    for row in rows:
        if is_peer(row["name"]):
            peer = row["step"]
        row["ratio"] = row["step"] / peer
        print(
            f"{row['name']:42}{row['step']:8.3f}{row['ratio']:8.2f}{aim(row):6.1f}"
            f"{row['first']:14.1f}{row['peak']:9.0f}"
        )


def main(doc, lines, run):
    """The command of such a benchmark, which is also that of its processes."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--worker", help="measure this line here, and print it")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(lines[arguments.worker], arguments.steps)
    else:
        run(rounds=arguments.rounds, steps=arguments.steps)
