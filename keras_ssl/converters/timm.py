"""timm: the vision transformer, whose names MAE, DINO, DINOv2 and MoCo v3 share."""

import math
import re

import numpy as np

from keras_ssl.converters.layouts import Map, dense, norm


def present_names(state: dict) -> dict:
    """Tensors of a vision transformer by the names of the papers' codes.

    timm has registers under a name of its own and, beside them, no position of the class token,
    which is a position of zeros; its fused SwiGLU has the names of the plain MLP. DINOv2's training
    code puts blocks into chunks.
    """
    chunked = re.compile(r"((?:^|\.)blocks)\.\d+(\.\d+\.)")
    state = {chunked.sub(r"\1\2", name): array for name, array in state.items()}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        positions = state.get("pos_embed")
        if "cls_token" in state and getattr(positions, "ndim", 0) == 3:
            _, count, dim = positions.shape
            if count > 1 and math.isqrt(count) ** 2 == count:  # a square grid alone
                zeros = np.zeros((1, 1, dim), positions.dtype)
                state["pos_embed"] = np.concatenate([zeros, positions], axis=1)
    fused = re.compile(r"(.*mlp)\.fc1\.weight$")
    for match in filter(None, map(fused.match, list(state))):
        mlp = match[1]
        first, second = state[f"{mlp}.fc1.weight"], state.get(f"{mlp}.fc2.weight")
        if (
            second is not None
            and first.ndim == second.ndim == 2
            and len(first) == 2 * second.shape[1]
        ):
            for theirs, ours in (("fc1", "w12"), ("fc2", "w3")):
                for part in ("weight", "bias"):
                    if f"{mlp}.{theirs}.{part}" in state:
                        state[f"{mlp}.{ours}.{part}"] = state.pop(f"{mlp}.{theirs}.{part}")
    return state


def blocks(official: str, ours: str):
    """timm's Block. qkv is packed [q, k, v], then heads, in timm and here: only transposed."""
    o, k = official + ".{i}", ours + ".{i}"
    return (
        *norm(f"{o}.norm1", f"{k}.norm1"),
        *dense(f"{o}.attn.qkv", f"{k}.attention.qkv"),
        *dense(f"{o}.attn.proj", f"{k}.attention.projection"),
        (f"{o}.ls1.gamma", f"{k}.layer_scale1.gamma", "same"),
        *norm(f"{o}.norm2", f"{k}.norm2"),
        *dense(f"{o}.mlp.fc1", f"{k}.mlp.fc1"),
        *dense(f"{o}.mlp.fc2", f"{k}.mlp.fc2"),
        *dense(f"{o}.mlp.w12", f"{k}.mlp.w12"),
        *dense(f"{o}.mlp.w3", f"{k}.mlp.w3"),
        (f"{o}.ls2.gamma", f"{k}.layer_scale2.gamma", "same"),
    )


def encoder(prefix: str = ""):
    return (
        ("cls_token", f"{prefix}class_token", "same"),
        ("pos_embed", f"{prefix}position_embedding", "same"),
        *dense("patch_embed.proj", f"{prefix}patch_embedding", "patch_conv"),
        *blocks("blocks", f"{prefix}blocks"),
        *norm("norm", f"{prefix}norm"),
    )


def registers(prefix: str = ""):
    return (("register_tokens", f"{prefix}register_tokens", "same"),)


# With mean pooling the classifier normalises after the mean; a final norm of its backbone takes no
# part, and the official model has none.
HEAD_NORM = (("backbone.norm", "head_norm"),)

LAYOUTS = {
    # timm's VisionTransformer, and models_vit.py of facebookresearch/mae on top of it.
    "timm_vit": {
        "ViTBackbone": Map(
            (*encoder(), *registers()),
            ignored=("head.*", "fc_norm.*", "norm.*"),
            left=("mask_token",),
            renamed=present_names,
        ),
        "ImageClassifier": Map(
            (
                *encoder("backbone."),
                *registers("backbone."),
                *norm("fc_norm", "head_norm"),
                *dense("head", "output_dense"),
            ),
            displaced=HEAD_NORM,
            renamed=present_names,
        ),
    },
}
