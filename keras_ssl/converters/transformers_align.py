"""transformers' `align`: EfficientNet, BERT, and the linear layer that joins them."""

import math

from keras_ssl.converters import transformers as hf
from keras_ssl.converters.layouts import Map, batch_norm, dense, norm, prefixed


def _convolution(convolution: str, norm: str, ours: str, kind: str = "conv"):
    """A convolution without bias and its normalisation."""
    return (
        (f"{convolution}.weight", f"{ours}_conv.kernel", kind),
        *batch_norm(norm, f"{ours}_bn"),
    )


def _vision(model):
    """Rows of the blocks that this model has; paths without a layer do not apply."""
    backbone = getattr(model, "backbone", model)
    rows = _convolution("embeddings.convolution", "embeddings.batchnorm", "@stem")
    repeats = (math.ceil(backbone.depth_coefficient * n) for n in backbone.num_repeats)
    for i in range(sum(repeats)):
        theirs, ours = f"encoder.blocks.{i}", f"@block_{i}"
        for part, convolution, bn, kind in (
            ("expand", "expansion.expand_conv", "expansion.expand_bn", "conv"),
            (
                "depthwise",
                "depthwise_conv.depthwise_conv",
                "depthwise_conv.depthwise_norm",
                "depthwise",
            ),
            ("project", "projection.project_conv", "projection.project_bn", "conv"),
        ):
            names = f"{theirs}.{convolution}", f"{theirs}.{bn}"
            rows += _convolution(*names, f"{ours}_{part}", kind)
        for part, layer in (("squeeze", "reduce"), ("excite", "expand")):
            rows += dense(f"{theirs}.squeeze_excite.{layer}", f"{ours}_{part}_conv", "conv")
    return rows


_LAYER, _BLOCK = "encoder.layer.{i}", "blocks.{i}"
_ATTENTION = f"{_BLOCK}.attention"
_TEXT = (
    ("embeddings.word_embeddings.weight", "token_embedding.embeddings", "same"),
    ("embeddings.position_embeddings.weight", "position_embedding.embeddings", "same"),
    ("embeddings.token_type_embeddings.weight", "segment_embedding.embeddings", "same"),
    *norm("embeddings.LayerNorm", "norm"),
    *(
        row
        for part in ("query", "key", "value")
        for row in (
            (
                f"{_LAYER}.attention.self.{part}.weight",
                f"{_ATTENTION}.{part}_dense.kernel",
                "heads",
            ),
            (f"{_LAYER}.attention.self.{part}.bias", f"{_ATTENTION}.{part}_dense.bias", "vector"),
        )
    ),
    (f"{_LAYER}.attention.output.dense.weight", f"{_ATTENTION}.output_dense.kernel", "from_heads"),
    (f"{_LAYER}.attention.output.dense.bias", f"{_ATTENTION}.output_dense.bias", "same"),
    *norm(f"{_LAYER}.attention.output.LayerNorm", f"{_BLOCK}.norm1"),
    *dense(f"{_LAYER}.intermediate.dense", f"{_BLOCK}.fc1"),
    *dense(f"{_LAYER}.output.dense", f"{_BLOCK}.fc2"),
    *norm(f"{_LAYER}.output.LayerNorm", f"{_BLOCK}.norm2"),
)


def _align(model):
    return (
        *prefixed(_vision(model), "vision_model.", "backbone."),
        *prefixed(_TEXT, "text_model.", "text_backbone."),
        *dense("text_projection", "text_projection"),
        ("temperature", "logit_scale", "temperature"),
    )


# BERT's own pooler is behind the class token, which is what ALIGN takes.
_IGNORED = ("*.num_batches_tracked", "text_model.pooler.*", "*.position_ids")
LAYOUTS = {
    "transformers_align": {
        "ALIGN": Map(_align, ignored=_IGNORED),
        "EfficientNet": Map(lambda m: prefixed(_vision(m), "vision_model."), ignored=("*",)),
        "BertEncoder": Map(prefixed(_TEXT, "text_model."), ignored=("*",)),
    },
}
TYPES = {"align": ("transformers_align", "")}

# What the files leave out where it is the default.
_VISION_DEFAULTS = dict(
    num_channels=3,
    image_size=600,
    width_coefficient=2.0,
    depth_coefficient=3.1,
    depth_divisor=8,
    kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
    in_channels=[32, 16, 24, 40, 80, 112, 192],
    out_channels=[16, 24, 40, 80, 112, 192, 320],
    depthwise_padding=[],
    strides=[1, 2, 2, 2, 1, 2, 1],
    num_block_repeats=[1, 2, 2, 3, 3, 4, 1],
    expand_ratios=[1, 6, 6, 6, 6, 6, 6],
    squeeze_expansion_ratio=0.25,
    batch_norm_eps=0.001,
    drop_connect_rate=0.2,
)
_TEXT_DEFAULTS = dict(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_dropout_prob=0.1,
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
)


