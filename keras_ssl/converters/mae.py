"""facebookresearch/mae: `models_mae.py` (pretraining)."""

from keras_ssl.converters.layouts import Map, dense, norm
from keras_ssl.converters.timm import HEAD_NORM, blocks, encoder

# Its decoder_pred writes pixels in (row, column, channel) order, as ours does: a plain Linear.
_MAE = (
    *encoder("backbone."),
    *dense("decoder_embed", "decoder_embedding"),
    ("mask_token", "mask_token", "same"),
    ("decoder_pos_embed", "decoder_position_embedding", "same"),
    *blocks("decoder_blocks", "decoder_blocks"),
    *norm("decoder_norm", "decoder_norm"),
    *dense("decoder_pred", "decoder_prediction"),
)
_DECODER = ("mask_token", "decoder_*")

LAYOUTS = {
    "mae": {
        "MAE": Map(_MAE),
        "ViTBackbone": Map(
            encoder(), ignored=(*_DECODER, "norm.*"), left=("register_tokens", "mask_token")
        ),
        # Fine-tuning starts from the encoder; the head and, with mean pooling, its norm are new.
        "ImageClassifier": Map(
            encoder("backbone."),
            ignored=(*_DECODER, "norm.*"),
            left=("head_norm", "output_dense"),
            displaced=HEAD_NORM,
        ),
    },
}
