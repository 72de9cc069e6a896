"""timm: the vision transformer, whose names MAE, DINO, DINOv2 and MoCo v3 share."""

from keras_ssl.converters.layouts import Map, dense, norm


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


# With mean pooling the classifier normalises after the mean; a final norm of its backbone takes no
# part, and the official model has none.
HEAD_NORM = (("backbone.norm", "head_norm"),)

LAYOUTS = {
    # timm's VisionTransformer, and models_vit.py of facebookresearch/mae on top of it.
    "timm_vit": {
        "ViTBackbone": Map(
            encoder(),
            ignored=("head.*", "fc_norm.*", "norm.*"),
            left=("register_tokens", "mask_token"),
        ),
        "ImageClassifier": Map(
            (
                *encoder("backbone."),
                *norm("fc_norm", "head_norm"),
                *dense("head", "output_dense"),
            ),
            displaced=HEAD_NORM,
        ),
    },
}