def build(config: hf.Config):
    from keras_ssl.backbones import BertEncoder, EfficientNet
    from keras_ssl.models import ALIGN

    vision = hf.Config({**_VISION_DEFAULTS, **config.get("vision_config", {})}, "vision_config")
    text = hf.Config({**_TEXT_DEFAULTS, **config.get("text_config", {})}, "text_config")
    vision.must_be(hidden_act=("swish", "silu"), pooling_type=("mean",))
    text.must_be(pad_token_id=(0,), hidden_act=("gelu",))
    inputs = [32, *vision["out_channels"][:-1]]
    if list(vision["in_channels"]) != inputs:
        raise ValueError(
            "vision_config: in_channels must be 32 and the channels of the stage before. "
            f"Received: in_channels={vision['in_channels']}"
        )
    backbone = EfficientNet(
        (*vision.pair("image_size"), vision["num_channels"]),
        vision["width_coefficient"],
        vision["depth_coefficient"],
        vision["depth_divisor"],
        kernel_sizes=vision["kernel_sizes"],
        out_channels=vision["out_channels"],
        strides=vision["strides"],
        num_repeats=vision["num_block_repeats"],
        expand_ratios=vision["expand_ratios"],
        squeeze_ratio=vision["squeeze_expansion_ratio"],
        padded_both_sides=vision["depthwise_padding"],
        drop_rate=vision["drop_connect_rate"],
        batch_norm_epsilon=vision["batch_norm_eps"],
    )
    text_backbone = BertEncoder(
        text["vocab_size"],
        text["max_position_embeddings"],
        text["hidden_size"],
        text["num_hidden_layers"],
        text["num_attention_heads"],
        text["intermediate_size"],
        text["type_vocab_size"],
        text.activation(),
        text["hidden_dropout_prob"],
        text["layer_norm_eps"],
    )
    width = backbone.output_shape[-1]
    if config.get("projection_dim", 640) != width:
        raise ValueError(
            "config.json: projection_dim must be the width of the last stage. "
            f"Received: projection_dim={config.get('projection_dim', 640)}, width {width}"
        )
    # BERT's own vocabulary is not part of this package: texts come as ids.
    return ALIGN(backbone, text_backbone, tokenizer=None)


def config_of(model) -> dict:
    from keras_ssl.backbones import BertEncoder, EfficientNet

    vision, text = model.backbone, model.text_backbone
    if not isinstance(vision, EfficientNet) or not isinstance(text, BertEncoder):
        raise ValueError(
            "The layout 'align' needs an EfficientNet and a BertEncoder of keras_ssl.backbones. "
            f"Received: {type(vision).__name__}, {type(text).__name__}"
        )
    if model.image_projection is not None:
        raise ValueError(
            "The layout 'align' has no layer behind the image encoder: build ALIGN with "
            f"projection_dim=None. Received: projection_dim={model.projection_dim}"
        )
    height, width, channels = vision.image_shape
    return {
        "model_type": "align",
        "architectures": ["AlignModel"],
        "projection_dim": model.projection_dim,
        "vision_config": {
            "model_type": "align_vision_model",
            "image_size": height if height == width else [height, width],
            "num_channels": channels,
            "width_coefficient": vision.width_coefficient,
            "depth_coefficient": vision.depth_coefficient,
            "depth_divisor": vision.depth_divisor,
            "kernel_sizes": list(vision.kernel_sizes),
            "in_channels": [32, *vision.out_channels[:-1]],
            "out_channels": list(vision.out_channels),
            "strides": list(vision.strides),
            "num_block_repeats": list(vision.num_repeats),
            "expand_ratios": list(vision.expand_ratios),
            "squeeze_expansion_ratio": vision.squeeze_ratio,
            "depthwise_padding": list(vision.padded_both_sides),
            "drop_connect_rate": vision.drop_rate,
            "batch_norm_eps": vision.batch_norm_epsilon,
            "hidden_act": vision.activation,
            # Its pooling window, which must be as large as the map at least.
            "hidden_dim": 2560,
        },
        "text_config": {
            "model_type": "align_text_model",
            "vocab_size": text.vocabulary_size,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.hidden_dim,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "intermediate_size": text.mlp_dim,
            "type_vocab_size": text.num_segments,
            "hidden_act": hf.activation_name(text.activation),
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "layer_norm_eps": text.layer_norm_epsilon,
            "pad_token_id": 0,
        },
    }
