"""transformers' `vit_mae`: MAE with its decoder (`ViTMAEForPreTraining`)."""

import math

from keras_ssl.converters import transformers as hf
from keras_ssl.converters.layouts import Map, dense, norm, prefixed

_DECODER = (
    *dense("decoder.decoder_embed", "decoder_embedding"),
    ("decoder.mask_token", "mask_token", "same"),
    ("decoder.decoder_pos_embed", "decoder_position_embedding", "same"),
    *hf.vit_layer("decoder.decoder_layers.{i}", "decoder_blocks.{i}"),
    *norm("decoder.decoder_norm", "decoder_norm"),
    *dense("decoder.decoder_pred", "decoder_prediction"),
)
LAYOUTS = {
    "transformers_vit_mae": {
        "MAE": Map((*prefixed(hf.vit_encoder("backbone."), "vit."), *_DECODER)),
        "ViTBackbone": Map(
            prefixed(hf.vit_encoder(), "vit."), ignored=("decoder.*",), left=("mask_token",)
        ),
        "ImageClassifier": Map(
            prefixed(hf.vit_encoder("backbone."), "vit."),
            ignored=("decoder.*", "classifier.*", "vit.layernorm.*"),
            left=("backbone.mask_token", "head_norm", "output_dense"),
            displaced=(("backbone.norm", "head_norm"),),
        ),
    },
}
# Versions 5 of transformers write the decoder's layers under another name than they read.
RENAMED = (("decoder.decoder_encoder.layer.", "decoder.decoder_layers."),)


def build(config: hf.Config):
    from keras_ssl.backbones import ViTBackbone
    from keras_ssl.models import MAE

    backbone = ViTBackbone(
        **hf.vit_arguments(config, epsilon=1e-12),
        mlp_dim=config["intermediate_size"],
        qkv_bias=config.get("qkv_bias", True),
        activation=config.activation(),
        position_embedding="sincos",
        initializer="mae",
    )
    dim = config.get("decoder_hidden_size", 512)
    width = config.get("decoder_intermediate_size", 2048)
    ratio = width / dim
    if int(dim * ratio) < width:  # the quotient was rounded down
        ratio = math.nextafter(ratio, math.inf)
    return MAE(
        backbone,
        decoder_hidden_dim=dim,
        decoder_num_layers=config.get("decoder_num_hidden_layers", 8),
        decoder_num_heads=config.get("decoder_num_attention_heads", 16),
        decoder_mlp_ratio=ratio,
        mask_ratio=config.get("mask_ratio", 0.75),
        normalize_targets=config.get("norm_pix_loss", False),
        pooling=config.get("pooling", "token"),  # not a key of theirs
    )


def config_of(model) -> dict:
    backbone = model.backbone
    hf.require(
        backbone,
        "vit_mae",
        use_class_token=True,
        num_register_tokens=0,
        layer_scale_init=None,
        ffn="mlp",
        use_final_norm=True,
    )
    dim = model.decoder_hidden_dim
    return {
        "model_type": "vit_mae",
        "architectures": ["ViTMAEForPreTraining"],
        **hf.vit_config(backbone),
        "intermediate_size": hf.mlp_width(backbone),
        "decoder_hidden_size": dim,
        "decoder_num_hidden_layers": model.decoder_num_layers,
        "decoder_num_attention_heads": model.decoder_num_heads,
        "decoder_intermediate_size": int(dim * model.decoder_mlp_ratio),
        "mask_ratio": model.mask_ratio,
        "norm_pix_loss": model.normalize_targets,
        "pooling": model.pooling,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    }


TYPES = {"vit_mae": ("transformers_vit_mae", "")}
