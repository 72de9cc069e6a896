"""lightly's pairwise losses, as far as the package offers them."""

from conformance_handlers.framework import Case, handler
from gradients import input_gradients

from keras_ssl import losses


def nt_xent(options):
    # The mean over all views, as in the paper's equation.
    options.must_be(memory_bank_size=0, gather_distributed=False)
    return losses.NTXentLoss(options.get("temperature", 0.5), reduction="mean")


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
            loss = PAIRWISE[name](kwargs)
            value, gradients = input_gradients(loss, z0, z1)
            case.compare(f"out/{name}/{i}/call1", value)
            for key, gradient in zip(("z0", "z1"), gradients, strict=True):
                case.compare(f"grad/{name}/{i}/{key}", gradient)
            # A second call on the same input: this loss keeps no state.
            case.compare(f"out/{name}/{i}/call2", loss(z0, z1))
