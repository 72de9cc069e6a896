"""transformers' `dinov2` and `dinov2_with_registers`."""

from keras_ssl.converters import transformers as hf
from keras_ssl.converters.layouts import Map, dense, norm, split_dense


def _encoder(ours: str = ""):
    o, k = "encoder.layer.{i}", f"{ours}blocks.{{i}}"
    attention = f"{o}.attention.attention"
    return (
        *hf.vit_embeddings(ours),
        ("embeddings.mask_token", f"{ours}mask_token", "same"),
        ("embeddings.register_tokens", f"{ours}register_tokens", "same"),
        *norm(f"{o}.norm1", f"{k}.norm1"),
        *split_dense(
            (f"{attention}.query", f"{attention}.key", f"{attention}.value"), f"{k}.attention.qkv"
        ),
        *dense(f"{o}.attention.output.dense", f"{k}.attention.projection"),
        (f"{o}.layer_scale1.lambda1", f"{k}.layer_scale1.gamma", "same"),
        *norm(f"{o}.norm2", f"{k}.norm2"),
        *dense(f"{o}.mlp.fc1", f"{k}.mlp.fc1"),
        *dense(f"{o}.mlp.fc2", f"{k}.mlp.fc2"),
        *dense(f"{o}.mlp.weights_in", f"{k}.mlp.w12"),
        *dense(f"{o}.mlp.weights_out", f"{k}.mlp.w3"),
        (f"{o}.layer_scale2.lambda1", f"{k}.layer_scale2.gamma", "same"),
        *norm("layernorm", f"{ours}norm"),
    )


_IGNORED = ("classifier.*", "embeddings.mask_token")
LAYOUTS = {
    "transformers_dinov2": {
        "ViTBackbone": Map(_encoder(), ignored=_IGNORED),
        "ImageClassifier": Map(
            _encoder("backbone."), ignored=_IGNORED, left=("head_norm", "output_dense")
        ),
    },
}
LAYOUTS["transformers_dinov2_with_registers"] = LAYOUTS["transformers_dinov2"]


def build(config: hf.Config):
    from keras_ssl.backbones import ViTBackbone

    registers = config["model_type"] == "dinov2_with_registers"
    return ViTBackbone(
        **hf.vit_arguments(config, epsilon=1e-6),
        mlp_ratio=config.get("mlp_ratio", 4),
        qkv_bias=config.get("qkv_bias", True),
        activation=config.activation(),
        ffn="swiglu" if config.get("use_swiglu_ffn", False) else "mlp",
        layer_scale_init=config.get("layerscale_value", 1.0),
        drop_path_rate=config.get("drop_path_rate", 0.0),
        use_mask_token=registers or config.get("use_mask_token", True),
        num_register_tokens=config.get("num_register_tokens", 4) if registers else 0,
        # transformers interpolates to a size, with antialiasing where there are registers.
        interpolation_antialias=registers,
    )


def config_of(backbone) -> dict:
    # Without antialiasing it is the architecture that knows no registers.
    registers = backbone.num_register_tokens or backbone.interpolation_antialias
    name = "dinov2_with_registers" if registers else "dinov2"
    hf.require(
        backbone,
        name,
        use_class_token=True,
        use_final_norm=True,
        interpolation_antialias=bool(registers),
    )
    if backbone.layer_scale_init is None or (registers and not backbone.use_mask_token):
        raise ValueError(f"The layout {name!r} needs layer scale and, with registers, a mask token")
    if backbone.mlp_dim is not None:
        raise ValueError(
            f"The layout {name!r} gives the MLP's width as mlp_ratio. "
            f"Received: a backbone with mlp_dim={backbone.mlp_dim}"
        )
    return {
        "model_type": name,
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        **hf.vit_config(backbone),
        "mlp_ratio": backbone.mlp_ratio,
        "layerscale_value": backbone.layer_scale_init,
        "drop_path_rate": backbone.drop_path_rate,
        "use_swiglu_ffn": backbone.ffn == "swiglu",
        **({"num_register_tokens": backbone.num_register_tokens} if registers else {}),
        **({} if registers else {"use_mask_token": backbone.use_mask_token}),
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    }


TYPES = {
    "dinov2": ("transformers_dinov2", "dinov2."),
    "dinov2_with_registers": ("transformers_dinov2_with_registers", "dinov2_with_registers."),
}
