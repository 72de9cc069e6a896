"""SimCLR: NT-Xent, LARS, augmentation."""

import conformance_augment
import numpy as np
from conformance_handlers.framework import Case, as_numpy, handler
from conformance_handlers.optimizers import make_variables, run_steps
from gradients import input_gradients
from keras import ops

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
    z = l2_normalize(z) if hidden_norm else z
    logits = ops.matmul(z[:n], ops.transpose(z[n:])) / temperature
    case.compare(f"out/{i}/logits_ab", logits)
    # One-hot over [second views, first views]: the partner of view k is view k of the other half.
    case.compare(f"out/{i}/labels", np.eye(n, 2 * n, dtype="float32"))
    loss, (gradient,) = input_gradients(losses.NTXentLoss(**options), hidden)
    floor, because = log_sum_exp_floor(case.arrays[f"out/{i}/loss"], logits)
    case.compare(f"out/{i}/loss", loss, floor=floor, because=because)
    case.compare(f"grad/{i}/hidden", gradient)
    # The form for large batches, whose gradient is written by hand, in blocks that do not divide.
    blocked = losses.NTXentLoss(**options, block_size=max(1, n - 1))
    loss, (gradient,) = input_gradients(blocked, hidden)
    theirs = case.arrays[f"out/{i}/loss"], case.arrays[f"grad/{i}/hidden"]
    case.compare_values(f"out/{i}/loss (blocks)", loss, theirs[0], floor=floor, because=because)
    case.compare_values(f"grad/{i}/hidden (blocks)", gradient, theirs[1])


def log_sum_exp_floor(loss, logits):
    """A floor for -logit + log(sum(exp(logits))) where the two nearly cancel.

    Both are rounded at the size of the logits, so a loss far below them has no relative accuracy of
    its own. From a hundredth of the largest logit downwards it is compared with that size.
    """
    scale = float(np.abs(as_numpy(logits)).max()) / 100
    if abs(float(loss)) >= scale:
        return None, ""
    return scale, "the loss is what is left when logits a hundred times larger cancel"


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
