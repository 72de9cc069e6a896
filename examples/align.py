"""ALIGN on emoji: an EfficientNet and a BERT, both keras-hub's, meet in one space.

Paper: Jia et al., Scaling Up Visual and Vision-Language Representation Learning With Noisy Text
Supervision, 2021.
Data: the shipped emoji with their names as captions; a fifth of the things is in no training pair.
Command: KERAS_BACKEND=tensorflow python examples/align.py --epochs 12
Result: k-NN and linear accuracy in result.json; recall of unseen things between pictures and names
by `keras-ssl evaluate runs/align_emoji --data emoji -p retrieval`: the card of the shipped preset.
"""

import keras_hub
from common import run
from siglip import views

import keras_ssl


def build(image_shape, args):
    image_encoder = keras_hub.models.EfficientNetBackbone(  # as small as the pictures
        stackwise_kernel_sizes=[3, 3, 3],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[32, 24, 48],
        stackwise_output_filters=[24, 48, 96],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.25] * 3,
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["v1"] * 3,
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        input_shape=image_shape,
    )
    tokenizer = keras_ssl.tokenizers.CLIPTokenizer(16, truncate=True, num_merges=2048)
    text_encoder = keras_hub.models.BertBackbone(
        tokenizer.vocabulary_size,
        num_layers=2,
        num_heads=3,
        hidden_dim=96,
        intermediate_dim=384,
        max_sequence_length=16,
        dropout=0.0,
    )
    return keras_ssl.models.ALIGN(
        image_encoder,
        text_encoder,
        projection_dim=128,
        tokenizer=tokenizer,
        # The class token, the paper's choice, hardly hears the words of a fresh and narrow BERT:
        # two names have a cosine of 0.9999 there, 0.91 in the mean of their words.
        text_pooling="mean",
        temperature=0.07,  # from 1, as the paper has it, a short run does not get there
        augmenter=views(image_shape, args.seed),
        seed=args.seed,
    )


if __name__ == "__main__":
    run(build, __doc__, captions=True, learning_rate=1e-2, batch_size=128, epochs=12)
