"""DINOv2's parts: the backbone, the losses with their head, schedules, block masks."""

import random
import re

import keras
import numpy as np
from gradients import compiled, input_gradients, variable_gradients
from keras import ops
from masking_reference import Recorder, block_mask

from conformance_handlers.framework import Case, as_numpy, handler
from conformance_handlers.initial import check_initialisers
from conformance_handlers.mae_pretrain import channels_last, image_shape
from keras_ssl import schedules
from keras_ssl.backbones import ViTBackbone
from keras_ssl.converters import load_official, official_entries, to_official
from keras_ssl.converters.dino import dino_head
from keras_ssl.layers import DINOHead, block_masks
from keras_ssl.losses import (
    IBOTPatchLoss,
    KoLeoLoss,
    masked_patches,
    patch_weights,
    sinkhorn_knopp,
)
from keras_ssl.losses.dino import Center, DINOLoss
from keras_ssl.models import DINOv2

FFN = {"mlp": "mlp", "swiglu": "swiglu", "swiglufused": "swiglu"}  # both are fused there


def build_backbone(vit, student, image_shape, **kwargs) -> ViTBackbone:
    """Our backbone of the official options: those of the architecture, and those beside it."""
    student.must_be(proj_bias=True, ffn_bias=True)
    student.generator_only("block_chunks")  # only how blocks are named
    return ViTBackbone(
        image_shape=image_shape,
        patch_size=student["patch_size"],
        hidden_dim=vit["embed_dim"],
        num_layers=vit["depth"],
        num_heads=vit["num_heads"],
        mlp_ratio=vit["mlp_ratio"],
        ffn=FFN[student["ffn_layer"]],
        qkv_bias=student.get("qkv_bias", True),
        num_register_tokens=student["num_register_tokens"],
        use_mask_token=True,
        interpolation_offset=student["interpolate_offset"],
        interpolation_antialias=student["interpolate_antialias"],
        initializer="dinov2",
        **kwargs,
    )


def plain(name: str) -> str:
    """Blocks in chunks (`blocks.0.3.`) are named by their place in the whole (`blocks.3.`)."""
    return re.sub(r"(^|\.)blocks\.\d+\.(?=\d+\.)", r"\1blocks.", name)


@handler("dinov2", "backbone")
def backbone(case: Case):
    config = case.config
    config.generator_only("seed", "perturb")
    parameters = {plain(name): array for name, array in case.inputs("param/").items()}
    channels = parameters["patch_embed.proj.weight"].shape[1]
    depth = config["stochastic_depth"]
    keras.utils.set_random_seed(0)
    model = build_backbone(
        config,
        config,
        image_shape(config, channels),
        layer_scale_init=config["init_values"] or None,  # 0 is none there
        drop_path_rate=depth["rate"],
        drop_path_uniform=True,
        drop_path_subset=True,
    )
    fresh = to_official(model, "dinov2")
    stats = case.meta.get("init_stats") or {}
    check_initialisers(case, {name: fresh[plain(name)] for name in stats if plain(name) in fresh})
    report = load_official(model, parameters, layout="dinov2")
    case.check("every parameter of the file has its place", set(report.loaded) == set(parameters))
    for i, (height, width) in enumerate(config["sizes"]):
        _compare_size(case, model, f"{height}x{width}", gradients=i == 0)
    _stochastic_depth(case, model)
    _parameter_groups(case, model)


