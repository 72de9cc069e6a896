"""MAE pretraining: forward pass, gradients, and AdamW steps through the compiled model."""

import keras
import numpy as np
from gradients import compiled, variable_gradients
from keras import ops

from conformance_handlers.framework import BOUNDS, Case, UnknownOption, as_numpy, handler
from conformance_handlers.initial import check_initialisers
from conformance_handlers.optimizers import compare_move
from keras_ssl.backbones import ViTBackbone
from keras_ssl.converters import load_official, official_entries, to_official
from keras_ssl.models import MAE


def image_shape(config, channels: int) -> tuple[int, int, int]:
    """(height, width, channels); the official size is one number, or a pair where given so."""
    size = config["img_size"]
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    config.must_be(in_chans=channels)
    return height, width, channels


def channels_last(images):
    return np.moveaxis(images, 1, -1)


def build(config, channels: int) -> MAE:
    backbone = ViTBackbone(
        image_shape=image_shape(config, channels),
        patch_size=config["patch_size"],
        hidden_dim=config["embed_dim"],
        num_layers=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        layer_norm_epsilon=config["ln_eps"],
        position_embedding="sincos",
        initializer="mae",
    )
    return MAE(
        backbone,
        decoder_hidden_dim=config["decoder_embed_dim"],
        decoder_num_layers=config["decoder_depth"],
        decoder_num_heads=config["decoder_num_heads"],
        decoder_mlp_ratio=config["mlp_ratio"],
        mask_ratio=config["mask_ratio"],
        normalize_targets=config["norm_pix_loss"],
        augmenter=None,
        preprocessor=None,
    )


@handler("mae", "pretrain")
def mae_pretrain(case: Case):
    config = case.config
    config.generator_only("seed", "perturb")
    images = channels_last(case.input("in/imgs"))
    noise = case.input("in/noise")
    parameters = case.inputs("param/")
    steps = config["steps"]
    case.check("batch and steps are those of the inputs", config["batch"] == len(images))
    case.check("one noise for every step", steps <= len(noise), f"{steps} of {len(noise)}")

    keras.utils.set_random_seed(0)
    model = build(config, images.shape[-1])
    check_initialisers(case, to_official(model, "mae"))
    report = load_official(model, parameters, layout="mae")
    case.check("every parameter of the file has its place", set(report.loaded) == set(parameters))

    _forward(case, model, images, noise[0])
    _gradients(case, model, images, noise[0])
    _steps(case, model, images, noise, steps, parameters)


def _forward(case, model, images, noise):
    @compiled
    def forward(images, noise):
        visible, mask, restore = model.mask_patches(noise)
        latent = model.encode_visible(images, visible)
        prediction = model.decode(latent, restore)
        pictures = model.unpatchify(prediction)
        return mask, restore, latent, prediction, model.patchify(images), pictures

    images, noise = ops.convert_to_tensor(images), ops.convert_to_tensor(noise)
    mask, restore, latent, prediction, patches, pictures = map(as_numpy, forward(images, noise))
    case.compare("out/mask", mask)
    case.compare("out/ids_restore", restore)
    case.compare("out/latent", latent)
    case.compare("out/pred", prediction)
    case.compare("out/patchify", patches)
    case.compare("out/unpatchify_pred", np.moveaxis(pictures, -1, 1))  # the reference is NCHW


def _gradients(case, model, images, noise):
    x = {"images": ops.convert_to_tensor(images), "noise": ops.convert_to_tensor(noise)}
    variables = model.trainable_variables
    loss, gradients = variable_gradients(lambda: model.compute_loss(x=x, training=True), variables)
    case.compare("loss", loss)
    by_variable = {id(v): g for v, g in zip(variables, gradients, strict=True)}
    ours = to_official(model, "mae", values=lambda v: by_variable.get(id(v)), trainable_only=True)
    theirs = {key[len("grad/") :] for key in case.keys("grad/")}
    for name in sorted(theirs & set(ours)):
        case.compare(f"grad/{name}", ours[name])
    frozen = {n for n, s in case.meta.get("init_stats", {}).items() if not s["requires_grad"]}
    case.check(
        "the same parameters are frozen",
        not frozen & set(ours),
        f"frozen there: {', '.join(sorted(frozen))}",
    )


