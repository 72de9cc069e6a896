"""DINO: backbone at several sizes, multi-crop loss, gradients, clipping, whole steps, utilities."""

import re

import keras
import numpy as np
from gradients import compiled, variable_gradients
from keras import ops

from conformance_handlers.framework import (
    BOUNDS,
    TINY,
    Case,
    UnknownOption,
    as_numpy,
    handler,
)
from conformance_handlers.initial import check_initialisers
from conformance_handlers.mae_pretrain import channels_last, compare_parameter
from conformance_handlers.optimizers import (
    compare_move,
    compare_zero_gradient,
    make_variables,
    run_steps,
)
from keras_ssl import optimizers, schedules
from keras_ssl.augmentation import functional
from keras_ssl.backbones import ViTBackbone
from keras_ssl.converters import load_official, official_entries, to_official
from keras_ssl.models import DINO


def vit(config, channels: int) -> ViTBackbone:
    size = config["img_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return ViTBackbone(
        image_shape=(height, width, channels),
        patch_size=config["patch_size"],
        hidden_dim=config["embed_dim"],
        num_layers=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config.get("qkv_bias", True),
        drop_path_rate=config.get("drop_path", 0.0),
        layer_norm_epsilon=config["ln_eps"],
        interpolation_offset=0.1,  # in its code, no option
        initializer="truncated_normal",
    )


@handler("dino", "backbone")
def backbone(case: Case):
    config = case.config
    config.generator_only("seed", "perturb")
    names = [tuple(size) for size in config["sizes"]]
    images = {name: channels_last(case.input("in/img_{}x{}".format(*name))) for name in names}
    first = images[names[0]]
    case.check("batch is that of the input", len(first) == config["batch"])
    keras.utils.set_random_seed(0)
    model = vit(config, first.shape[-1])
    check_initialisers(case, to_official(model, "dino"))
    parameters = case.inputs("param/")
    report = load_official(model, parameters, layout="dino")
    case.check("every parameter of the file has its place", set(report.loaded) == set(parameters))
    for height, width in names:
        outputs = compiled(
            lambda x: model(x, return_attention=True, return_intermediate=True, training=False)
        )(ops.convert_to_tensor(images[height, width]))
        name = f"{height}x{width}"
        case.compare(f"out/cls_{name}", outputs["tokens"][:, 0])
        case.compare(f"out/last_selfattention_{name}", outputs["attention"][-1])
        positions = model.interpolate_position_embedding(height, width)
        case.compare(f"out/pos_encoding_{name}", positions)
        for i, tokens in enumerate(outputs["intermediate"][-config["n_last"] :]):
            case.compare(f"out/intermediate{i}_{name}", model.norm(tokens))


# === Training ===


def build(config, channels: int) -> DINO:
    return DINO(
        vit(config, channels),
        output_dim=config["out_dim"],
        hidden_dim=config["head_hidden"],
        bottleneck_dim=config["head_bottleneck"],
        num_head_layers=config["head_nlayers"],
        head_batch_norm=config["use_bn"],
        normalize_last_layer=config["norm_last_layer"],
        student_temperature=config["student_temp"],
        teacher_temperature=config["teacher_temp"],
        warmup_teacher_temperature=config["warmup_teacher_temp"],
        warmup_teacher_epochs=config["warmup_teacher_temp_epochs"],
        center_momentum=config["center_momentum"],
        momentum=config["momentum_teacher"],
        freeze_last_layer=config["freeze_last_layer"],
        augmenter=None,
        preprocessor=None,
    )


@handler("dino", "training")
def training(case: Case):
    config = case.config
    # The arrays show how the teacher and the centre were made.
    config.generator_only("seed", "perturb", "track", "teacher", "center_scale")
    parameters = {**case.inputs("param/"), "center": case.input("in/center")}
    crops = _crops(case)
    keras.utils.set_random_seed(0)
    model = build(config, crops[0].shape[-1])
    _check_start(case, model)

    def load():
        report = load_official(model, parameters, layout="dino")
        model.epoch_batches.assign(1)  # one iteration makes an epoch there
        model.seen_batches.assign(0)
        model.teacher_total_steps.assign(config["epochs"])
        model.teacher_step.assign(0)
        return report

    loaded = set(load().loaded)
    theirs = {n for n in parameters if not n.endswith("num_batches_tracked")}
    wrong = ", ".join(sorted(loaded ^ theirs))
    case.check("every parameter of the file has its place", loaded == theirs, wrong)
    optimizer = _optimizer(case, model)
    _schedules(case, model, optimizer)
    _forward(case, model, crops)
    _gradients(case, model, crops, optimizer)
    load()
    model.compile(optimizer)
    rate = max(config["lr"], config["start_warmup_value"])
    decay = max(config["weight_decay"], config["weight_decay_end"])
    for step in range(1, config["steps"] + 1):
        model.reset_metrics()
        logs = model.train_on_batch(crops, return_dict=True)
        case.compare(f"step{step}/loss", np.float32(logs["loss"]))
        parts = logs["teacher_entropy"] + logs["teacher_student_kl"]
        case.check(f"step {step}: entropy and divergence", abs(parts - logs["loss"]) < 1e-4)
        case.compare(f"step{step}/center", model.center.center)
        ours, prefix = to_official(model, "dino"), f"step{step}/param/"
        for key in case.keys(prefix):
            name = key[len(prefix) :]
            _compare_step(case, key, ours[name], parameters[name], step, rate, decay)


