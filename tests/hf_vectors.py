"""Folders in the transformers layout with a `golden.npz`, as the vectors have, of options of ours.

The reference is `transformers` itself, with random weights.
"""

import json

import numpy as np
import peers  # noqa: F401  (declares what torchvision needs)
import torch
import transformers

SIZES = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=4,
)
_TEXT = dict(
    **dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2),
    **dict(vocab_size=40, max_position_embeddings=8, projection_dim=12),
    **dict(bos_token_id=38, eos_token_id=39, pad_token_id=0),
)
# Class of the configuration, class of the model, what goes in and out, sizes, options.
FOLDERS = {
    "vit": (
        *("ViTConfig", "ViTModel", "vision", [[16, 16], [24, 8]]),
        {**SIZES, "pooler_act": "relu", "hidden_act": "gelu_new", "hidden_dropout_prob": 0.1},
    ),
    "dinov2": (
        *("Dinov2Config", "Dinov2Model", "dinov2", [[8, 16], [24, 8]]),
        {**SIZES, "mlp_ratio": 2, "qkv_bias": False, "hidden_act": "swish"},
    ),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", "vision", [[16, 16], [8, 24]], SIZES),
    "mae": (
        *("ViTMAEConfig", "ViTMAEForPreTraining", "mae", [[16, 16]]),
        dict(
            **SIZES,
            **dict(decoder_hidden_size=8, decoder_num_hidden_layers=1),
            **dict(decoder_num_attention_heads=2, decoder_intermediate_size=12),
            **dict(mask_ratio=0.6, norm_pix_loss=True),
        ),
    ),
    "clip": (
        *("CLIPConfig", "CLIPModel", "clip", [[16, 16]]),
        dict(
            projection_dim=12,
            text_config=_TEXT,
            vision_config={**SIZES, "projection_dim": 12, "hidden_act": "gelu"},
        ),
    ),
}

_ALIGN_STAGES = dict(
    **dict(kernel_sizes=[3, 5], in_channels=[32, 16], out_channels=[16, 40]),
    **dict(strides=[1, 2], num_block_repeats=[1, 2], expand_ratios=[1, 6]),
)
FOLDERS["align"] = (
    *("AlignConfig", "AlignModel", "clip", [[32, 32]]),
    dict(
        projection_dim=16,
        temperature_init_value=0.3,
        text_config={k: v for k, v in _TEXT.items() if k != "projection_dim"},
        vision_config=dict(
            **dict(image_size=32, width_coefficient=0.25, depth_coefficient=1.0),
            **_ALIGN_STAGES,
        ),
    ),
)


def write(folder, name: str, batch: int = 2):
    config_class, model_class, io, sizes, options = FOLDERS[name]
    torch.manual_seed(0)
    # The class takes the dictionaries inside as its own.
    config = getattr(transformers, config_class)(**json.loads(json.dumps(options)))
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # MAE's positions are fixed
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        arrays = {"vision": _vision, "dinov2": _vision, "mae": _mae, "clip": _clip}[io](
            model, sizes, batch
        )
        if io == "dinov2":
            arrays |= _masked(model, arrays, sizes[0])
    config = dict(
        **dict(kind="model", batch=batch, io=io, sizes=sizes, config=options),
        **dict(config_class=config_class, model_class=model_class),
    )
    meta = {"method": "hf", "case": name, "config": config}
    arrays = {key: value.numpy() for key, value in arrays.items() if value is not None}
    np.savez(folder / "golden.npz", meta=np.array(json.dumps(meta)), **arrays)


def _vision(model, sizes, batch):
    arrays = {}
    resizes = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    for height, width in sizes:
        x = torch.randn(batch, 3, height, width)
        outputs = model(x, output_hidden_states=True, **resizes)
        name = f"{height}x{width}"
        arrays[f"in/pixel_values_{name}"] = x
        for i, state in enumerate(outputs.hidden_states):
            arrays[f"out/{name}/hidden_state{i}"] = state
        arrays[f"out/{name}/last_hidden_state"] = outputs.last_hidden_state
        arrays[f"out/{name}/pooler_output"] = outputs.pooler_output
    return arrays


def _masked(model, arrays, size):
    x = arrays["in/pixel_values_{}x{}".format(*size)]
    mask = torch.rand(len(x), size[0] * size[1] // model.config.patch_size**2) > 0.5
    outputs = model(x, bool_masked_pos=mask)
    return {
        "in/bool_masked_pos": mask,
        "out/masked/last_hidden_state": outputs.last_hidden_state,
        "out/masked/pooler_output": outputs.pooler_output,
    }


def _mae(model, sizes, batch):
    (height, width) = sizes[0]
    x, noise = torch.randn(batch, 3, height, width), torch.rand(batch, height * width // 16)
    outputs = model(x, noise=noise)
    return {
        "in/pixel_values": x,
        "in/noise": noise,
        "out/encoder_last_hidden_state": model.vit(x, noise=noise).last_hidden_state,
        **{f"out/{key}": outputs[key] for key in ("logits", "mask", "ids_restore")},
        "loss": outputs.loss,
    }


def _clip(model, sizes, batch):
    x = torch.randn(batch, 3, *sizes[0])
    ids = torch.tensor([[38, 3, 9, 39, 0, 0], [38, 1, 2, 4, 5, 39]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    outputs = model(input_ids=ids, attention_mask=mask, pixel_values=x, return_loss=True)
    arrays = {"in/pixel_values": x, "in/input_ids": ids, "in/attention_mask": mask}
    for side in ("text", "vision"):
        states = outputs[f"{side}_model_output"]
        arrays[f"out/{side}_last_hidden_state"] = states.last_hidden_state
        arrays[f"out/{side}_pooler_output"] = states.pooler_output
    for key in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        arrays[f"out/{key}"] = outputs[key]
    return {**arrays, "loss": outputs.loss}
