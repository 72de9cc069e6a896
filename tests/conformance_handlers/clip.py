"""CLIP with a vision transformer or a ModifiedResNet: features, loss, gradients, AdamW steps."""

import re

import keras
import numpy as np
from gradients import compiled, variable_gradients
from keras import ops

from conformance_handlers.framework import BOUNDS, TINY, Case, as_numpy, handler
from conformance_handlers.initial import check_initialisers
from conformance_handlers.mae_pretrain import compare_parameter
from conformance_handlers.optimizers import compare_move
from keras_ssl.backbones import ModifiedResNet, TextTransformer, ViTBackbone
from keras_ssl.converters import load_official, to_official
from keras_ssl.losses.clip import pair_features, pair_logits
from keras_ssl.models import CLIP
from keras_ssl.training.kernels import attention_weights
from keras_ssl.training.optimizers import AdamW

_EPSILON = 1e-5  # of every normalisation there
_TORCH_BIAS = "torch's default: uniform, of a linear layer with no start of its own; here zeros"


class Still(CLIP):
    """Normalises by the running statistics in training, too: the reference in eval mode."""

    def encode(self, images, training=False, backbone=None):
        return super().encode(images, False, backbone)


def build(config, channels: int) -> CLIP:
    size = config["image_resolution"]
    layers, width = config["vision_layers"], config["vision_width"]
    patch_size = config["vision_patch_size"]
    if isinstance(layers, list):
        image = ModifiedResNet((size, size, channels), layers, width, config["embed_dim"])
    else:
        image = ViTBackbone(
            (size, size, channels),
            patch_size=patch_size,
            hidden_dim=width,
            num_layers=layers,
            num_heads=max(1, width // 64),
            use_pre_norm=True,
            patch_bias=False,
            activation="quick_gelu",
            layer_norm_epsilon=_EPSILON,
            initializer="clip",
        )
    text = TextTransformer(
        config["vocab_size"],
        config["context_length"],
        config["transformer_width"],
        config["transformer_layers"],
        config["transformer_heads"],
    )
    return (CLIP if config["train_mode"] else Still)(
        image,
        text,
        config["embed_dim"],
        match_duplicates=False,
        augmenter=None,
        preprocessor=None,
    )


@handler("clip", "model")
def model(case: Case):
    config = case.config
    config.generator_only("seed", "perturb", "track")
    parameters = case.inputs("param/")
    images = np.moveaxis(case.input("in/image"), 1, -1)
    ids = case.input("in/text")
    case.check("batch", len(images) == config["batch"])
    case.check("length", ids.shape[1] == config["context_length"])
    keras.utils.set_random_seed(0)
    task = build(config, images.shape[-1])
    _start(case, task)

    def load():
        # torch counts batches where there is batch normalisation; nothing reads it.
        report = load_official(task, parameters, layout="clip")
        return set(report.loaded) | set(report.ignored)

    case.check("every parameter has its place", load() == set(parameters))
    _forward(case, task, images, ids)
    _gradients(case, task, images, ids)
    load()
    _steps(case, task, images, ids, parameters)


def _start(case, task):
    stats = case.meta.get("init_stats") or {}
    skip = {
        name: _TORCH_BIAS
        for name in stats
        if re.search(r"(mlp\.c_\w+|attnpool\.\w_proj)\.bias$", name)
    }
    names = {n for n, s in stats.items() if s.get("requires_grad", True)}
    check_initialisers(case, to_official(task, "clip"), skip, tables=(), names=names)


def _forward(case, task, images, ids):
    def forward(images, ids, training=False):
        with keras.StatelessScope():
            x, y = task.encode(images, training), task.encode_ids(ids, training)
            logits = pair_logits(*pair_features(x, y, True, None), task.logit_scale)
        return x, y, logits, ops.exp(ops.convert_to_tensor(task.logit_scale))

    images, ids = ops.convert_to_tensor(images), ops.convert_to_tensor(ids)
    x, y, logits, scale = map(as_numpy, compiled(forward)(images, ids))
    case.compare("out/image_features", x)
    case.compare("out/text_features", y)
    case.compare("out/logits_per_image", logits)
    case.compare("out/logits_per_text", logits.T)
    case.compare("out/exp_logit_scale", scale)
    if case.config["train_mode"]:
        training = compiled(lambda images, ids: forward(images, ids, training=True))
        _, _, logits, _ = training(images, ids)
        case.compare("out/train_mode_logits_per_image", logits)
    # Where our attention lets nothing through, theirs has minus infinity (-1 in the file).
    q = ops.ones((1, ids.shape[1], 1, 1))
    causal = task.text_backbone.blocks[0].attention.causal
    seen = as_numpy(attention_weights(q, q, causal=causal))[0, 0] > 0
    case.compare("out/attention_mask", np.where(seen, 0, -1).astype("float32"))


def _gradients(case, task, images, ids):
    batch = {"images": ops.convert_to_tensor(images), "token_ids": ops.convert_to_tensor(ids)}
    variables = task.trainable_variables
    loss, gradients = variable_gradients(
        lambda: task.compute_loss(x=batch, training=True), variables
    )
    case.compare("loss", loss)
    by_variable = {id(v): g for v, g in zip(variables, gradients, strict=True)}
    ours = to_official(task, "clip", lambda v: by_variable.get(id(v)), trainable_only=True)
    theirs = {key[len("grad/") :] for key in case.keys("grad/")}
    case.check("all of them are trained", theirs <= set(ours), str(theirs - set(ours)))
    for name in sorted(theirs & set(ours)):
        case.compare(f"grad/{name}", ours[name])


def _steps(case, task, images, ids, parameters):
    config = case.config
    rate, decay = config["lr"], config["weight_decay"]
    beta_1, beta_2 = config["betas"]
    # One group there: everything is decayed.
    optimizer = AdamW(
        rate, weight_decay=decay, beta_1=beta_1, beta_2=beta_2, epsilon=config["adam_eps"]
    )
    task.compile(optimizer)
    for step in range(1, config["steps"] + 1):
        task.reset_metrics()
        logs = task.train_on_batch({"images": images, "token_ids": ids}, return_dict=True)
        case.compare(f"step{step}/loss", np.float32(logs["loss"]))
        ours = to_official(task, "clip")
        prefix = f"step{step}/param/"
        for key in case.keys(prefix):
            name = key[len(prefix) :]
            start = parameters[name]
            if name.endswith("running_var") and config["train_mode"]:
                # Keras averages the variance it normalises with, torch n / (n - 1) times it.
                count = config["batch"] * _pixels(name, config["image_resolution"])
                kept = 0.9**step * start
                case.compare(key, kept + (ours[name] - kept) * (count / (count - 1)))
            elif name.endswith("attnpool.k_proj.bias"):
                case.input(key)
                _check_stray(case, key, ours[name], start, step)
            elif "running" in name:
                case.compare(key, ours[name])
                compare_move(case, key, ours[name], start)
            else:
                value = _without_lost(case, key, name, ours[name], start, step)
                compare_parameter(case, key, value, start, step, rate, decay)


def _check_stray(case, key, ours, start, step):
    """Adam makes steps of size lr from a gradient that is zero but for rounding."""
    if ours.size:
        rate, decay = case.config["lr"], case.config["weight_decay"]
        limit = 1.01 * step * rate * (1 + decay * np.abs(start).max())
        stray = np.abs(ours - start).max()
        case.check(f"{key}: gradient zero but for rounding", stray <= limit, f"{stray:.1e}")


def _without_lost(case, key, name, ours, start, step):
    """Our value, with theirs where the gradient is rounding: it is checked, not compared.

    So it is with the bias of a channel that every picture keeps active: normalisation follows.
    """
    theirs, gradient = case.arrays[key], case.arrays.get(f"grad/{name}")
    if gradient is None or not re.search(r"(bn\d|downsample\.1)\.bias$", name):
        return ours
    lost = np.abs(gradient) <= 10 * BOUNDS["gradient"] * TINY * case.scale("grad/")
    _check_stray(case, key, ours[lost], start[lost], step)
    return np.where(lost, theirs, ours)


def _pixels(name: str, size: int) -> int:
    """Values of one channel and image that a batch normalisation of the ResNet averages over."""
    match = re.search(r"layer(\d)\.(\d+)\.(bn\d|downsample)", name)
    if not match:
        return (size // 2) ** 2
    stage, block, layer = int(match[1]), int(match[2]), match[3]
    side = size // 4 // 2 ** (stage - 1)
    before_pooling = stage > 1 and block == 0 and layer in ("bn1", "bn2")
    return (2 * side if before_pooling else side) ** 2
