"""SigLIP on emoji: every pair of a picture and a name is asked on its own whether it fits.

Paper: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023.
Data: the shipped emoji with their names as captions; a fifth of the things is in no training pair.
Command: KERAS_BACKEND=torch python examples/siglip.py --epochs 10
Result: k-NN and linear accuracy in result.json; recall of unseen things between pictures and names
by `keras-ssl evaluate runs/siglip_emoji --data emoji -p retrieval`: the card of the shipped preset.
"""

from common import run

import keras_ssl
from keras_ssl.augmentation import Views


def views(image_shape, seed):
    """One view of a picture: a crop of half or more, and colours that vary."""
    jitter = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.4, "hue": 0.05}
    view = {"crop": {"scale": (0.5, 1.0)}, "jitter": {**jitter, "probability": 0.8}}
    half = (0.5,) * 3
    return Views([view], size=image_shape[:2], mean=half, std=half, seed=seed)


def build(image_shape, args):
    # Names of emoji need few words: the first merges of CLIP's vocabulary, 2,562 ids.
    tokenizer = keras_ssl.tokenizers.CLIPTokenizer(16, truncate=True, num_merges=2048)
    return keras_ssl.models.SigLIP(
        keras_ssl.backbones.small_resnet(image_shape),
        keras_ssl.backbones.TextTransformer(
            tokenizer.vocabulary_size,
            context_length=16,
            hidden_dim=96,
            num_layers=2,
            num_heads=3,
            causal=False,
            activation="gelu_tanh",
            layer_norm_epsilon=1e-6,
        ),
        projection_dim=128,
        tokenizer=tokenizer,
        augmenter=views(image_shape, args.seed),
        seed=args.seed,
    )


if __name__ == "__main__":
    run(build, __doc__, captions=True, batch_size=128, epochs=10)