def _compare_size(case, model, size, gradients):
    height, width = (int(side) for side in size.split("x"))
    case.compare(f"out/pos_encoding_{size}", model.interpolate_position_embedding(height, width))
    images = channels_last(case.input(f"in/img_{size}"))
    masks = case.input(f"in/mask_{size}")
    case.check("batch is that of the input", case.config["batch"] == len(images))
    registers, prefix = model.num_register_tokens, model.num_prefix_tokens

    @compiled
    def forward(images, masks):
        results = {}
        for name, mask in (("nomask", None), ("mask", masks)):
            out = model(images, patch_mask=mask, return_intermediate=True)
            results[f"{name}/x_prenorm"] = out["intermediate"][-1]
            results[f"{name}/x_norm_clstoken"] = out["tokens"][:, 0]
            if registers:
                results[f"{name}/x_norm_regtokens"] = out["tokens"][:, 1:prefix]
            results[f"{name}/x_norm_patchtokens"] = out["tokens"][:, prefix:]
            if mask is not None:
                continue
            results["head"] = out["tokens"][:, 0]  # the head there is the identity
            for i, tokens in enumerate(out["intermediate"][-case.config["n_last"] :]):
                tokens = model.norm(tokens)
                grid = (-1, *model.grid_of(height, width), model.hidden_dim)
                results[f"intermediate{i}_cls"] = tokens[:, 0]
                results[f"intermediate{i}_map"] = ops.reshape(tokens[:, prefix:], grid)
        return results

    for name, value in forward(*map(ops.convert_to_tensor, (images, masks))).items():
        value = as_numpy(value)
        value = np.moveaxis(value, -1, 1) if name.endswith("_map") else value
        case.compare(f"out/{name}_{size}", value)
    if not gradients:
        return
    given = [case.input(f"in/grad_weight_{which}") for which in ("patch", "cls")]
    outputs = [case.arrays[f"out/mask/x_norm_{k}_{size}"] for k in ("patchtokens", "clstoken")]
    terms = [np.linalg.norm(x * w) for x, w in zip(outputs, given, strict=True)]
    patch_weight, token_weight = map(ops.convert_to_tensor, given)

    def loss():
        tokens = model(ops.convert_to_tensor(images), patch_mask=ops.convert_to_tensor(masks))
        return ops.sum(tokens[:, prefix:] * patch_weight) + ops.sum(tokens[:, 0] * token_weight)

    entries = {entry.official: entry for entry in official_entries(model, "dinov2")}
    keys = case.keys("grad/")
    found = [entries[plain(key[len("grad/") :])] for key in keys]
    value, values = variable_gradients(loss, [entry.variable for entry in found])
    because = "a sum of terms of either sign is known to their rounding, also near zero"
    case.compare("loss", value, floor=np.linalg.norm(terms), because=because)
    for key, entry, gradient in zip(keys, found, values, strict=True):
        case.compare(key, entry.to_official(gradient))


def _stochastic_depth(case, model):
    """The branches of a random part of the batch only, the permutations given."""
    config = case.config["stochastic_depth"]
    images = channels_last(case.input("in/sd_img"))
    orders = case.input("in/sd_perms")
    case.check("batch of stochastic depth", config["batch"] == len(images) == orders.shape[1])
    draws = np.empty(orders.shape, "float32")  # that sort into the given order
    np.put_along_axis(draws, orders, np.arange(orders.shape[1]) / orders.shape[1], axis=1)
    draws = draws.reshape(model.num_layers, 2, -1)
    model.draw_drop_path = lambda batch: ops.convert_to_tensor(draws)
    tokens = compiled(lambda x: model(x, training=True))(ops.convert_to_tensor(images))
    case.compare("out/sd_x_norm_patchtokens", tokens[:, model.num_prefix_tokens :])


def compare_groups(case, theirs, ours):
    """Per parameter: what its learning rate and weight decay are multiplied with, last layer."""
    case.check("the same parameters are trained", set(theirs) == set(ours))
    for name in sorted(set(theirs) & set(ours)):
        same = np.allclose(ours[name], theirs[name], rtol=1e-6)
        note = f"{ours[name]}, theirs {theirs[name]}"
        case.check(f"multipliers of {name}", bool(same), note)


