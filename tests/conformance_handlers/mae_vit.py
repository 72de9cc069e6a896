"""MAE's fine-tuning model: features, logits, resized positions, layer-wise learning rate decay."""

import keras
import numpy as np
from gradients import compiled
from keras import ops

from conformance_handlers.framework import Case, handler
from conformance_handlers.initial import check_initialisers
from conformance_handlers.mae_pretrain import channels_last, image_shape
from keras_ssl.backbones import ViTBackbone
from keras_ssl.converters import load_official, official_entries, to_official
from keras_ssl.models import ImageClassifier


def build(config, channels: int) -> ImageClassifier:
    mean_pooling = config["global_pool"]
    backbone = ViTBackbone(
        image_shape=image_shape(config, channels),
        patch_size=config["patch_size"],
        hidden_dim=config["embed_dim"],
        num_layers=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config.get("qkv_bias", True),
        layer_norm_epsilon=config["ln_eps"],
        drop_path_rate=config.get("drop_path_rate", config.get("drop_path", 0.0)),
        position_embedding="learned",
        initializer="truncated_normal",
        # With mean pooling the official model deletes `norm` and has `fc_norm` after the mean.
        use_final_norm=not mean_pooling,
    )
    return ImageClassifier(
        backbone,
        num_classes=config["num_classes"],
        preprocessor=None,
        pooling="mean" if mean_pooling else "token",
    )


@handler("mae", "vit")
def mae_vit(case: Case):
    config = case.config
    config.generator_only("seed", "perturb")
    images = channels_last(case.input("in/imgs"))
    parameters = case.inputs("param/")
    case.check("batch is that of the input", config["batch"] == len(images))

    keras.utils.set_random_seed(0)
    model = build(config, images.shape[-1])
    # models_vit.py leaves the head at timm's 0.02; main_finetune.py then redraws it with 2e-5,
    # which is what a classifier starts from, and ours.
    head = {"head.weight": "redrawn with 2e-5 by the fine-tuning script, and so is ours"}
    check_initialisers(case, to_official(model, "timm_vit"), skip=head)
    report = load_official(model, parameters, layout="timm_vit")
    case.check("every parameter of the file has its place", set(report.loaded) == set(parameters))

    forward = compiled(lambda x: (model.features(x), model(x)))
    features, logits = forward(ops.convert_to_tensor(images))
    case.compare("out/features", features)
    case.compare("out/logits", logits)
    for size in config.get("interp_img_sizes", []):
        height, width = size if isinstance(size, list) else (size, size)
        ours = model.backbone.interpolate_position_embedding(height, width)
        case.compare(f"out/interp_pos_embed_{size}", ours)
    _layer_decay(case, model)


def _layer_decay(case, model):
    """Per parameter: scale of the learning rate, and weight decay."""
    decay, layer_decay = case.config["weight_decay"], case.config["layer_decay"]
    theirs = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in case.meta.get("param_groups_lrd") or []
        for name in group["params"]
    }
    model.compile(weight_decay=decay, layer_decay=layer_decay)
    entries = [e for e in official_entries(model, "timm_vit") if e.variable.trainable]
    rows = model.optimizer.parameter_groups([e.variable for e in entries])
    ours = {
        e.official: (row["learning_rate_multiplier"], decay * row["weight_decay"])
        for e, row in zip(entries, rows, strict=True)
    }
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in theirs or name not in ours:
            side = "ours" if name in ours else "theirs"
            case.check(f"lr scale and decay of {name}", False, f"only {side} trains it")
            continue
        case.check(
            f"lr scale and decay of {name}",
            bool(np.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-12)),
            "{:.6g}, {:.6g}; theirs {:.6g}, {:.6g}".format(*ours[name], *theirs[name]),
        )
