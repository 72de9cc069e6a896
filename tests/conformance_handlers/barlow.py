"""Barlow Twins and VICReg: losses, projectors on given features, LARS with its schedules."""

import keras
import numpy as np
from gradients import input_gradients, variable_gradients
from keras import ops

from conformance_handlers.framework import Case, as_numpy, handler
from conformance_handlers.initial import check_heads
from conformance_handlers.optimizers import (
    compare_move,
    compare_zero_gradient,
    make_variables,
    run_steps,
)
from conformance_handlers.torch_names import TorchNames
from keras_ssl import losses, optimizers, schedules
from keras_ssl.models import BarlowTwins, VICReg


def features_backbone(dim: int) -> keras.Model:
    """The identity on features that come as 1 x 1 images: the references' heads stand alone."""
    images = keras.Input((1, 1, dim))
    return keras.Model(images, keras.layers.Flatten()(images))


def as_images(features):
    return ops.convert_to_tensor(features[:, None, None, :])


@handler("barlow", "barlow_loss")
def barlow_loss(case: Case):
    config = case.config
    config.generator_only("seed", "scale", "shift", "noise")
    z1, z2 = case.input("in/z1"), case.input("in/z2")
    case.check("batch and dim", z1.shape == (config["batch"], config["dim"]))
    loss = losses.BarlowTwinsLoss(config["lambd"])
    value, gradients = input_gradients(loss, z1, z2)
    case.compare("loss", value)
    for which, gradient in zip(("z1", "z2"), gradients, strict=True):
        case.compare(f"grad/{which}", gradient)
    z1, z2 = ops.convert_to_tensor(z1), ops.convert_to_tensor(z2)
    case.compare("out/bn_z1", loss.standardize(z1))
    case.compare("out/cross_correlation", loss.cross_correlation(z1, z2))


def _schedule(model, base, total, batch, per_epoch):
    """The default optimizer and its schedule, which is what a user gets from `compile()`."""
    model.compile(learning_rate=base)
    default = model.default_optimizer(total, batch, per_epoch)
    # The references warm up over ten epochs however short the run, which may end before the warm-up
    # does; ours over a tenth of it at most.
    warmup = 10 * per_epoch
    options = {**default.get_config()["learning_rate"]["config"], "warmup_steps": warmup}
    return default, schedules.WarmupCosine(**{**options, "total_steps": max(total, warmup)})


@handler("barlow", "barlow_train")
def barlow_train(case: Case):
    config = case.config
    config.generator_only("seed", "noise", "perturb", "track")
    parameters = case.inputs("param/")
    y1, y2 = case.input("in/y1"), case.input("in/y2")
    batch, dim = y1.shape
    case.check("batch", batch == config["batch"])
    *hidden, output = (int(width) for width in config["projector"].split("-"))
    model = BarlowTwins(
        features_backbone(dim),
        projection_dim=output,
        projection_hidden_dim=hidden,
        off_diagonal_weight=config["lambd"],
        augmenter=None,
        preprocessor=None,
    )
    names = TorchNames()
    names.add_head("projector.", model.projection_head)
    check_heads(case, names.fresh(), ["projector."])
    own = {n: a for n, a in parameters.items() if not n.startswith("bn.")}
    names.load(case, own)
    x = as_images(y1), as_images(y2)
    keys = case.keys("grad/")
    variables = [names.variables[key[len("grad/") :]] for key in keys]
    loss, gradients = variable_gradients(lambda: model.compute_loss(x=x, training=True), variables)
    case.compare("loss", loss)
    for key, gradient in zip(keys, gradients, strict=True):
        case.compare(key, names.official(key[len("grad/") :], gradient))
    names.load(case, own)

    weights, biases = config["lr_w"], config["lr_b"]
    total = config["epochs"] * config["iters_per_epoch"]
    default, schedule = _schedule(model, weights, total, batch, config["iters_per_epoch"])
    rates = as_numpy(schedule(np.arange(total)))
    case.compare(
        "out/lr_schedule_weights_biases", np.stack([rates, rates * (biases / weights)], axis=1)
    )
    optimizer = type(default).from_config(
        {
            **default.get_config(),
            "learning_rate": schedule,
            "weight_decay": config["weight_decay"],
            "learning_rate_multipliers": {"(bias|gamma|beta)$": biases / weights},
        }
    )
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(config["start_step"])
    for step in range(1, config["steps"] + 1):
        rate = as_numpy(optimizer.learning_rate)
        case.compare(f"step{step}/lr_weights", rate)
        case.compare(f"step{step}/lr_biases", rate * np.float32(biases / weights))
        model.reset_metrics()
        logs = model.train_on_batch(tuple(as_numpy(v) for v in x), return_dict=True)
        case.compare(f"step{step}/loss", np.float32(logs["loss"]))
        prefix = f"step{step}/param/"
        for key in case.keys(prefix):
            name = key[len(prefix) :]
            if name.startswith("bn."):
                continue
            ours = names.unbiased(name, batch, 2 * step)  # one update for each view
            case.compare(key, ours)
            if "running" not in name:
                compare_move(case, key, ours, parameters[name])


