"""MAE on small pictures: paint the three quarters of a picture that are hidden.

Paper: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021.
Data: the shipped emoji, or any folder or archive with train/ and test/; no labels in training.
Command: KERAS_BACKEND=tensorflow python examples/mae.py --data cifar10.tar.gz --epochs 13
Result: k-NN and linear accuracy beside raw pixels and the untrained network: table in the README;
and reconstructions.png: test pictures, what the model saw of them, and what it painted.
"""

import os

import numpy as np
from common import run

import keras_ssl
from keras_ssl.visualization import reconstruction_grid


def build(image_shape, args):
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano",
        image_shape=image_shape,
        patch_size=4,
        position_embedding="sincos",
        initializer="mae",
    )
    return keras_ssl.models.MAE.small(backbone, normalize_targets=True, seed=args.seed)


if __name__ == "__main__":
    model, data, output = run(build, __doc__)
    chosen = np.random.default_rng(0).choice(len(data.test[0]), 12, replace=False)
    picture = os.path.join(output, "reconstructions.png")
    reconstruction_grid(model, data.test[0][chosen]).save(picture)
