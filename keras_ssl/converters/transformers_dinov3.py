"""transformers' `dinov3_vit`: rotary positions, registers, a gated MLP in the largest models."""

from keras_ssl.converters import transformers as hf
from keras_ssl.converters.layouts import Map, dense, norm, split_dense


def _rows(ours: str = ""):
    o, k = "layer.{i}", f"{ours}blocks.{{i}}"
    attention = f"{o}.attention"
    return (
        ("embeddings.cls_token", f"{ours}class_token", "same"),
        ("embeddings.mask_token", f"{ours}mask_token", "flat"),
        ("embeddings.register_tokens", f"{ours}register_tokens", "same"),
        *dense("embeddings.patch_embeddings", f"{ours}patch_embedding", "patch_conv"),
        *norm(f"{o}.norm1", f"{k}.norm1"),
        *split_dense(
            (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
            f"{k}.attention.qkv",
        ),
        *dense(f"{attention}.o_proj", f"{k}.attention.projection"),
        (f"{o}.layer_scale1.lambda1", f"{k}.layer_scale1.gamma", "same"),
        *norm(f"{o}.norm2", f"{k}.norm2"),
        *dense(f"{o}.mlp.up_proj", f"{k}.mlp.fc1"),
        *dense(f"{o}.mlp.down_proj", f"{k}.mlp.fc2"),
        *split_dense((f"{o}.mlp.gate_proj", f"{o}.mlp.up_proj"), f"{k}.mlp.w12"),
        *dense(f"{o}.mlp.down_proj", f"{k}.mlp.w3"),
        (f"{o}.layer_scale2.lambda1", f"{k}.layer_scale2.gamma", "same"),
        *norm("norm", f"{ours}norm"),
    )


_KEY_BIAS = ("layer.*.attention.k_proj.bias",)  # keys have none there, and zeros here
LAYOUTS = {
    "transformers_dinov3_vit": {
        "ViTBackbone": Map(
            _rows(), zeros=_KEY_BIAS, ignored=("embeddings.mask_token", "rope_embeddings.*")
        ),
        "ImageClassifier": Map(
            _rows("backbone."),
            zeros=_KEY_BIAS,
            ignored=("embeddings.mask_token", "rope_embeddings.*"),
            left=("head_norm", "output_dense"),
        ),
    },
}
# Some versions of transformers have the layers one level deeper.
RENAMED = (("model.layer.", "layer."),)


def build(config: hf.Config):
    from keras_ssl.backbones import ViTBackbone

    gated = config.get("use_gated_mlp", False)
    config.must_be(proj_bias=(True,), mlp_bias=(True,))
    if gated:
        config.must_be(hidden_act=("silu", "swish"))
    config.must_be(value_bias=(config.get("query_bias", True),))
    return ViTBackbone(
        **hf.vit_arguments(config, epsilon=1e-5),
        mlp_dim=config["intermediate_size"],
        ffn="swiglu" if gated else "mlp",
        **({} if gated else {"activation": config.activation()}),
        qkv_bias=config.get("query_bias", True),
        layer_scale_init=config.get("layerscale_value", 1.0),
        drop_path_rate=config.get("drop_path_rate", 0.0),
        num_register_tokens=config.get("num_register_tokens", 0),
        use_mask_token=True,
        position_embedding="rotary",
        rotary_theta=config.get("rope_theta", 100.0),
    )


def config_of(backbone) -> dict:
    name = "dinov3_vit"
    hf.require(backbone, name, use_class_token=True, use_mask_token=True, use_final_norm=True)
    if backbone.layer_scale_init is None:
        raise ValueError(f"The layout {name!r} needs layer scale. Received: layer_scale_init=None")
    config = hf.vit_config(backbone)
    bias = config.pop("qkv_bias")
    gated = backbone.ffn == "swiglu"
    return {
        "model_type": name,
        "architectures": ["DINOv3ViTModel"],
        **config,
        "hidden_act": "silu" if gated else config["hidden_act"],
        "use_gated_mlp": gated,
        "intermediate_size": hf.mlp_width(backbone),
        "query_bias": bias,
        "key_bias": bias and _has_key_bias(backbone),
        "value_bias": bias,
        "layerscale_value": backbone.layer_scale_init,
        "drop_path_rate": backbone.drop_path_rate,
        "num_register_tokens": backbone.num_register_tokens,
        "rope_theta": backbone.rotary_theta,
        "pos_embed_rescale": None,
    }


def _has_key_bias(backbone) -> bool:
    """Whether training here has given the keys a bias that the original does not have."""
    import keras
    import numpy as np

    biases = (keras.ops.convert_to_numpy(b.attention.qkv.bias) for b in backbone.blocks)
    return any(np.split(bias, 3)[1].any() for bias in biases)


TYPES = {"dinov3_vit": ("transformers_dinov3_vit", "dinov3_vit.")}
