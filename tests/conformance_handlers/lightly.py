"""lightly's pairwise losses, as far as the package offers them."""

import numpy as np
from gradients import input_gradients
from keras import ops

from conformance_handlers.framework import Case, Options, as_numpy, handler
from conformance_handlers.simclr import SATURATED, saturation_floors
from keras_ssl import losses, schedules
from keras_ssl.layers import FeatureQueue
from keras_ssl.losses.dino import Center, DINOLoss
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
    if "out/KoLeoLoss" in case.arrays:
        value, (gradient,) = input_gradients(losses.KoLeoLoss(), z0)
        case.compare("out/KoLeoLoss", value)
        case.compare("grad/KoLeoLoss/z0", gradient)
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


@handler("lightly", "prototypes")
def prototypes(case: Case):
    """SwaV, DINO and iBOT: cross entropy between assignments of one view and another's."""
    config = case.config
    config.generator_only("seed", "dim", "msn", "pmsn")
    for i, options in enumerate(config["swav"]):
        _swav(case, i, options)
    case.compare("out/swav_sinkhorn", losses.sinkhorn_knopp(case.input("in/swav/high0")))
    _dino(case, config["dino"])
    _ibot(case)


def _swav(case, i, options):
    """Sinkhorn-Knopp of each large crop, with a queue's rows or without; DINO's pairs of crops."""
    options.must_be(sinkhorn_gather_distributed=False)
    loss = DINOLoss(options.get("temperature", 0.1))
    epsilon, iterations = (
        options.get("sinkhorn_epsilon", 0.05),
        options.get("sinkhorn_iterations", 3),
    )
    names = ["high0", "high1", *(f"low{j}" for j in range(case.config["n_low"]))]
    crops = [case.input(f"in/swav/{name}") for name in names]
    shape = (case.config["batch"], case.config["prototypes"])
    case.check("shape of SwaV's crops", all(crop.shape == shape for crop in crops))
    for suffix in ("", "_queue"):
        targets = []
        for j, crop in enumerate(crops[:2]):
            rows = crop if not suffix else np.concatenate([crop, case.input(f"in/swav/queue{j}")])
            targets.append(losses.sinkhorn_knopp(rows, epsilon, iterations)[: len(crop)])
        value, gradients = input_gradients(
            lambda *s, t=targets: loss([x + 0.0 for x in s], t), *crops
        )
        case.compare(f"out/swav{i}{suffix}", value[None])
        for name, gradient in zip(names, gradients, strict=True):
            if not suffix and f"grad/swav{i}/{name}" in case.arrays:
                case.compare(f"grad/swav{i}/{name}", gradient)


def _dino(case, options):
    epochs = options["warmup_teacher_temp_epochs"]
    schedule = schedules.LinearWarmup(
        options["teacher_temp"],
        epochs,
        start=options["warmup_teacher_temp"],
        warmup_includes_peak=True,
    )
    options.must_be(center_mode="mean")
    loss = DINOLoss(options.get("student_temp", 0.1))
    center = Center(case.config["prototypes"], momentum=options.get("center_momentum", 0.9))
    crops, teacher = (
        [case.input(key) for key in case.keys(f"in/dino/{network}")]
        for network in ("student", "teacher")
    )
    teacher = ops.convert_to_tensor(np.stack(teacher))
    for i, key in enumerate(case.keys("out/dino_epoch")):
        epoch = key.removeprefix("out/dino_epoch")
        targets = center.probabilities(teacher, schedule(int(epoch)))
        value, gradients = input_gradients(
            lambda *s, t=targets: loss([x + 0.0 for x in s], t), *crops
        )
        case.compare(key, value)
        for j, gradient in enumerate(gradients if i == 0 else ()):
            case.compare(f"grad/dino/student{j}", gradient)
        center.update(teacher)
        case.compare(f"out/dino_center_after_epoch{epoch}", as_numpy(center.center)[None])


def _ibot(case):
    mask, grid = case.input("in/ibot/mask"), case.config["grid"]
    case.check("grid of the mask", mask.shape == (case.config["batch"], grid, grid))
    student = case.input("in/ibot/student")
    teacher = ops.convert_to_tensor(case.input("in/ibot/teacher"))
    _, weights = losses.masked_patches(mask.reshape(len(mask), -1), len(student))
    loss, center = losses.IBOTPatchLoss(), Center(case.config["prototypes"])
    for call in ("call1", "call2"):
        targets = center.probabilities(teacher, 0.04)  # lightly's default
        value, (gradient,) = input_gradients(
            lambda s, t=targets: loss(s, t, weights=weights), student
        )
        case.compare(f"out/ibot_{call}", value)
        if call == "call1":
            case.compare("grad/ibot/student", gradient)
        center.update(teacher)
        case.compare(f"out/ibot_center_after_{call}", center.center)
