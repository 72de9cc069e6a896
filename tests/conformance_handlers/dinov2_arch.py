"""DINOv2: whole steps of the student, teacher, heads and centres through the compiled model."""

import keras
import numpy as np
from gradients import variable_gradients
from keras import ops

from conformance_handlers.dinov2 import build_backbone, compare_groups, groups_of, plain
from conformance_handlers.framework import Case, Options, UnknownOption, as_numpy, handler
from conformance_handlers.initial import check_initialisers
from conformance_handlers.mae_pretrain import channels_last, compare_parameter
from keras_ssl import optimizers, schedules
from keras_ssl.converters import load_official, official_entries, to_official
from keras_ssl.losses import masked_patches
from keras_ssl.models import DINOv2


class Given(DINOv2):
    """Views and masks come with the data, crop after crop."""

    def make_views(self, x, training):
        self.given, views = x[-2:], x[:-2]
        return views

    def draw_masks(self, views, training=False):
        return ops.concatenate(self.given, axis=0)


def _options(case):
    """The whole configuration there; `overrides` are in it."""
    config = case.config
    config.generator_only("seed", "perturb", "overrides", "track", "teacher")
    full = Options(case.meta["full_config"], "full_config")
    # Left at their defaults there: files, devices, what the tiny runs do not reach.
    full.generator_only("MODEL", "compute_precision", "evaluation")
    return full


def _model(case, full):
    crops, student, teacher = full["crops"], full["student"], full["teacher"]
    train, dino, ibot, optim = full["train"], full["dino"], full["ibot"], full["optim"]
    student.generator_only("arch", "drop_path_uniform")
    student.must_be(pretrained_weights="", drop_path_rate=0.0)
    crops.generator_only("global_crops_scale", "local_crops_scale", "local_crops_size")
    if train["centering"] not in ("centering", "sinkhorn_knopp"):
        raise UnknownOption(f"full_config.train.centering = {train['centering']!r}")
    size = crops["global_crops_size"]
    channels = case.arrays["param/student.backbone.patch_embed.proj.weight"].shape[1]
    keras.utils.set_random_seed(0)
    backbone = build_backbone(
        case.config["vit"],
        student,
        (size, size, channels),
        layer_scale_init=student["layerscale"] or None,
    )
    return Given(
        backbone,
        output_dim=dino["head_n_prototypes"],
        hidden_dim=dino["head_hidden_dim"],
        bottleneck_dim=dino["head_bottleneck_dim"],
        num_head_layers=dino["head_nlayers"],
        separate_head=ibot["separate_head"],
        ibot_output_dim=ibot["head_n_prototypes"],
        ibot_hidden_dim=ibot["head_hidden_dim"],
        ibot_bottleneck_dim=ibot["head_bottleneck_dim"],
        ibot_num_head_layers=ibot["head_nlayers"],
        dino_weight=dino["loss_weight"],
        ibot_weight=ibot["loss_weight"],
        koleo_weight=dino["koleo_loss_weight"],
        centering=train["centering"],
        teacher_temperature=teacher["teacher_temp"],
        warmup_teacher_temperature=teacher["warmup_teacher_temp"],
        warmup_teacher_epochs=teacher["warmup_teacher_temp_epochs"],
        mask_ratio=tuple(ibot["mask_ratio_min_max"]),
        mask_probability=ibot["mask_sample_probability"],
        momentum=teacher["momentum_teacher"],
        freeze_last_layer=optim["freeze_last_layer_epochs"],
        layer_decay=optim["layerwise_decay"],
        patch_embedding_multiplier=optim["patch_embed_lr_mult"],
        clip_norm=optim["clip_grad"] or None,  # 0 turns it off there
        augmenter=None,
        preprocessor=None,
    )


class Late(schedules.Schedule):
    """A schedule whose first steps lie behind it, while the optimizer's moments are new."""

    def __init__(self, schedule, start):
        super().__init__()
        self.schedule, self.start = schedule, start

    def __call__(self, step):
        return self.schedule(ops.cast(step, "float32") + self.start)


