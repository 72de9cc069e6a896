"""SimCLR: NT-Xent, LARS, augmentation."""

import conformance_augment
import numpy as np
from gradients import input_gradients
from keras import ops

from conformance_handlers.framework import BOUNDS, Case, as_numpy, handler
from conformance_handlers.optimizers import make_variables, run_steps
from keras_ssl import losses, optimizers
from keras_ssl.losses.nt_xent import l2_normalize


@handler("simclr", "ntxent")
def ntxent(case: Case):
    case.config.generator_only("seed")
    for i, run in enumerate(case.config["runs"]):
        run.generator_only("noise")
        hidden = case.input(f"in/{i}/hidden")
        case.check(
            f"run {i}: batch and dim are those of the input",
            hidden.shape == (2 * run["batch"], run["dim"]),
            f"{hidden.shape}",
        )
        _ntxent_run(case, i, hidden, run["temperature"], run["hidden_norm"])


def _ntxent_run(case, i, hidden, temperature, hidden_norm):
    # The published code adds the means of the two directions: twice the mean over all views.
    options = dict(temperature=temperature, normalize=hidden_norm, reduction="sum_over_views")
    n = len(hidden) // 2
    z = ops.convert_to_tensor(hidden)
    z = as_numpy(l2_normalize(z) if hidden_norm else z)
    case.compare(f"out/{i}/logits_ab", z[:n] @ z[n:].T / temperature)
    # One-hot over [second views, first views]: the partner of view k is view k of the other half.
    case.compare(f"out/{i}/labels", np.eye(n, 2 * n, dtype="float32"))
    loss_floor, gradient_floor = saturation_floors(hidden, z, temperature, hidden_norm)
    # Also the form for large batches, whose gradient is written by hand; its blocks do not divide.
    for label, block_size in (("", None), (" (blocks)", max(1, n - 1))):
        loss = losses.NTXentLoss(**options, block_size=block_size)
        value, (gradient,) = input_gradients(loss, hidden)
        for key, ours, floor in (
            (f"out/{i}/loss", value, loss_floor),
            (f"grad/{i}/hidden", gradient, gradient_floor),
        ):
            if block_size is None:
                case.compare(key, ours, floor=floor, because=SATURATED)
            else:
                theirs = case.arrays[key]
                case.compare_values(key + label, ours, theirs, floor=floor, because=SATURATED)


SATURATED = (
    "nearly every view finds its partner: the reference's log(1 + rest) and its probability - 1"
    " are then rounded at the size of 1, not of the rest"
)


def saturation_floors(hidden, z, temperature, hidden_norm, bounds=BOUNDS):
    """Floors under which a cross entropy and its gradient have no relative accuracy of their own.

    A softmax is computed by adding the rest to 1 and its gradient by taking 1 from a probability;
    either is off by up to eps = 1.2e-7. In the loss that is eps; in the gradient of row i it is
    eps / (n T) times a row of z (over |h_i| through the normalisation). A floor is that over the
    bound, so that an error of this size just passes.
    """
    eps, n = float(np.finfo("float32").eps), len(hidden) // 2
    rows = np.linalg.norm(z, axis=1).max() / (n * temperature) * np.ones(len(hidden))
    if hidden_norm:
        rows = rows / np.maximum(np.linalg.norm(hidden, axis=1), 1e-6)
    per_element = np.sqrt(np.mean(rows**2) / hidden.shape[1])
    return eps / bounds["output"], eps * float(per_element) / bounds["gradient"]


@handler("simclr", "lars")
def lars(case: Case):
    config = case.config
    config.generator_only("seed", "shapes", "zero", "zero_grad")
    initial = case.inputs("param/")
    variants = config["variants"]
    for name in variants.names():
        options = variants[name]
        variables = make_variables(initial)
        optimizer = _make_lars(options)
        optimizer.build(list(variables.values()))
        run_steps(
            case,
            optimizer,
            variables,
            "in/step{step}/grad/{name}",
            name + "/step{step}/param/{name}",
            config["steps"],
        )
        slots = zip(variables, optimizer.momentums, strict=True)
        for variable, slot in slots:
            case.compare(f"{name}/momentum/{variable}", slot)


def _make_lars(options):
    """LARSOptimizer of tf2/lars_optimizer.py in our terms; its defaults where none is given."""
    classic = options.get("classic_momentum", True)
    # There, an empty or absent list of layer adaptation falls back to that of weight decay.
    adaptation = options.get("exclude_from_layer_adaptation") or None
    options.generator_only("name")
    return optimizers.LARS(
        learning_rate=options["learning_rate"],
        momentum=options.get("momentum", 0.9),
        weight_decay=options.get("weight_decay", 0.0),
        trust_coefficient=options.get("eeta", 0.001),
        momentum_holds="update" if classic else "gradient",
        nesterov=options.get("use_nesterov", False),
        exclude_from_weight_decay=options.get("exclude_from_weight_decay") or (),
        exclude_from_layer_adaptation=adaptation,
        exclude_1d=False,  # there, exclusion is by name alone
    )


@handler("simclr", "augment")
def augment(case: Case):
    config = case.config
    config.generator_only("seed")
    image = case.input("in/image")
    case.input("in/batch")
    case.check("size is that of the input", tuple(config["size"]) == image.shape[:2])
    for jitter in config.get("jitter", []):
        jitter.generator_only("strength")  # the drawn factors are given; it bounded the draw
    meta = {**case.meta, "config": config}  # `config` notes which options are read
    for key, (ours, _) in conformance_augment.compare(case.arrays, meta).items():
        case.compare(key, ours)
