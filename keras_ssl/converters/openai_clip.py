"""openai/CLIP: names of its state dict, for vision transformers and ModifiedResNets."""

from keras_ssl.converters.layouts import Map, batch_norm, dense, norm, prefixed, split_dense


def _blocks(official: str, ours: str):
    """ResidualAttentionBlock. in_proj is packed [q, k, v], as ours."""
    o, k = official + ".{i}", ours + ".{i}"
    return (
        *norm(f"{o}.ln_1", f"{k}.norm1"),
        (f"{o}.attn.in_proj_weight", f"{k}.attention.qkv.kernel", "linear"),
        (f"{o}.attn.in_proj_bias", f"{k}.attention.qkv.bias", "same"),
        *dense(f"{o}.attn.out_proj", f"{k}.attention.projection"),
        *norm(f"{o}.ln_2", f"{k}.norm2"),
        *dense(f"{o}.mlp.c_fc", f"{k}.mlp.fc1"),
        *dense(f"{o}.mlp.c_proj", f"{k}.mlp.fc2"),
    )


_VIT = (
    ("class_embedding", "class_token", "leading"),
    ("positional_embedding", "position_embedding", "leading"),
    ("conv1.weight", "patch_embedding.kernel", "patch_conv"),
    *norm("ln_pre", "pre_norm"),
    *_blocks("transformer.resblocks", "blocks"),
    *norm("ln_post", "norm"),
)

_TEXT = (
    ("token_embedding.weight", "token_embedding.embeddings", "same"),
    ("positional_embedding", "position_embedding", "same"),
    *_blocks("transformer.resblocks", "blocks"),
    *norm("ln_final", "norm"),
)


def _resnet(backbone):
    rows = []
    for i in range(3):
        rows.append((f"conv{i + 1}.weight", f"stem.{i}.0.kernel", "conv"))
        rows.extend(batch_norm(f"bn{i + 1}", f"stem.{i}.1"))
    for stage, blocks in enumerate(backbone.stages):
        for i, block in enumerate(blocks):
            o, k = f"layer{stage + 1}.{i}", f"stages.{stage}.{i}"
            for n in (1, 2, 3):
                rows.append((f"{o}.conv{n}.weight", f"{k}.conv{n}.kernel", "conv"))
                rows.extend(batch_norm(f"{o}.bn{n}", f"{k}.bn{n}"))
            if block.shortcut:
                rows.append((f"{o}.downsample.0.weight", f"{k}.shortcut_conv.kernel", "conv"))
                rows.extend(batch_norm(f"{o}.downsample.1", f"{k}.shortcut_bn"))
    pool = "attention_pooling"
    return (
        *rows,
        ("attnpool.positional_embedding", f"{pool}.position_embedding", "same"),
        *split_dense(tuple(f"attnpool.{p}_proj" for p in "qkv"), f"{pool}.qkv"),
        *dense("attnpool.c_proj", f"{pool}.projection"),
    )


def _clip(model):
    resnet = hasattr(model.backbone, "stages")
    image = _resnet(model.backbone) if resnet else _VIT
    return (
        *prefixed(image, "visual.", "backbone."),
        ("visual.proj", "image_projection.kernel", "same"),
        *prefixed(_TEXT, "", "text_backbone."),
        ("text_projection", "text_projection.kernel", "same"),
        ("logit_scale", "logit_scale", "same"),
    )


# Sizes that released checkpoints carry beside their weights, the causal mask, torch's counters.
_IGNORED = (
    "input_resolution",
    "context_length",
    "vocab_size",
    "*attn_mask",
    "*num_batches_tracked",
)

LAYOUTS = {
    "clip": {
        "CLIP": Map(_clip, ignored=_IGNORED),
        "ViTBackbone": Map(prefixed(_VIT, "visual."), ignored=("*",)),
        "ModifiedResNet": Map(lambda b: prefixed(_resnet(b), "visual."), ignored=("*",)),
        "TextTransformer": Map(_TEXT, ignored=("*",)),
    }
}