def _compare_step(case, key, ours, start, step, rate, decay):
    config, name = case.config, key.split("/param/")[1]
    if name.endswith("running_mean"):
        # It holds the bias that normalisation subtracts, and so its rounding.
        floor = 2 * step * rate / BOUNDS["step"] if config["optimizer"] == "adamw" else 0.0
        case.compare(key, ours, floor=floor, because="moves with a bias of rounding only")
        return
    if name.endswith("running_var"):
        # Keras averages the variance that it normalises with, PyTorch n / (n - 1) times it.
        crops = 2 if name.startswith("teacher.") else 2 + config["n_local"]
        count, kept = crops * config["batch"], 0.9**step * start
        case.compare(key, kept + (ours - kept) * (count / (count - 1)))
        return
    theirs, adam = case.arrays[key], config["optimizer"] == "adamw"
    if _lost_in_norm(config, name):
        # Adam makes steps of size lr from what is only rounding, one way there and another here.
        apart, limit = np.abs(ours - theirs).max(), 2.02 * step * rate
        case.compared.add(key)
        case.check(f"{key}: moves by rounding only", apart <= limit, f"{apart:.1e} apart")
        return
    if name.startswith("student."):
        if adam:
            compare_parameter(case, key, ours, start, step, rate, decay)
        else:
            case.compare(key, ours)
            compare_move(case, key, ours, start)
        return
    if adam and name.endswith("attn.qkv.bias"):
        # The keys' third follows the student's, which moves by rounding and is checked there.
        third = len(ours) // 3
        ours = ours.copy()
        ours[third : 2 * third] = theirs[third : 2 * third]
    # A teacher's parameter whose student rests moves there by the rounding of `m p + (1 - m) p`.
    rests = np.abs(theirs - start).max() <= 4 * np.finfo("float32").eps * np.abs(start).max()
    case.compare(key, ours)
    compare_move(case, key, ours, start, adam=adam and not rests)


def _lost_in_norm(config, name):
    """Whether a bias has no gradient, as batch normalisation in the head subtracts it again."""
    if not (config["use_bn"] and config["head_nlayers"] > 1):
        return False
    match = re.search(r"head\.mlp\.(\d+)\.bias$", name)
    if match is None:
        return name.endswith("backbone.norm.bias")  # a linear layer follows, then normalisation
    return int(match[1]) % 3 == 0 and int(match[1]) < 3 * (config["head_nlayers"] - 1)


def _crops(case):
    config = case.config
    count = 2 + config["n_local"]
    crops = tuple(channels_last(case.input(f"in/crop{i}")) for i in range(count))
    sizes = [config["img_size"]] * 2 + [config["local_size"]] * config["n_local"]
    good = all(
        c.shape[1] == s and len(c) == config["batch"] for c, s in zip(crops, sizes, strict=True)
    )
    case.check("batch and sizes are those of the crops", good)
    return crops


def _check_start(case, model):
    fresh = {
        name.removeprefix("student."): array
        for name, array in to_official(model, "dino").items()
        if name.startswith("student.")
    }
    magnitude = "head.last_layer.weight_g"
    ones = bool((fresh[magnitude] == 1.0).all())
    case.check(f"start of {magnitude}", ones, "ones")
    check_initialisers(case, fresh, skip={magnitude: "ones, checked above"})


def _cosine(base, final, epochs, per_epoch=1, warmup_epochs=0, start=0.0):
    """`utils.cosine_scheduler`."""
    return schedules.WarmupCosine(
        base,
        total_steps=epochs * per_epoch,
        warmup_steps=warmup_epochs * per_epoch,
        start=start,
        final=final,
        warmup_includes_peak=True,
    )


def _learning_rate(config):
    return _cosine(
        config["lr"],
        config["min_lr"],
        config["epochs"],
        warmup_epochs=config["warmup_epochs"],
        start=config["start_warmup_value"],
    )


