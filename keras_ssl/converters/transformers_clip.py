"""transformers' `clip` and `siglip`: image encoder, text encoder and what joins them."""

from keras_ssl.converters import transformers as hf
from keras_ssl.converters.layouts import Map, dense, norm, prefixed, split_dense


def _layers(official: str, ours: str):
    o, k = official + ".{i}", ours + ".{i}"
    attention = f"{o}.self_attn"
    return (
        *norm(f"{o}.layer_norm1", f"{k}.norm1"),
        *split_dense(tuple(f"{attention}.{p}_proj" for p in "qkv"), f"{k}.attention.qkv"),
        *dense(f"{attention}.out_proj", f"{k}.attention.projection"),
        *norm(f"{o}.layer_norm2", f"{k}.norm2"),
        *dense(f"{o}.mlp.fc1", f"{k}.mlp.fc1"),
        *dense(f"{o}.mlp.fc2", f"{k}.mlp.fc2"),
    )


_VISION = (
    ("embeddings.class_embedding", "class_token", "leading"),
    ("embeddings.position_embedding.weight", "position_embedding", "leading"),
    *dense("embeddings.patch_embedding", "patch_embedding", "patch_conv"),
    *norm("pre_layrnorm", "pre_norm"),  # spelled so in the files
    *_layers("encoder.layers", "blocks"),
    *norm("post_layernorm", "norm"),
)
_TEXT = (
    ("embeddings.token_embedding.weight", "token_embedding.embeddings", "same"),
    ("embeddings.position_embedding.weight", "position_embedding", "same"),
    *_layers("encoder.layers", "blocks"),
    *norm("final_layer_norm", "norm"),
)
_ENCODERS = (
    *prefixed(_VISION, "vision_model.", "backbone."),
    *prefixed(_TEXT, "text_model.", "text_backbone."),
)
_CLIP = (
    *_ENCODERS,
    ("visual_projection.weight", "image_projection.kernel", "linear"),
    ("text_projection.weight", "text_projection.kernel", "linear"),
    ("logit_scale", "logit_scale", "same"),
)
_POOL = "vision_model.head"
_SIGLIP = (
    *_ENCODERS,
    (f"{_POOL}.probe", "attention_pooling.probe", "same"),
    (f"{_POOL}.attention.in_proj_weight", "attention_pooling.qkv.kernel", "linear"),
    (f"{_POOL}.attention.in_proj_bias", "attention_pooling.qkv.bias", "same"),
    *dense(f"{_POOL}.attention.out_proj", "attention_pooling.projection"),
    *norm(f"{_POOL}.layernorm", "attention_pooling.norm"),
    *dense(f"{_POOL}.mlp.fc1", "attention_pooling.mlp.fc1"),
    *dense(f"{_POOL}.mlp.fc2", "attention_pooling.mlp.fc2"),
    *dense("text_model.head", "text_projection"),
    ("logit_scale", "logit_scale", "scalar"),
    ("logit_bias", "logit_bias", "scalar"),
)


def _maps(method: str, rows: tuple) -> dict[str, Map]:
    # Old checkpoints hold the positions' numbers, too.
    return {
        method: Map(rows, ignored=("*.position_ids",), left=("backbone.mask_token",)),
        "ViTBackbone": Map(prefixed(_VISION, "vision_model."), ignored=("*",)),
        "TextTransformer": Map(prefixed(_TEXT, "text_model."), ignored=("*",)),
    }


LAYOUTS = {
    "transformers_clip": _maps("CLIP", _CLIP),
    "transformers_siglip": _maps("SigLIP", _SIGLIP),
}
TYPES = {"clip": ("transformers_clip", ""), "siglip": ("transformers_siglip", "")}

# What the files leave out where it is the default.
_VISION_DEFAULTS = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=224,
)
_TEXT_DEFAULTS = {
    "clip": dict(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=77,
        vocab_size=49408,
        hidden_act="quick_gelu",
    ),
    "siglip": dict(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=64,
        vocab_size=32000,
        hidden_act="gelu_pytorch_tanh",
    ),
}


def build(config: hf.Config):
    from keras_ssl.backbones import TextTransformer, ViTBackbone
    from keras_ssl.models import CLIP, SigLIP

    kind = config["model_type"]
    clip = kind == "clip"
    epsilon = 1e-5 if clip else 1e-6
    activation = _TEXT_DEFAULTS[kind]["hidden_act"]
    defaults = {**_VISION_DEFAULTS, "patch_size": 32 if clip else 16, "hidden_act": activation}
    vision = hf.Config({**defaults, **config.get("vision_config", {})}, "vision_config")
    text = hf.Config({**_TEXT_DEFAULTS[kind], **config.get("text_config", {})}, "text_config")
    vision.must_be(vision_use_head=(True,))
    if clip:  # the end token is found as the largest id; 2 is what old files say
        text.must_be(eos_token_id=(text["vocab_size"] - 1, 2))
    backbone = ViTBackbone(
        **hf.vit_arguments(vision, epsilon),
        mlp_dim=vision["intermediate_size"],
        activation=vision.activation(),
        use_class_token=clip,
        use_pre_norm=clip,
        patch_bias=not clip,
    )
    text_backbone = TextTransformer(
        vocabulary_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        hidden_dim=text["hidden_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        mlp_dim=text["intermediate_size"],
        causal=clip,
        activation=text.activation(),
        layer_norm_epsilon=text.get("layer_norm_eps", epsilon),
    )
    if clip:
        known = text["vocab_size"] == 49408
        return CLIP(
            backbone,
            text_backbone,
            projection_dim=config.get("projection_dim", 512),
            tokenizer="auto" if known else None,
        )
    projection = text.get("projection_size", text["hidden_size"])
    return SigLIP(backbone, text_backbone, projection_dim=projection, tokenizer=None)


def config_of(model) -> dict:
    clip = type(model).__name__ == "CLIP"
    vision, text = model.backbone, model.text_backbone
    if not hasattr(vision, "patch_embedding") or not hasattr(text, "token_embedding"):
        raise ValueError(
            "The layouts 'clip' and 'siglip' need a ViTBackbone and a TextTransformer. "
            f"Received: {type(vision).__name__}, {type(text).__name__}"
        )
    hf.require(vision, "clip" if clip else "siglip", use_pre_norm=clip, use_class_token=clip)
    described = hf.vit_config(vision)
    described.pop("qkv_bias")
    name = "clip" if clip else "siglip"
    config = {
        "model_type": name,
        "architectures": ["CLIPModel" if clip else "SiglipModel"],
        "vision_config": {
            "model_type": f"{name}_vision_model",
            **described,
            "intermediate_size": hf.mlp_width(vision),
        },
        "text_config": {
            "model_type": f"{name}_text_model",
            "vocab_size": text.vocabulary_size,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.hidden_dim,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "intermediate_size": hf.mlp_width(text),
            "hidden_act": hf.activation_name(text.activation),
            "layer_norm_eps": text.layer_norm_epsilon,
        },
    }
    if clip:
        end = text.vocabulary_size - 1
        config["text_config"].update(bos_token_id=end - 1, eos_token_id=end, pad_token_id=end)
        for part in (config, config["vision_config"], config["text_config"]):
            part["projection_dim"] = model.projection_dim
    else:
        config["text_config"]["projection_size"] = model.projection_dim
    return config
