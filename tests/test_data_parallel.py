"""Several devices compute what one does: losses, weights, queues, centres, statistics, teachers.

The runs are programs of their own (`several_devices.py`), because the number of devices is fixed
when a backend starts: eight virtual ones on JAX, two replicas on TensorFlow, two processes on
PyTorch.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from several_devices import CHOSEN, REFUSED
from two_processes import train

HERE = pathlib.Path(__file__).parent
BACKEND = keras.backend.backend()


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def runs():
    output, errors = start("several_devices.py").communicate(timeout=900)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert lines, errors
    return lines


@pytest.mark.parametrize("method", CHOSEN)
def test_several_devices_are_one(runs, method):
    found = [run for run in runs if run["method"] == method]
    assert found
    for run in found:
        assert "error" not in run, run["error"]
        # Relative to what moved in three steps, which is far above rounding; a loss or statistics
        # of a device's own rows are off by some per cent.
        assert run["loss"] < 1e-3 and run["weights"] < 1e-2 and run["state"] < 1e-3, run
        assert run["weights_move"] > 1e-3, run


@pytest.mark.parametrize("word", sorted(REFUSED))
def test_what_several_devices_cannot_do_is_refused(runs, word):
    (found,) = [run["refused"] for run in runs if run["method"] == "refusals"]
    assert word in found[word] and "Received: " in found[word]


def free_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def check_two_processes():
    address = free_address()
    processes = [start("two_processes.py", rank, address) for rank in range(2)]
    try:
        alone = train(epochs=2)
        outputs, errors = zip(*[p.communicate(timeout=150) for p in processes], strict=True)
    finally:
        for process in processes:
            process.kill()  # what hangs, if something does
    for output in outputs:
        losses = [float(line.split()[1]) for line in output.splitlines() if "loss" in line]
        np.testing.assert_allclose(losses[:2], alone, rtol=1e-4, err_msg=str(errors))
        assert len(losses) < 20
    # The survivor ends, with an error that says why.
    assert processes[1].returncode == 9
    assert processes[0].returncode not in (0, None)
    assert any(word in errors[0].lower() for word in ("peer", "connection", "heartbeat")), errors


if BACKEND != "tensorflow":  # its strategies are tested on one host

    def test_two_processes_over_the_loopback_and_one_that_dies():
        check_two_processes()