def _optimizer(case, model):
    """The model's default optimizer with the numbers of the file, or its groups on another."""
    config = case.config
    rate = _learning_rate(config)
    decay = _cosine(config["weight_decay"], config["weight_decay_end"], config["epochs"])
    groups = case.meta.get("optimizer_groups") or []
    kind = config["optimizer"]
    model.compile()
    default = model.default_optimizer(total_steps=1000, batch_size=256, steps_per_epoch=1)
    frozen = dict.fromkeys(default.get_config()["frozen_steps"], config["freeze_last_layer"])
    shared = {"frozen_steps": frozen, "clip_group_norm": config["clip_grad"] or None}
    if kind == "adamw":
        shared |= {"learning_rate": rate, "weight_decay": decay}
        for group in groups:
            if any(group.get(flag) for flag in ("amsgrad", "maximize")):
                raise UnknownOption("optimizer_groups: amsgrad and maximize are not offered")
            shared |= dict(zip(("beta_1", "beta_2"), group["betas"], strict=True))
            shared["epsilon"] = group["eps"]
        optimizer = optimizers.AdamW.from_config({**default.get_config(), **shared})
    elif kind in ("sgd", "lars"):
        if any(group.get(flag) for group in groups for flag in ("dampening", "maximize")):
            raise UnknownOption("optimizer_groups: dampening and maximize are not offered")
        adapted = {} if kind == "lars" else {"exclude_from_layer_adaptation": ("",)}
        optimizer = optimizers.LARS(
            rate,
            momentum=groups[0]["momentum"] if groups else 0.9,
            weight_decay=decay,
            momentum_holds="scaled_gradient",
            nesterov=any(group.get("nesterov") for group in groups),
            **adapted,
            **shared,
        )
    else:
        raise UnknownOption(f"config.optimizer = {kind!r}")
    _check_groups(case, model, optimizer, groups)
    return optimizer


def _check_groups(case, model, optimizer, groups):
    entries = _trained(model)
    rows = optimizer.parameter_groups(list(entries.values()))
    ours = {name: row["weight_decay"] for name, row in zip(entries, rows, strict=True)}
    # The second group has no decay; the schedule of the first is set before every step.
    theirs = {
        name.removeprefix("module."): i == 0 for i, g in enumerate(groups) for name in g["params"]
    }
    wrong = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    case.check("weight decay reaches the same parameters", not wrong, ", ".join(wrong))
    kept = case.meta.get("params_with_grad_after_cancel")
    if kept is not None:
        frozen = {n for n, row in zip(entries, rows, strict=True) if row["frozen_steps"] > 0}
        wrong = sorted((set(ours) - frozen) ^ set(kept))
        case.check("the same parameters rest at first", not wrong, ", ".join(wrong))


def _trained(model):
    """The student's parameters by official name, without "student."."""
    return {
        e.official.removeprefix("student."): e.variable
        for e in official_entries(model, "dino")
        if e.variable.trainable
    }


def _schedules(case, model, optimizer):
    epochs = np.arange(case.config["epochs"])
    case.compare("out/lr_schedule", _learning_rate(case.config)(epochs))
    case.compare("out/teacher_temp_schedule", model.teacher_schedule(epochs))
    case.compare("out/wd_schedule", optimizer.decay(epochs))
    momentum = schedules.CosineMomentum(len(epochs), base=case.config["momentum_teacher"])
    case.compare("out/momentum_schedule", momentum(epochs))


def _forward(case, model, crops):
    temperatures = [model.teacher_schedule(epoch) for epoch in case.config["loss_epochs"]]

    @compiled
    def forward(*views):
        with keras.StatelessScope() as scope:  # what the passes move is forgotten
            teacher = model.project_teacher(views[:2], training=True)
            student = model.project(views, training=True)
            losses = [
                model.dino_loss(student, model.center.probabilities(teacher, temperature))
                for temperature in temperatures
            ]
            model.center.update(teacher)
            center = scope.get_current_value(model.center.center)
        return teacher, student, losses, center

    teacher, student, losses, center = forward(*map(ops.convert_to_tensor, crops))
    # Crop after crop.
    case.compare("out/teacher_output", as_numpy(teacher).reshape(-1, teacher.shape[-1]))
    case.compare("out/student_output", as_numpy(student).reshape(-1, student.shape[-1]))
    case.compare("out/center_after", center)
    for epoch, loss in zip(case.config["loss_epochs"], losses, strict=True):
        case.compare(f"out/loss_at_epoch{epoch}", loss)


