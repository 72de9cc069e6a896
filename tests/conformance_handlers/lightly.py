"""lightly's pairwise losses, as far as the package offers them."""

import numpy as np
from gradients import input_gradients
from keras import ops

from conformance_handlers.framework import Case, Options, handler
from conformance_handlers.simclr import SATURATED, saturation_floors
from keras_ssl import losses
from keras_ssl.layers import FeatureQueue
from keras_ssl.losses.nt_xent import l2_normalize


def nt_xent(options, z):
    # The mean over all views, as in the paper's equation: half of SimCLR's published code.
    options.must_be(memory_bank_size=0, gather_distributed=False)
    temperature = options.get("temperature", 0.5)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    floors = saturation_floors(z, unit, temperature, hidden_norm=True)
    return losses.NTXentLoss(temperature, reduction="mean"), floors


def decoupled(options, z):
    options.must_be(gather_distributed=False, weight_fn=None)
    return losses.NTXentLoss(options.get("temperature", 0.1), decoupled=True), NO_FLOORS


def decoupled_weighted(options, z):
    options.must_be(gather_distributed=False)
    sigma = options.get("sigma", 0.5)
    temperature = options.get("temperature", 0.1)
    return losses.NTXentLoss(temperature, decoupled=True, positive_sigma=sigma), NO_FLOORS


def vicreg(options, z):
    options.must_be(gather_distributed=False)
    loss = losses.VICRegLoss(
        similarity=options.get("lambda_param", 25.0),
        # It halves the variance term, as the published code and ours do.
        variance=options.get("mu_param", 25.0),
        covariance=options.get("nu_param", 1.0),
        epsilon=options.get("eps", 1e-4),
    )
    return loss, NO_FLOORS


def barlow_twins(options, z):
    options.must_be(gather_distributed=False)
    return losses.BarlowTwinsLoss(options.get("lambda_param", 5e-3)), NO_FLOORS


def negative_cosine(options, z):
    options.must_be(dim=1, eps=1e-8)
    return losses.NegativeCosineLoss(), NO_FLOORS


NO_FLOORS = (None, None)

# Our loss for lightly's, by its name there. What is not here stands in scope.py.
PAIRWISE = {
    "BarlowTwinsLoss": barlow_twins,
    "DCLLoss": decoupled,
    "DCLWLoss": decoupled_weighted,
    "NTXentLoss": nt_xent,
    "NegativeCosineSimilarity": negative_cosine,
    "VICRegLoss": vicreg,
}


@handler("lightly", "pairwise")
def pairwise(case: Case):
    config = case.config
    config.generator_only("seed", "noise")
    z0, z1 = case.input("in/z0"), case.input("in/z1")
    case.check("batch and dim are those of the input", z0.shape == (config["batch"], config["dim"]))
    options = config["kwargs"]
    names = options.names()
    # Losses without options of their own are not listed there.
    names += [name for name in PAIRWISE if name not in names and case.keys(f"out/{name}/")]
    for name in names:
        if name not in PAIRWISE:
            options.generator_only(name)  # its keys must all be out of scope, or they are reported
            continue
        for i, kwargs in enumerate(options[name] if name in options else [Options({})]):
            loss, (floor, gradient_floor) = PAIRWISE[name](kwargs, np.concatenate([z0, z1]))
            because = SATURATED if floor is not None else ""
            value, gradients = input_gradients(loss, z0, z1)
            # A second call on the same input: this loss keeps no state.
            for call, ours in (("call1", value), ("call2", loss(z0, z1))):
                case.compare(f"out/{name}/{i}/{call}", ours, floor=floor, because=because)
            for z, ours in zip(("z0", "z1"), gradients, strict=True):
                key = f"grad/{name}/{i}/{z}"
                case.compare(key, ours, floor=gradient_floor, because=because)
    if "in/p0" in case.arrays:
        _symmetric_cosine(case, z0, z1)
    if "in/vicreg3_a" in case.arrays:
        # Statistics over the batch, for every place of (batch, places, dim) on its own.
        views = [ops.convert_to_tensor(case.input(f"in/vicreg3_{which}")) for which in "ab"]
        case.compare("out/VICRegLoss3d", losses.VICRegLoss()(*views))


def _symmetric_cosine(case, z0, z1):
    """SimSiam's loss as its model composes it: both directions, stopped targets, the mean."""
    distance = losses.NegativeCosineLoss()
    targets = ops.convert_to_tensor(z0), ops.convert_to_tensor(z1)

    def symmetric(p0, p1):
        return distance(p0, targets[1]) / 2 + distance(p1, targets[0]) / 2

    value, gradients = input_gradients(symmetric, case.input("in/p0"), case.input("in/p1"))
    case.compare("out/SymNegCosineSimilarityLoss", value)
    for which, gradient in zip(("p0", "p1"), gradients, strict=True):
        case.compare(f"grad/SymNegCosineSimilarityLoss/{which}", gradient)


@handler("lightly", "memory_bank")
def memory_bank(case: Case):
    """NT-Xent against a bank of earlier embeddings: InfoNCE with a queue that restarts."""
    config = case.config
    config.generator_only("seed", "co2_alpha", "co2_t")
    bank = case.input("in/bank")
    case.check("the bank has its size and dim", bank.shape == (config["bank"], config["dim"]))
    queue = FeatureQueue(*bank.shape, overflow="restart")
    queue.rows.assign(ops.convert_to_tensor(bank))
    loss = losses.InfoNCELoss(config["temperature"])
    for step in range(1, config["calls"] + 1):
        z0, z1 = (case.input(f"in/step{step}/{which}") for which in ("z0", "z1"))
        case.check(f"batch of step {step}", len(z0) == config["batch"])
        keys, negatives = ops.convert_to_tensor(z1), queue.features()
        value, (gradient,) = input_gradients(lambda q, k=keys, n=negatives: loss(q, k, n), z0)
        case.compare(f"step{step}/loss", value)
        case.compare(f"step{step}/grad_z0", gradient)
        queue.enqueue(l2_normalize(keys))
        case.compare(f"step{step}/bank", queue.rows)
        case.compare(f"step{step}/bank_ptr", np.array([int(queue.pointer)]))
    # Without gradient (evaluation) the loss is taken and nothing is enqueued.
    case.compare("out/no_grad_loss", loss(ops.convert_to_tensor(z0), keys, queue.features()))
    case.compare("out/no_grad_bank_ptr", np.array([int(queue.pointer)]))