def groups_of(model, optimizer, prefix=""):
    """Official name to (learning rate multiplier, decay multiplier, whether in the last layer)."""
    entries = [
        e
        for e in official_entries(model, "dinov2")
        if e.variable.trainable and e.official.startswith(prefix)
    ]
    rows = optimizer.parameter_groups([entry.variable for entry in entries])
    groups = {}
    for entry, row in zip(entries, rows, strict=True):
        multiplier = row["learning_rate_multiplier"]
        last = callable(multiplier)  # 0, then 1
        groups[entry.official[len(prefix) :]] = (
            float(multiplier(10**9)) if last else multiplier,
            float(row["weight_decay"]),
            last,
        )
    return groups


def _parameter_groups(case, model):
    config = case.config
    task = DINOv2(
        model,
        output_dim=8,
        hidden_dim=8,
        bottleneck_dim=8,
        layer_decay=config["lr_decay"],
        patch_embedding_multiplier=config["patch_embed_lr_mult"],
        augmenter=None,
        preprocessor=None,
    )
    optimizer = task.default_optimizer(total_steps=10, batch_size=8, steps_per_epoch=1)
    ours = groups_of(task, optimizer, prefix="student.")
    ours = {n[9:]: group for n, group in ours.items() if n.startswith("backbone.")}
    theirs = {plain(n): group for n, group in case.meta["param_groups_with_decay"].items()}
    compare_groups(case, theirs, ours)


@handler("dinov2", "losses")
def losses(case: Case):
    config = case.config
    config.generator_only("seed", "perturb")
    temperatures = config["teacher_temps"]
    _dino(case, temperatures)
    _ibot(case, temperatures[0])
    koleo = KoLeoLoss()
    value, (gradient,) = input_gradients(koleo, case.input("in/koleo/x"))
    case.compare("out/koleo/loss", value)
    case.compare("grad/koleo/x", gradient)
    near = ops.convert_to_tensor(case.input("in/koleo/near_duplicate"))
    case.compare("out/koleo/near_duplicate_loss", compiled(koleo)(near))
    _head(case)


def _dino(case, temperatures):
    config = case.config
    teacher, later = (ops.convert_to_tensor(case.input(f"in/dino/{k}")) for k in TEACHERS)
    for key in case.keys("out/dino/sinkhorn_"):
        kind, number = re.fullmatch(r"out/dino/sinkhorn_(T|iters)(.+)", key).groups()
        temperature, iterations = temperatures[0], 3
        if kind == "T":
            temperature = float(number)
            case.check(f"{key}: temperature", temperature in temperatures)
        else:
            iterations = int(number)
        case.compare(key, _sinkhorn(teacher, temperature, iterations))
    temperature = temperatures[0]
    center = Center(config["out_dim"], momentum=config["center_momentum"])
    case.compare("out/dino/softmax_center_1", _softmax(center, teacher, temperature))
    # Theirs lags: the update is applied when the next targets are made. Ours is up to date then.
    case.compare("out/dino/center_attr_before_apply", center.center)
    center.update(teacher)
    case.compare("out/dino/center_after_apply", center.center)
    targets = _softmax(center, later, temperature)
    case.compare("out/dino/softmax_center_2", targets)
    crops = [case.input(f"in/dino/student{i}") for i in range(config["n_student"])]
    case.check("batch of the crops", all(len(crop) == config["batch"] for crop in crops))
    targets = ops.reshape(targets, (-1, config["batch"], config["out_dim"]))
    loss = DINOLoss(config["student_temp"], reduction="sum")
    value, gradients = input_gradients(
        lambda *s: loss([x + 0.0 for x in s], targets, exclude_same=False), *crops
    )
    case.compare("out/dino/loss", value)
    for i, gradient in enumerate(gradients):
        case.compare(f"grad/dino/student{i}", gradient)


TEACHERS = ("teacher", "teacher_next")


def _sinkhorn(logits, temperature, iterations=3, mask=None):
    return compiled(lambda x: sinkhorn_knopp(x, temperature, iterations, mask))(logits)


def _softmax(center, logits, temperature):
    return compiled(lambda x: center.probabilities(x, temperature))(logits)


