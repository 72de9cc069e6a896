"""MoCo v2 on small pictures: a queue of keys from a slow encoder gives the negatives.

Paper: Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020.
Data: the shipped emoji, or any folder or archive with train/ and test/; no labels in training.
Command: KERAS_BACKEND=tensorflow python examples/moco.py --data cifar10.tar.gz --epochs 5
Result: k-NN and linear accuracy beside raw pixels and the untrained network: table in the README.
"""

from common import run, small_views

import keras_ssl


def build(image_shape, args):
    return keras_ssl.models.MoCo(
        keras_ssl.backbones.small_resnet(image_shape),
        projection_dim=64,
        queue_size=4096,
        momentum=0.99,  # the slow encoder must keep up within a short run
        batch_norm_groups=4,
        augmenter=small_views(image_shape, args.seed),
        seed=args.seed,
    )


if __name__ == "__main__":
    run(build, __doc__, learning_rate=0.2, batch_size=128)
