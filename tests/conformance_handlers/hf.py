"""Checkpoint folders in the transformers layout: built from config.json, compared, written back.

Everything is driven by the folder's config.json, by its model.safetensors and by the sizes of the
inputs. The outputs are those of `transformers`; the folder that we write back is compared tensor by
tensor with the one that was read.
"""

import fnmatch
import json
import pathlib
import tempfile

import keras
import numpy as np
from gradients import compiled
from keras import ops

from conformance_handlers.framework import Case, as_numpy, handler, scope_reason
from keras_ssl.backbones import ConvNeXtBackbone
from keras_ssl.converters import from_transformers, read_state_dict, to_transformers
from keras_ssl.converters.folders import MODEL_TYPES
from keras_ssl.converters.transformers import ACTIVATIONS
from keras_ssl.losses.clip import pair_features, pair_logits
from keras_ssl.models import ALIGN, CLIP, MAE, SigLIP


@handler("hf", "model")
def hf(case: Case):
    # The one kind in the files' words is "model": the architecture says what they hold.
    settings = json.loads((case.folder / "config.json").read_text())
    case.kind = settings["model_type"]
    case.config.generator_only(
        "seed",
        "perturb",
        "no_perturb",
        "interp_flag",
        "position_ids",
        "config_class",
        "model_class",
        "init_kwargs",
        "io",
    )
    meta = case.config["config"].plain() if "config" in case.config else {}
    _check_settings(case, meta, settings)
    sizes = case.config.get("sizes", [])
    batch = case.config.get("batch")
    if scope_reason(case.method, case.kind, "*"):
        return
    keras.utils.set_random_seed(0)
    model, _, report = from_transformers(case.folder)
    case.check("nothing is missing or unknown", not (report.missing or report.unexpected))
    if isinstance(model, MAE):
        _mae(case, model, batch)
    elif isinstance(model, (ALIGN, CLIP, SigLIP)):
        _image_text(case, model, report, batch)
    else:
        _encoder(case, model, report, sizes, batch)
    _written_back(case, model, set(report.ignored))


def _check_settings(case, meta: dict, settings: dict, path: str = "config"):
    for name, value in meta.items():
        if isinstance(value, dict):
            _check_settings(case, value, settings.get(name, {}), f"{path}.{name}")
        elif name in settings:
            case.check(f"{path}.{name} is that of config.json", settings[name] == value)


def channels_last(array):
    return np.ascontiguousarray(np.transpose(array, (0, 2, 3, 1)))


def _encoder(case, model, report, sizes, batch):
    for height, width in sizes:
        size = f"{height}x{width}"
        images = channels_last(case.input(f"in/pixel_values_{size}"))
        case.check(f"input of {size}", images.shape[:3] == (batch, height, width))

        def forward(images):
            outputs = model(images, return_intermediate=True)
            states = outputs["intermediate"]
            if isinstance(model, ConvNeXtBackbone):  # maps, and the picture itself for the first
                return images, states, outputs["tokens"]
            return model.embed(images), states, outputs["tokens"]

        embedded, states, tokens = compiled(forward)(ops.convert_to_tensor(images))
        for i, state in enumerate([embedded, *states]):
            if len(state.shape) == 4:  # their channels come first
                state = ops.transpose(state, (0, 3, 1, 2))
            case.compare(f"out/{size}/hidden_state{i}", state)
        case.compare(f"out/{size}/last_hidden_state", tokens)
        key = f"out/{size}/pooler_output"
        if key in case.arrays:
            case.compare(key, _pooled(case, report, tokens))
    if "in/bool_masked_pos" in case.arrays:
        mask = case.input("in/bool_masked_pos")
        # The first size, which need not be the native one; the mask has an entry for every patch.
        height, width = sizes[0]
        images = channels_last(case.input(f"in/pixel_values_{height}x{width}"))
        tokens = compiled(lambda x, mask: model(x, patch_mask=mask))(
            ops.convert_to_tensor(images), ops.convert_to_tensor(mask)
        )
        case.compare("out/masked/last_hidden_state", tokens)
        case.compare("out/masked/pooler_output", model.pool(tokens, "token"))


def _pooled(case, report, tokens, prefix=""):
    """The first token; `vit` and BERT have a Dense behind it, which the converter ignores."""
    first, name = tokens[:, 0], f"{prefix}pooler.dense"
    if f"{name}.weight" not in report.ignored:
        return first
    state = read_state_dict(case.folder / "model.safetensors")
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    settings = json.loads((case.folder / "config.json").read_text())
    pooled = ops.convert_to_tensor(as_numpy(first) @ weight.T + bias)
    return keras.activations.get(settings.get("pooler_act") or "tanh")(pooled)