def _gradients(case, model, crops, optimizer):
    trained = _trained(model)
    theirs = {key[len("grad/") :] for key in case.keys("grad/")}
    wrong = sorted(theirs ^ set(trained))
    case.check("the same parameters are trained", not wrong, ", ".join(wrong))
    views = tuple(map(ops.convert_to_tensor, crops))
    loss, gradients = variable_gradients(
        lambda: model.compute_loss(x=views, training=True), list(trained.values())
    )
    case.compare("loss", loss)
    gradients = {id(v): g for v, g in zip(trained.values(), gradients, strict=True)}
    clipped = _clipped(gradients.values(), optimizer.clip_group_norm)
    clipped = dict(zip(gradients, clipped, strict=True))
    if not case.config["clip_grad"] and not any(
        case.arrays[key].any() for key in case.keys("grad_clipped/")
    ):
        # 0 turns clipping off in the script; the function itself, called with it, leaves nothing.
        clipped = {key: np.zeros_like(g) for key, g in clipped.items()}
    norms = case.meta.get("grad_norms_before_clip") or {}
    for prefix, values in (("grad/", gradients), ("grad_clipped/", clipped)):
        ours = to_official(model, "dino", values=lambda v, values=values: values.get(id(v)))
        for name, gradient in ours.items():
            name = name.removeprefix("student.")
            if prefix + name in case.arrays:
                _compare_gradient(case, prefix + name, gradient)
            if prefix == "grad/" and name in norms and not _lost_in_norm(case.config, name):
                norm = np.linalg.norm(gradient)
                good = abs(norm - norms[name]) <= 1e-4 * max(norms[name], 1e-3)
                case.check(f"norm of {name}", good, f"{norm:.6g}, theirs {norms[name]:.6g}")


def _compare_gradient(case, key, gradient):
    prefix, name = key.split("/")
    lost = _lost_in_norm(case.config, name)
    if prefix == "grad":
        (compare_zero_gradient if lost else Case.compare)(case, key, gradient)
        return
    # Judged as the gradient that it is made of: its rounding is not scaled where it is small.
    floor = (10 if lost else 1) * TINY * case.scale("grad/")
    because = "so small a gradient is known to the rounding of its neighbours"
    case.compare(key, gradient, bound=BOUNDS["gradient"], because=because, floor=floor)


def _clipped(gradients, limit):
    """What an optimizer makes of the gradients before it uses them."""
    gradients = list(gradients)
    zeros = [keras.Variable(np.zeros_like(g), name=f"v{i}") for i, g in enumerate(gradients)]
    plain = optimizers.LARS(
        1.0,
        momentum=0.0,
        weight_decay=0.0,
        exclude_from_layer_adaptation=("",),
        clip_group_norm=limit,
    )
    plain.apply([ops.convert_to_tensor(g) for g in gradients], zeros)
    return [-as_numpy(v) for v in zeros]


# === Utilities ===


@handler("dino", "utils")
def utils(case: Case):
    config = case.config
    config.generator_only("seed", "lars_shapes", "aug_size")
    for i, options in enumerate(config["schedules"]):
        schedule = _cosine(
            options["base_value"],
            options["final_value"],
            options["epochs"],
            options["niter_per_ep"],
            options.get("warmup_epochs", 0),
            options.get("start_warmup_value", 0.0),
        )
        steps = np.arange(options["epochs"] * options["niter_per_ep"])
        case.compare(f"out/cosine_scheduler{i}", schedule(steps))
    _lars(case, config["lars"], config["steps"])
    _augment(case, config["blur_radii"])


def _lars(case, options, steps):
    options.must_be(weight_decay_filter=None, lars_adaptation_filter=None)
    variables = make_variables(case.inputs("param/"))
    optimizer = optimizers.LARS(
        options["lr"],
        momentum=options["momentum"],
        weight_decay=options["weight_decay"],
        trust_coefficient=options["eta"],
        momentum_holds="scaled_gradient",
        exclude_1d=True,
    )
    optimizer.build(list(variables.values()))
    run_steps(
        case, optimizer, variables, "in/step{step}/grad/{name}", "step{step}/param/{name}", steps
    )


_ROUNDING = "PIL rounds to 8 bits after each of six passes: 1.5 levels on average, 3 at most"


def _augment(case, radii):
    image = case.input("in/aug_img")
    batch = ops.convert_to_tensor(image[None].astype("float32") / 255)
    for radius in radii:
        blurred = as_numpy(functional.gaussian_blur(batch, radius, padding="pil"))[0]
        _compare_levels(case, f"out/gaussian_blur_r{radius}", blurred)
    solarized = as_numpy(functional.solarize(batch))[0]
    case.compare("out/solarize", np.rint(solarized * 255).astype("uint8"))


def _compare_levels(case, key, ours):
    theirs = case.arrays[key].astype("float64") / 255
    case.compared.add(key)
    bound = 1.5 / 255 / np.sqrt(np.mean(theirs**2))
    case.compare_values(key, ours, theirs, bound=bound, because=_ROUNDING)
    most = 255 * np.abs(ours - theirs).max()
    case.check(f"{key}: every pixel", most <= 3.0, f"{most:.2f} levels at most")
