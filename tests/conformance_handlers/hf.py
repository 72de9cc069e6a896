"""Checkpoint folders in the transformers layout: built from config.json, compared, written back.

Everything is driven by the folder's config.json, by its model.safetensors and by the sizes of the
inputs. The outputs are those of `transformers`; the folder that we write back is compared tensor by
tensor with the one that was read.
"""

import json
import pathlib
import tempfile

import keras
import numpy as np
from gradients import compiled
from keras import ops

from conformance_handlers.framework import Case, as_numpy, handler, scope_reason
from keras_ssl.converters import from_transformers, read_state_dict, to_transformers
from keras_ssl.models import MAE


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
            embedded = model.embed(images)
            outputs = model(images, return_intermediate=True)
            return embedded, outputs["intermediate"], outputs["tokens"]

        embedded, states, tokens = compiled(forward)(ops.convert_to_tensor(images))
        for i, state in enumerate([embedded, *states]):
            case.compare(f"out/{size}/hidden_state{i}", state)
        case.compare(f"out/{size}/last_hidden_state", tokens)
        key = f"out/{size}/pooler_output"
        if key in case.arrays:
            case.compare(key, _pooled(case, report, tokens))
    if "in/bool_masked_pos" in case.arrays:
        mask = case.input("in/bool_masked_pos")
        height, width = model.image_shape[:2]
        images = channels_last(case.input(f"in/pixel_values_{height}x{width}"))
        tokens = compiled(lambda x, mask: model(x, patch_mask=mask))(
            ops.convert_to_tensor(images), ops.convert_to_tensor(mask)
        )
        case.compare("out/masked/last_hidden_state", tokens)
        case.compare("out/masked/pooler_output", model.pool(tokens, "token"))


def _pooled(case, report, tokens):
    """The class token; `vit` puts a Dense and tanh behind it, which the converter names as left."""
    first = tokens[:, 0]
    if "pooler.dense.weight" not in report.ignored:
        return first
    state = read_state_dict(case.folder / "model.safetensors")
    weight, bias = state["pooler.dense.weight"], state["pooler.dense.bias"]
    return np.tanh(as_numpy(first) @ weight.T + bias)


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


def _written_back(case, model, ignored):
    with tempfile.TemporaryDirectory() as folder:
        to_transformers(model, pathlib.Path(folder) / "back")
        written = read_state_dict(pathlib.Path(folder) / "back" / "model.safetensors")
        settings = json.loads((pathlib.Path(folder) / "back" / "config.json").read_text())
    theirs = read_state_dict(case.folder / "model.safetensors")
    kept = {name: array for name, array in theirs.items() if name not in ignored}
    case.check("written back: the same names", written.keys() == kept.keys())
    case.check(
        "written back: the same tensors",
        all(np.array_equal(written[name], kept[name]) for name in written.keys() & kept.keys()),
    )
    original = json.loads((case.folder / "config.json").read_text())
    wrong = [
        name
        for name in settings.keys() & original.keys()
        if name not in ("pos_embed_rescale",) and settings[name] != original[name]
    ]
    case.check("written back: the same settings", not wrong, ", ".join(wrong))
