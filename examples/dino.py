"""DINO on small pictures: small crops must agree with what a slow teacher says of whole views.

Paper: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021.
Data: the shipped emoji, or any folder or archive with train/ and test/; no labels in training.
Command: KERAS_BACKEND=tensorflow python examples/dino.py --data cifar10.tar.gz --epochs 5
Result: k-NN and linear accuracy beside raw pixels and the untrained network: table in the README.
"""

from common import run

import keras_ssl


def build(image_shape, args):
    backbone = keras_ssl.backbones.small_resnet(image_shape)
    return keras_ssl.models.DINO.small(backbone, seed=args.seed)


if __name__ == "__main__":
    run(build, __doc__, batch_size=64)