def _ibot(case, temperature):
    config = case.config
    student, teacher = (case.input(f"in/ibot/{w}_full") for w in ("student", "teacher"))
    masks = case.input("in/ibot/masks")
    shape = (config["batch"], config["n_patches"], config["out_dim"])
    case.check("shape of the patches", student.shape == teacher.shape == shape)
    center = Center(config["out_dim"], momentum=config["center_momentum"])
    targets = _softmax(center, ops.convert_to_tensor(teacher), temperature)
    case.compare("out/ibot/softmax_center_full", targets)
    loss = IBOTPatchLoss(config["student_temp"])
    value, (gradient,) = input_gradients(lambda s: loss(s, targets, mask=masks), student)
    case.compare("out/ibot/loss_full", value)
    case.compare("grad/ibot/student_full", gradient)
    center.update(ops.convert_to_tensor(teacher))
    case.compare("out/ibot/center_after_apply", as_numpy(center.center)[None])
    targets_2 = _softmax(center, ops.convert_to_tensor(teacher), temperature)
    case.compare("out/ibot/softmax_center_full_2", targets_2)

    # Picked patches: rows beyond the masked ones stand for the buffer that there is cut off.
    indices, count = case.input("in/ibot/mask_indices"), int(masks.sum())
    pick = compiled(lambda masks: masked_patches(masks, limit=count + 2))
    places, weights = (as_numpy(a) for a in pick(ops.convert_to_tensor(masks)))
    case.check("places of the masked patches", bool((places[:count] == indices).all()))
    case.compare_values(
        "out/ibot/masks_weight",
        weights[:count] * config["batch"],
        case.input("in/ibot/masks_weight"),
    )
    flat = (-1, config["out_dim"])
    picked = teacher.reshape(flat)[places]
    targets = _sinkhorn(ops.convert_to_tensor(picked), temperature, mask=weights > 0)
    case.compare("out/ibot/sinkhorn_masked", targets[:count])
    value, (gradient,) = input_gradients(
        lambda s: loss(s, targets, weights=weights), student.reshape(flat)[places]
    )
    case.compare("out/ibot/loss_masked", value)
    case.compare("grad/ibot/student_masked", gradient[:count])
    case.check("rows that stand for no patch have no gradient", not gradient[count:].any())
    # Weights of their own: the same, made from the masks.
    weights = as_numpy(patch_weights(masks)).ravel()[indices]
    value = compiled(lambda s, t: loss(s, t, weights=weights))(
        ops.convert_to_tensor(student.reshape(flat)[indices]), targets[:count]
    )
    case.compare("out/ibot/loss_masked_no_weight", value)


def _head(case):
    config = case.config
    head = DINOHead(
        config["out_dim"],
        hidden_dim=config["head_hidden"],
        bottleneck_dim=config["head_bottleneck"],
        num_layers=config["head_nlayers"],
        normalize_last_layer=False,
    )
    head.build((None, config["dim"]))
    variables = {}
    for official, ours, how in dino_head("", "", head):
        value = head
        for part in ours.strip(".").split("."):
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        variables[official.strip(".")] = value, (lambda a: a.T) if how == "linear" else np.asarray
    stats = case.meta.get("head_init_stats") or {}
    fresh = {name: turn(as_numpy(v)) for name, (v, turn) in variables.items()}
    case.meta.setdefault("init_stats", stats)
    check_initialisers(case, fresh)
    for name, array in case.inputs("param/head.").items():
        variable, turn = variables[name]
        variable.assign(np.ascontiguousarray(turn(array)))
    x = keras.Variable(case.input("in/head/x"), dtype="float32")
    weight = ops.convert_to_tensor(case.input("in/head/w"))
    case.compare("out/head/y", compiled(head)(ops.convert_to_tensor(x)))
    everything = [x, *(variable for variable, _ in variables.values())]
    _, gradients = variable_gradients(lambda: ops.sum(head(x) * weight), everything)
    case.compare("grad/head/x", gradients[0])
    for (name, (_, turn)), gradient in zip(variables.items(), gradients[1:], strict=True):
        case.compare(f"grad/head.{name}", turn(gradient))


