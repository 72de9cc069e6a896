"""Name maps as data: official tensor name, our attribute path, and how the array is turned.

`{i}` runs over a list of layers. A path that ends in `None` in the model at hand (no class token,
no bias, another kind of MLP) does not apply there; every variable of the model that no entry
reaches must be listed under `left` of the map, so that a mistyped path cannot hide.
"""

import dataclasses

# Transforms (convert.py holds the functions):
#   same        as it is
#   linear      torch's Linear weight [out, in] to a Dense kernel (in, out)
#   patch_conv  a convolution [dim, channels, p, p] whose stride is its size, to the kernel
#               (p * p * channels, dim) of a Dense over patches in (row, column, channel) order


@dataclasses.dataclass(frozen=True)
class Map:
    """One layout seen from one of our classes.

    Attributes:
        entries: rows of (official name, our attribute path, transform).
        ignored: patterns of official names that this class has no place for.
        left: attribute paths of ours that the layout has no tensors for.
        displaced: pairs of attribute paths; entries of the first do not apply where the second
            exists.
    """

    entries: tuple[tuple[str, str, str], ...]
    ignored: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    displaced: tuple[tuple[str, str], ...] = ()


def _norm(official: str, ours: str):
    return (
        (f"{official}.weight", f"{ours}.gamma", "same"),
        (f"{official}.bias", f"{ours}.beta", "same"),
    )


def _dense(official: str, ours: str):
    return (
        (f"{official}.weight", f"{ours}.kernel", "linear"),
        (f"{official}.bias", f"{ours}.bias", "same"),
    )


def _blocks(official: str, ours: str):
    """timm's Block. qkv is packed [q, k, v], then heads, in timm and here: only transposed."""
    o, k = official + ".{i}", ours + ".{i}"
    return (
        *_norm(f"{o}.norm1", f"{k}.norm1"),
        *_dense(f"{o}.attn.qkv", f"{k}.attention.qkv"),
        *_dense(f"{o}.attn.proj", f"{k}.attention.projection"),
        (f"{o}.ls1.gamma", f"{k}.layer_scale1.gamma", "same"),
        *_norm(f"{o}.norm2", f"{k}.norm2"),
        *_dense(f"{o}.mlp.fc1", f"{k}.mlp.fc1"),
        *_dense(f"{o}.mlp.fc2", f"{k}.mlp.fc2"),
        *_dense(f"{o}.mlp.w12", f"{k}.mlp.w12"),
        *_dense(f"{o}.mlp.w3", f"{k}.mlp.w3"),
        (f"{o}.ls2.gamma", f"{k}.layer_scale2.gamma", "same"),
    )


def _encoder(prefix: str = ""):
    return (
        ("cls_token", f"{prefix}class_token", "same"),
        ("pos_embed", f"{prefix}position_embedding", "same"),
        ("patch_embed.proj.weight", f"{prefix}patch_embedding.kernel", "patch_conv"),
        ("patch_embed.proj.bias", f"{prefix}patch_embedding.bias", "same"),
        *_blocks("blocks", f"{prefix}blocks"),
        *_norm("norm", f"{prefix}norm"),
    )


# facebookresearch/mae, models_mae.py. Its decoder_pred writes pixels in (row, column, channel)
# order, as ours does, so it is a plain Linear.
_MAE = (
    *_encoder("backbone."),
    *_dense("decoder_embed", "decoder_embedding"),
    ("mask_token", "mask_token", "same"),
    ("decoder_pos_embed", "decoder_position_embedding", "same"),
    *_blocks("decoder_blocks", "decoder_blocks"),
    *_norm("decoder_norm", "decoder_norm"),
    *_dense("decoder_pred", "decoder_prediction"),
)
_MAE_DECODER = ("mask_token", "decoder_*")

# With mean pooling the classifier normalises after the mean; a final norm of its backbone takes no
# part, and the official model has none.
_HEAD_NORM = (("backbone.norm", "head_norm"),)

LAYOUTS: dict[str, dict[str, Map]] = {
    "mae": {
        "MAE": Map(_MAE),
        "ViTBackbone": Map(
            _encoder(), ignored=(*_MAE_DECODER, "norm.*"), left=("register_tokens", "mask_token")
        ),
        # Fine-tuning starts from the encoder; the head and, with mean pooling, its norm are new.
        "ImageClassifier": Map(
            _encoder("backbone."),
            ignored=(*_MAE_DECODER, "norm.*"),
            left=("head_norm", "output_dense"),
            displaced=_HEAD_NORM,
        ),
    },
    # timm's VisionTransformer, and models_vit.py of facebookresearch/mae on top of it.
    "timm_vit": {
        "ViTBackbone": Map(
            _encoder(),
            ignored=("head.*", "fc_norm.*", "norm.*"),
            left=("register_tokens", "mask_token"),
        ),
        "ImageClassifier": Map(
            (
                *_encoder("backbone."),
                *_norm("fc_norm", "head_norm"),
                *_dense("head", "output_dense"),
            ),
            displaced=_HEAD_NORM,
        ),
    },
}
