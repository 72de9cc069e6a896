"""MAE's utilities: sin-cos positions, the learning-rate schedule, LARS of the linear probe."""

import numpy as np

from conformance_handlers.framework import Case, as_numpy, handler
from conformance_handlers.optimizers import make_variables, run_steps
from keras_ssl import optimizers, schedules
from keras_ssl.backbones import ViTBackbone
from keras_ssl.layers.position_embedding import sincos_position_embedding


@handler("mae", "utils")
def mae_utils(case: Case):
    config = case.config
    config.generator_only("seed", "lars_shapes")
    _sincos(case, config.get("sincos", []))
    if "lr_sched" in config:
        _schedule(case, config["lr_sched"])
    if "lars" in config:
        _lars(case, config["lars"], config["steps"])


def _sincos(case, tables):
    for dim, grid in tables:
        name = f"out/sincos_d{dim}_g{grid}_cls"
        case.compare(f"{name}0", sincos_position_embedding(dim, grid, grid, layout="mae"))
        # With a class row: what the backbone really holds.
        backbone = ViTBackbone(
            image_shape=(grid, grid, 1),
            patch_size=1,
            hidden_dim=dim,
            num_layers=1,
            num_heads=1,
            mlp_ratio=1.0,
            position_embedding="sincos",
        )
        case.compare(f"{name}1", as_numpy(backbone.position_embedding)[0])


def _schedule(case, options):
    case.config.generator_only("lr_stride")  # in/lr_epochs holds the epochs themselves
    schedule = schedules.WarmupCosine(
        options["lr"],
        total_steps=options["epochs"],
        warmup_steps=options["warmup_epochs"],
        final=options["min_lr"],
    )
    # The script calls it with fractional epochs; a step may be any unit of time.
    epochs = case.input("in/lr_epochs")
    case.compare("out/lr", np.stack([as_numpy(schedule(epoch)) for epoch in epochs]))


def _lars(case, options, steps):
    variables = make_variables(case.inputs("param/"))
    # util/lars.py: vectors get neither decay nor trust ratio; the rate is applied to the momentum.
    optimizer = optimizers.LARS(
        learning_rate=options["lr"],
        momentum=options["momentum"],
        weight_decay=options["weight_decay"],
        trust_coefficient=options["trust_coefficient"],
        momentum_holds="scaled_gradient",
        exclude_1d=True,
    )
    optimizer.build(list(variables.values()))
    run_steps(
        case, optimizer, variables, "in/step{step}/grad/{name}", "step{step}/param/{name}", steps
    )