class Recording(optimizers.AdamW):
    """Keeps the norms of the gradients that it gets, group by group, from before the clipping."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            groups = self.get_config()["clip_groups"] or []
            self.norms = self.add_variable(
                shape=(len(groups),), dtype="float32", initializer="zeros", name="norms"
            )

    def _clip_gradients(self, grads):
        groups = self.get_config()["clip_groups"]
        if groups is None:
            return super()._clip_gradients(grads)
        squares = [ops.zeros(()) for _ in groups]
        rows = self.parameter_groups()
        for gradient, variable in zip(grads, self._step.known, strict=True):
            group = rows[self._get_variable_index(variable)]["clip_group"]
            i = groups.index(group)
            squares[i] = squares[i] + ops.sum(ops.square(gradient))
        self.norms.assign(ops.sqrt(ops.stack(squares)))
        return super()._clip_gradients(grads)


def _optimizer(case, full, model):
    """The model's default optimizer, its schedules with the numbers of the file."""
    optim, train, config = full["optim"], full["train"], case.config
    optim.generator_only("base_lr", "scaling_rule")  # `lr` is what they give
    for name in ("dataset_path", "output_dir", "saveckp_freq", "seed", "num_workers"):
        train.generator_only(name)
    train.generator_only("cache_dataset")
    train.must_be(batch_size_per_gpu=config["batch"])
    full["teacher"].must_be(final_momentum_teacher=1)
    length, start = train["OFFICIAL_EPOCH_LENGTH"], config["start_iter"]
    total, freeze = optim["epochs"] * length, optim["freeze_last_layer_epochs"] * length
    rate = schedules.WarmupCosine(
        optim["lr"],
        total_steps=total,
        warmup_steps=optim["warmup_epochs"] * length,
        final=optim["min_lr"],
        warmup_includes_peak=True,
    )
    decay = schedules.WarmupCosine(
        optim["weight_decay"], total_steps=total, final=optim["weight_decay_end"]
    )
    rest = schedules.WarmupCosine(1.0, total, final=1.0, freeze_steps=freeze)
    default = model.default_optimizer(total_steps=total, batch_size=1024, steps_per_epoch=length)
    settings = default.get_config()
    multipliers = {
        pattern: Late(rest, start) if isinstance(multiplier, dict) else multiplier
        for pattern, multiplier in settings["learning_rate_multipliers"].items()
    }
    groups = case.meta["optimizer_groups"]
    for group in groups:
        if any(group.get(flag) for flag in ("amsgrad", "maximize")):
            raise UnknownOption("optimizer_groups: amsgrad and maximize are not offered")
        case.check("epsilon", group["eps"] == default.epsilon)
    optimizer = Recording.from_config(
        {
            **settings,
            "learning_rate": Late(rate, start),
            "weight_decay": Late(decay, start),
            "beta_1": optim["adamw_beta1"],
            "beta_2": optim["adamw_beta2"],
            "learning_rate_multipliers": multipliers,
        }
    )
    theirs = {
        plain(name): (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
        for group in groups
        for name in group["params"]
    }
    compare_groups(case, theirs, groups_of(model, optimizer, prefix="student."))
    model.teacher_total_steps.assign(total)
    model.epoch_batches.assign(length)
    steps = np.arange(len(case.arrays["out/schedule/lr"]))
    case.compare("out/schedule/lr", rate(steps))
    case.compare("out/schedule/wd", decay(steps))
    case.compare("out/schedule/last_layer_lr", rate(steps) * rest(steps))
    momentum, temperature = [], []
    for step in steps:
        model.teacher_step.assign(int(step))
        model.seen_batches.assign(int(step) + 1)
        momentum.append(1.0 - as_numpy(model.teacher_rate()))
        temperature.append(as_numpy(model.current_teacher_temperature()))
    case.compare("out/schedule/momentum", np.stack(momentum))
    case.compare("out/schedule/teacher_temp", np.stack(temperature))
    return optimizer


def _batch(case, step, crops_local):
    """A step's views and masks, as tensors crop after crop."""
    prefix = f"in/step{step}/"
    batch = case.config["batch"]
    views = []
    for kind, count in (("global", 2), ("local", crops_local)):
        if count:
            crops = channels_last(case.input(f"{prefix}collated_{kind}_crops"))
            case.check(f"{kind} crops of step {step}", len(crops) == count * batch)
            views += np.split(crops, count)
    masks = case.input(f"{prefix}collated_masks")
    indices, weights = (case.input(prefix + k) for k in ("mask_indices_list", "masks_weight"))
    count, limit = case.input(f"{prefix}n_masked_patches"), case.input(f"{prefix}upperbound")
    good = int(count[0]) == masks.sum() == len(indices) <= limit
    case.check(f"masked patches of step {step}", bool(good))
    places, ours = (as_numpy(a) for a in masked_patches(masks, len(indices)))
    case.check(f"their places in step {step}", bool((places == indices).all()))
    case.compare_values(f"step{step}/masks_weight", ours * len(masks), weights)
    return (*views, *np.split(masks, 2))


@handler("dinov2_arch", "arch")
def arch(case: Case):
    full = _options(case)
    model = _model(case, full)
    parameters = case.inputs("param/")
    centers = {
        "dino_loss.center": model.dino_center.center,
        "ibot_patch_loss.center": model.ibot_center.center,
    }
    state = {plain(n): a for n, a in parameters.items() if n not in centers}
    fresh = to_official(model, "dinov2")
    named = {n.removeprefix("student."): a for n, a in fresh.items() if n.startswith("student.")}
    named |= fresh
    stats = case.meta.get("init_stats") or {}
    check_initialisers(case, {n: named[plain(n)] for n in stats if plain(n) in named})
    optimizer = _optimizer(case, full, model)
    model.compile(optimizer)

    def load():
        report = load_official(model, state, layout="dinov2")
        case.check("every parameter has its place", set(report.loaded) == set(state))
        for name, variable in centers.items():
            variable.assign(parameters[name].reshape(variable.shape))
        model.teacher_step.assign(case.config["start_iter"])
        model.seen_batches.assign(case.config["start_iter"])

    load()
    local = full["crops"]["local_crops_number"]
    steps = range(1, case.config["steps"] + 1)
    batches = [_batch(case, step, local) for step in steps]
    # Masks that are given may be more than the model would draw; the buffer has room for them.
    room = max(int(case.arrays[f"in/step{step}/upperbound"]) for step in steps)
    own = model.masking.limit
    model.masking.limit = lambda views: max(room, own(views))
    entries = {entry.official: entry for entry in official_entries(model, "dinov2")}
    keys = case.keys("grad/")
    found = [entries[plain(key[len("grad/") :])] for key in keys]
    trained = {id(v) for v in model.trainable_variables}
    case.check("the same parameters are trained", trained == {id(e.variable) for e in found})
    views = tuple(map(ops.convert_to_tensor, batches[0]))
    loss, gradients = variable_gradients(
        lambda: model.compute_loss(x=views, training=True), [e.variable for e in found]
    )
    case.compare("loss", loss)
    for key, entry, gradient in zip(keys, found, gradients, strict=True):
        case.compare(key, entry.to_official(gradient))

    load()
    optimizer.build(model.trainable_variables)
    clipped = optimizer.get_config()["clip_groups"] or []
    networks = {"": "backbone"} | {
        pattern: pattern.split(")")[-1].strip("/") for pattern in clipped[:-1]
    }
    scales = {
        "dino_local_crops_loss": ("dino_local", model.dino_weight),
        "dino_global_crops_loss": ("dino_global", model.dino_weight),
        "koleo_loss": ("koleo", 2.0),  # half of it is displayed there
        "ibot_loss": ("ibot", 2.0 * model.ibot_weight),
    }
    for step, batch in enumerate(batches, 1):
        # Theirs takes in a batch when the next one comes: it holds what ours held before.
        for name, variable in centers.items():
            key = f"step{step}/{name}"
            case.compare(key, as_numpy(variable).reshape(case.arrays[key].shape))
        model.reset_metrics()
        logs = model.train_on_batch(batch, return_dict=True)
        case.compare(f"step{step}/loss", np.float32(logs["loss"]))
        for name, (ours, scale) in scales.items():
            key = f"step{step}/{name}"
            if key in case.arrays:
                case.compare(key, np.float32(logs[ours] / scale))
        norms = as_numpy(optimizer.norms)
        for pattern, norm in zip(clipped, norms, strict=True):
            key = f"step{step}/grad_norm/{networks[pattern]}"
            if key in case.arrays:
                case.compare(key, norm)
        prefix = f"step{step}/param/"
        rate = full["optim"]["lr"]
        for key in case.keys(prefix):
            name = key[len(prefix) :]
            value = entries[plain(name)].to_official(as_numpy(entries[plain(name)].variable))
            if name.startswith("student."):
                decay = full["optim"]["weight_decay_end"]
                compare_parameter(case, key, value, parameters[name], step, rate, decay)
            else:
                case.compare(key, value)
    for name in full.unread():
        case.problems.append(f"unknown option: {name}")