@handler("barlow", "lars")
def lars(case: Case):
    config = case.config
    config.generator_only("seed", "shapes")
    initial = case.inputs("param/")
    for variant in ("barlow_filtered", "barlow_unfiltered", "vicreg_filtered", "vicreg_unfiltered"):
        variables = make_variables(initial)
        optimizer = optimizers.LARS(
            config["lr"],
            momentum=config["momentum"],
            weight_decay=config["wd"],
            trust_coefficient=config["eta"],
            momentum_holds="scaled_gradient",
            exclude_1d=variant.endswith("_filtered"),
        )
        optimizer.build(list(variables.values()))
        run_steps(
            case,
            optimizer,
            variables,
            "in/step{step}/grad/{name}",
            variant + "/step{step}/param/{name}",
            config["steps"],
        )


@handler("barlow", "vicreg")
def vicreg(case: Case):
    config = case.config
    config.generator_only("seed", "scale", "noise", "perturb")
    x, y = case.input("in/x"), case.input("in/y")
    case.check("batch and dim", x.shape == (config["batch"], config["dim"]))
    weights = dict(similarity=config["sim"], variance=config["std"], covariance=config["cov"])
    loss = losses.VICRegLoss(**weights)
    value, gradients = input_gradients(loss, x, y)
    case.compare("loss", value)
    for which, gradient in zip("xy", gradients, strict=True):
        case.compare(f"grad/{which}", gradient)
    terms = loss(ops.convert_to_tensor(x), ops.convert_to_tensor(y), return_terms=True)
    for theirs, ours in (("sim", "similarity"), ("std", "variance"), ("cov", "covariance")):
        case.compare(f"out/{theirs}_term", terms[ours])

    features = [case.input(f"in/feat{i}") for i in (1, 2)]
    case.check("embedding", features[0].shape[1] == config["embedding"])
    parameters = case.inputs("param/")
    *hidden, output = (int(width) for width in config["mlp"].split("-"))
    model = VICReg(
        features_backbone(config["embedding"]),
        augmenter=None,
        preprocessor=None,
        projection_dim=output,
        projection_hidden_dim=hidden,
        **weights,
    )
    names = TorchNames()
    names.add_head("projector.", model.projection_head)
    check_heads(case, names.fresh(), ["projector."])
    names.load(case, parameters)
    views = tuple(as_images(f) for f in features)
    keys = case.keys("grad/projector.")
    variables = [names.variables[key[len("grad/") :]] for key in keys]
    value, gradients = variable_gradients(
        lambda: model.compute_loss(x=views, training=True), variables
    )
    case.compare("out/projector_loss", value)
    for key, gradient in zip(keys, gradients, strict=True):
        name = key[len("grad/") :]
        linear = any(names.variables[name] is x.bias for x in model.projection_head.linears)
        compare = compare_zero_gradient if linear else Case.compare
        compare(case, key, names.official(name, gradient))

    per_epoch = config["iters_per_epoch"]
    total = config["epochs"] * per_epoch
    _, schedule = _schedule(model, config["base_lr"], total, config["sched_batch"], per_epoch)
    case.compare("out/lr_schedule", schedule(np.arange(total)))