def make_optimizer(case, model):
    """The model's default optimizer with the numbers of the file; the groups are its own."""
    config = case.config
    learning_rate, decay = config["lr"], config["weight_decay"]
    beta_1, beta_2 = config["betas"]
    epsilon = 1e-8  # torch's default
    groups = case.meta.get("optimizer_groups") or []
    for group in groups:
        if any(group.get(flag) for flag in ("amsgrad", "maximize")):
            raise UnknownOption("optimizer_groups: amsgrad and maximize are not offered")
        if group["lr"] != learning_rate or tuple(group["betas"]) != (beta_1, beta_2):
            raise UnknownOption("optimizer_groups: a group with a rate or betas of its own")
        if group["weight_decay"] not in (0.0, decay):
            raise UnknownOption(f"optimizer_groups: weight_decay {group['weight_decay']}")
        epsilon = group["eps"]
    # Not a new rule but the one that every user gets from `compile()`; only numbers are replaced.
    model.compile()
    default = model.default_optimizer(total_steps=1, batch_size=256, steps_per_epoch=1)
    optimizer = type(default).from_config(
        {
            **default.get_config(),
            "learning_rate": learning_rate,
            "weight_decay": decay,
            "beta_1": beta_1,
            "beta_2": beta_2,
            "epsilon": epsilon,
        }
    )
    entries = [e for e in official_entries(model, "mae") if e.variable.trainable]
    ours = optimizer.parameter_groups([e.variable for e in entries])
    ours = {e.official: row["weight_decay"] for e, row in zip(entries, ours, strict=True)}
    theirs = {n: g["weight_decay"] > 0 for g in groups for n in g["params"]}
    if theirs and decay:
        wrong = sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
        note = f"differ: {', '.join(wrong)}" if wrong else f"{sum(theirs.values())} decayed"
        case.check("weight decay reaches the same parameters", not wrong, note)
    return optimizer


# Adam divides a gradient by its own size. Where the exact gradient is zero, only rounding is left
# of it, and the step is +-lr whichever way the rounding fell. That is so for the keys' third of
# every qkv bias: softmax does not change when all scores of a query move together.
_KEY_BIAS = (
    "the keys' third of a qkv bias has gradient zero (softmax ignores a shift), Adam makes steps of"
    " size lr from its rounding: left out of the error and checked to stay within steps x lr"
)


def _steps(case, model, images, noise, steps, initial):
    model.compile(optimizer=make_optimizer(case, model))
    learning_rate, decay = case.config["lr"], case.config["weight_decay"]
    for step in range(1, steps + 1):
        model.reset_metrics()
        logs = model.train_on_batch({"images": images, "noise": noise[step - 1]}, return_dict=True)
        case.compare(f"step{step}/loss", np.float32(logs["loss"]))
        ours = to_official(model, "mae")
        prefix = f"step{step}/param/"
        for key in case.keys(prefix):
            name = key[len(prefix) :]
            compare_parameter(case, key, ours[name], initial[name], step, learning_rate, decay)


def compare_parameter(case, key, ours, start, step, learning_rate, decay):
    theirs = case.arrays[key]
    if not key.endswith(("attn.qkv.bias", "attn.in_proj_bias")):
        case.compare(key, ours)
        compare_move(case, key, ours, start, adam=True)
        return
    third = len(ours) // 3
    keys = slice(third, 2 * third)
    limit = 1.01 * step * learning_rate * (1 + decay * np.abs(start[keys]).max())
    stray = np.abs(ours[keys] - start[keys]).max()
    case.check(f"{key}: keys' third", stray <= limit, f"moved {stray:.1e}, limit {limit:.1e}")
    ours = ours.copy()
    ours[keys] = theirs[keys]
    case.compare(key, ours, bound=BOUNDS["step"], because=_KEY_BIAS)
    compare_move(case, key, ours, start, adam=True)
