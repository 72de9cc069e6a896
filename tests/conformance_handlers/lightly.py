"""lightly's pairwise losses, as far as the package offers them."""

import numpy as np
from gradients import input_gradients

from conformance_handlers.framework import Case, handler
from conformance_handlers.simclr import SATURATED, saturation_floors
from keras_ssl import losses


def nt_xent(options, z):
    # The mean over all views, as in the paper's equation: half of SimCLR's published code.
    options.must_be(memory_bank_size=0, gather_distributed=False)
    temperature = options.get("temperature", 0.5)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    floors = saturation_floors(z, unit, temperature, hidden_norm=True)
    return losses.NTXentLoss(temperature, reduction="mean"), floors


# Our loss for lightly's, by its name there. What is not here stands in scope.py.
PAIRWISE = {"NTXentLoss": nt_xent}


@handler("lightly", "pairwise")
def pairwise(case: Case):
    config = case.config
    config.generator_only("seed", "noise")
    z0, z1 = case.input("in/z0"), case.input("in/z1")
    case.check("batch and dim are those of the input", z0.shape == (config["batch"], config["dim"]))
    options = config["kwargs"]
    for name in options.names():
        if name not in PAIRWISE:
            options.generator_only(name)  # its keys must all be out of scope, or they are reported
            continue
        for i, kwargs in enumerate(options[name]):
            loss, (floor, gradient_floor) = PAIRWISE[name](kwargs, np.concatenate([z0, z1]))
            value, gradients = input_gradients(loss, z0, z1)
            # A second call on the same input: this loss keeps no state.
            for call, ours in (("call1", value), ("call2", loss(z0, z1))):
                case.compare(f"out/{name}/{i}/{call}", ours, floor=floor, because=SATURATED)
            for z, ours in zip(("z0", "z1"), gradients, strict=True):
                key = f"grad/{name}/{i}/{z}"
                case.compare(key, ours, floor=gradient_floor, because=SATURATED)