def _mae(case, model, batch):
    images = channels_last(case.input("in/pixel_values"))
    noise = case.input("in/noise")
    case.check("batch is that of the input", batch == len(images))

    def forward(images, noise):
        visible, mask, restore = model.mask_patches(noise)
        latent = model.encode_visible(images, visible)
        prediction = model.decode(latent, restore)
        loss = model.reconstruction_loss(images, prediction, mask)
        return mask, restore, latent, prediction, loss

    mask, restore, latent, prediction, loss = compiled(forward)(
        ops.convert_to_tensor(images), ops.convert_to_tensor(noise)
    )
    case.compare("out/mask", mask)
    case.compare("out/ids_restore", restore)
    case.compare("out/encoder_last_hidden_state", latent)
    case.compare("out/logits", prediction)
    case.compare("loss", loss)


def _image_text(case, model, report, batch):
    images = channels_last(case.input("in/pixel_values"))
    ids = case.input("in/input_ids").astype("int32")
    mask = np.ones_like(ids)
    if "in/attention_mask" in case.arrays:
        mask = case.input("in/attention_mask")
    case.check("batch is that of the inputs", batch == len(images) == len(ids))

    clip, align = isinstance(model, CLIP), isinstance(model, ALIGN)

    def states(images, ids):
        text = model.text_backbone(ids)
        if align:  # a map with its channels first
            return ops.transpose(model.backbone(images), (0, 3, 1, 2)), text
        outputs = model.backbone(images, return_intermediate=True)
        # CLIP's last norm is put on the class token alone there: the states are those before it.
        return outputs["intermediate"][-1] if clip else outputs["tokens"], text

    def forward(images, ids):
        vision, text = states(images, ids)
        x, y = model.encode(images), model.encode_ids(ids)
        units = pair_features(x, y, True, None)[:2]
        logits = pair_logits(*units, model.logit_scale, model.logit_bias)
        loss = model.contrastive_loss(x, y, model.logit_scale, model.logit_bias)
        return vision, text, x, y, units, logits, loss

    vision, text, x, y, units, logits, loss = compiled(forward)(
        ops.convert_to_tensor(images), ops.convert_to_tensor(ids)
    )
    case.compare("out/vision_last_hidden_state", vision)
    # What stands where the mask is 0 is a state of padding, which nothing reads.
    kept = mask[..., None] > 0
    theirs = case.arrays["out/text_last_hidden_state"]
    case.compare("out/text_last_hidden_state", np.where(kept, as_numpy(text), theirs))
    case.compare("out/vision_pooler_output", x)
    pooled = _pooled(case, report, text, "text_model.") if align else y
    case.compare("out/text_pooler_output", pooled)
    case.compare("out/image_embeds", units[0])
    case.compare("out/text_embeds", units[1])
    case.compare("out/logits_per_image", logits)
    case.compare("out/logits_per_text", as_numpy(logits).T)
    case.compare("loss", loss)


def _written_back(case, model, ignored):
    with tempfile.TemporaryDirectory() as folder:
        to_transformers(model, pathlib.Path(folder) / "back")
        written = read_state_dict(pathlib.Path(folder) / "back" / "model.safetensors")
        settings = json.loads((pathlib.Path(folder) / "back" / "config.json").read_text())
    theirs = read_state_dict(case.folder / "model.safetensors")
    # Some versions of transformers write other names than they read; ours are those they read.
    for old, new in getattr(MODEL_TYPES[case.kind], "RENAMED", ()):
        theirs = {
            new + name.removeprefix(old) if name.startswith(old) else name: array
            for name, array in theirs.items()
        }
    kept = {name: array for name, array in theirs.items() if name not in ignored}
    case.check("written back: the same names", written.keys() == kept.keys())

    def same(name):
        if name == "temperature":  # ALIGN's, which is a logarithm here
            return np.allclose(written[name], kept[name], rtol=1e-6, atol=0)
        return np.array_equal(written[name], kept[name])

    found = all(same(name) for name in written.keys() & kept.keys())
    case.check("written back: the same tensors", found)
    original = json.loads((case.folder / "config.json").read_text())
    wrong = list(_differences(settings, original))
    case.check("written back: the same settings", not wrong, ", ".join(wrong))


# What a model here does not hold: augmentation, dropout (there is none) and the tokenizer's ids.
_NOT_OURS = ("pos_embed_rescale", "*_dropout_prob", "bos_token_id", "eos_token_id", "pad_token_id")


def _differences(ours: dict, theirs: dict):
    for name in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[name], theirs[name]
        if isinstance(mine, dict):
            yield from _differences(mine, other)
        elif name == "hidden_act":  # several names for one function
            if mine != other and ACTIVATIONS.get(mine) != ACTIVATIONS.get(other, other):
                yield name
        elif mine != other and not any(fnmatch.fnmatchcase(name, p) for p in _NOT_OURS):
            yield name
