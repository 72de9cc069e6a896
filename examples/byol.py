"""BYOL on small pictures: predict what a slow copy makes of the other view, no negatives.

Paper: Grill et al., Bootstrap Your Own Latent, 2020.
Data: the shipped emoji, or any folder or archive with train/ and test/; no labels in training.
Command: KERAS_BACKEND=tensorflow python examples/byol.py --data cifar10.tar.gz --epochs 5
Result: k-NN and linear accuracy beside raw pixels and the untrained network: table in the README.
"""

from common import run, small_views

import keras_ssl


def build(image_shape, args):
    return keras_ssl.models.BYOL(
        keras_ssl.backbones.small_resnet(image_shape),
        projection_dim=64,
        projection_hidden_dim=512,
        momentum=0.99,  # the target must keep up within a short run
        augmenter=small_views(image_shape, args.seed),
        seed=args.seed,
    )


if __name__ == "__main__":
    run(build, __doc__, learning_rate=2.0, batch_size=64)
