"""transformers' `dinov3_convnext`: DINOv3's distilled ConvNeXts."""

from keras_ssl.converters import transformers as hf
from keras_ssl.converters.layouts import Map, dense, norm


def _rows(backbone):
    rows = norm("layer_norm", "norm")
    for stage in range(len(backbone.stages)):
        # Their places in a list: the stem's convolution comes before its normalisation.
        convolution, normalization = (1, 0) if stage else (0, 1)
        begin = f"stages.{stage}.downsample_layers"
        o, k = f"stages.{stage}.layers.{{i}}", f"stages.{stage}.{{i}}"
        rows += (
            *dense(f"{begin}.{convolution}", f"downsamplings.{stage}", "conv"),
            *norm(f"{begin}.{normalization}", f"downsampling_norms.{stage}"),
            *dense(f"{o}.depthwise_conv", f"{k}.depthwise", "depthwise"),
            *norm(f"{o}.layer_norm", f"{k}.norm"),
            *dense(f"{o}.pointwise_conv1", f"{k}.mlp.fc1"),
            *dense(f"{o}.pointwise_conv2", f"{k}.mlp.fc2"),
            (f"{o}.gamma", f"{k}.layer_scale.gamma", "same"),
        )
    return rows


LAYOUTS = {"transformers_dinov3_convnext": {"ConvNeXtBackbone": Map(_rows)}}
# Some versions of transformers have the stages one level deeper.
RENAMED = (("model.stages.", "stages."),)


def build(config: hf.Config):
    from keras_ssl.backbones import ConvNeXtBackbone

    return ConvNeXtBackbone(
        image_shape=(*config.pair("image_size"), config.get("num_channels", 3)),
        num_blocks=config.get("depths", [3, 3, 9, 3]),
        hidden_dims=config.get("hidden_sizes", [96, 192, 384, 768]),
        activation=config.activation(),
        layer_scale_init=config.get("layer_scale_init_value", 1e-6),
        layer_norm_epsilon=config.get("layer_norm_eps", 1e-6),
        drop_path_rate=config.get("drop_path_rate", 0.0),
    )


def config_of(backbone) -> dict:
    height, width, channels = backbone.image_shape
    return {
        "model_type": "dinov3_convnext",
        "architectures": ["DINOv3ConvNextModel"],
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "depths": list(backbone.num_blocks),
        "hidden_sizes": list(backbone.hidden_dims),
        "hidden_act": hf.activation_name(backbone.activation),
        "layer_norm_eps": backbone.layer_norm_epsilon,
        "layer_scale_init_value": backbone.layer_scale_init,
        "drop_path_rate": backbone.drop_path_rate,
    }


TYPES = {"dinov3_convnext": ("transformers_dinov3_convnext", "")}
