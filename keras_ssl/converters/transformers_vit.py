"""transformers' `vit` (as DINO's released encoders are stored) and `ijepa`."""

from keras_ssl.converters import transformers as hf
from keras_ssl.converters.layouts import Map, prefixed

# The pooler is a layer of BERT's kind that no method trains; classifiers have a head instead.
_HEADS = ("pooler.*", "classifier.*", "decoder.*", "embeddings.mask_token")
_LEFT = ("mask_token",)

LAYOUTS = {
    "transformers_vit": {
        "ViTBackbone": Map(hf.vit_encoder(), ignored=_HEADS, left=_LEFT),
        "ImageClassifier": Map(
            prefixed(hf.vit_encoder(), ours="backbone."),
            ignored=_HEADS,
            left=("backbone.mask_token", "head_norm", "output_dense"),
        ),
    },
}
LAYOUTS["transformers_ijepa"] = LAYOUTS["transformers_vit"]


def build(config: hf.Config):
    from keras_ssl.backbones import ViTBackbone

    return ViTBackbone(
        **hf.vit_arguments(config, epsilon=1e-12),
        mlp_dim=config["intermediate_size"],
        qkv_bias=config.get("qkv_bias", True),
        activation=config.activation(),
        use_class_token=config["model_type"] == "vit",
    )


def config_of(backbone) -> dict:
    class_token = backbone.use_class_token
    layout = "vit" if class_token else "ijepa"
    hf.require(
        backbone,
        layout,
        num_register_tokens=0,
        layer_scale_init=None,
        ffn="mlp",
        use_final_norm=True,
    )
    return {
        "model_type": layout,
        "architectures": ["ViTModel" if class_token else "IJepaModel"],
        **hf.vit_config(backbone),
        "intermediate_size": hf.mlp_width(backbone),
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    }


TYPES = {"vit": ("transformers_vit", "vit."), "ijepa": ("transformers_ijepa", "ijepa.")}