@handler("dinov2", "utils")
def utils(case: Case):
    config = case.config
    for i, options in enumerate(config["schedules"]):
        # There the last value holds past the end, and a lookup past it is allowed: three are kept.
        values = case.arrays[f"out/cosine{i}"]
        schedule = schedules.WarmupCosine(
            options["base_value"],
            total_steps=options["total_iters"],
            warmup_steps=options.get("warmup_iters", 0),
            start=options.get("start_warmup_value", 0.0),
            final=options["final_value"],
            freeze_steps=options.get("freeze_iters", 0),
            warmup_includes_peak=True,
        )
        case.compare(f"out/cosine{i}", schedule(np.arange(len(values))))
    source = random.Random(config["seed"])
    for i, table in enumerate(config["masking"]):
        init, counts = table["init"], table["counts"]
        size = init["input_size"]
        grid = tuple(size) if isinstance(size, list) else (size, size)
        options = dict(
            min_patches=init.get("min_num_patches", 4),
            max_patches=init.get("max_num_patches"),
            min_aspect=init.get("min_aspect", 0.3),
        )
        init.must_be(max_aspect=(None, 1 / options["min_aspect"]), num_masking_patches=None)
        case.compare(f"out/masks{i}", _replayed(case, source, counts, grid, **options))
    _collate(case, config["collate"], random.Random(config["seed"] + 7))


def _replayed(case, source, counts, grid, **options):
    """Masks of the official order of draws, placed by our layer from the same draws."""
    reference, draws = [], []
    for count in counts:
        recorder = Recorder(source)
        reference.append(block_mask(recorder, count, grid, **options))
        draws.append(recorder.attempts)
    longest = max(map(len, draws)) or 1
    draws = [attempts + [[0.5] * 4] * (longest - len(attempts)) for attempts in draws]
    ours = as_numpy(block_masks(np.array(draws), np.array(counts), grid, **options))
    case.check("blocks put down in the step = one after the other", bool((ours == reference).all()))
    return ours


def _collate(case, config, source):
    """A batch: crops crop-major, ratios spread evenly over half of the pictures, masks shuffled."""
    for kind, count in (("global", 2), ("local", config["n_local"])):
        crops = [
            case.input(f"in/sample{sample}_{kind}{crop}")
            for crop in range(count)
            for sample in range(config["batch"])
        ]
        size = config[kind]
        case.check(f"size of {kind} crops", all(c.shape[1:] == (size, size) for c in crops))
        case.compare(f"out/collate/collated_{kind}_crops", np.stack(crops))
    side = config["global"] // config["patch"]
    patches, pictures = side * side, 2 * config["batch"]
    masked, (low, high) = int(pictures * config["mask_prob"]), config["mask_ratio"]
    edges = np.linspace(low, high, masked + 1).astype("float32")  # as torch counts
    masks, limit = np.zeros((pictures, side, side), bool), 0
    for i in range(masked):
        count = int(patches * source.uniform(edges[i], edges[i + 1]))
        limit += int(patches * edges[i + 1])
        masks[i] = _replayed(case, source, [count], (side, side), max_patches=patches // 2)[0]
    order = list(range(pictures))
    source.shuffle(order)
    masks = masks[order].reshape(pictures, -1)
    case.compare("out/collate/collated_masks", masks)
    case.compare("out/collate/upperbound", np.array(limit))
    case.compare("out/collate/n_masked_patches", np.array([masks.sum()]))
    places, weights = masked_patches(masks, limit)
    count = int(masks.sum())
    case.compare("out/collate/mask_indices_list", as_numpy(places)[:count])
    # Ours hold the division by the number of pictures, which is the loss's there.
    case.compare("out/collate/masks_weight", as_numpy(weights)[:count] * pictures)
