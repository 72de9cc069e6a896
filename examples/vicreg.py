"""VICReg on small pictures: invariance, variance and covariance of the embeddings.

Paper: Bardes et al., VICReg: Variance-Invariance-Covariance Regularization, 2022.
Data: the shipped emoji, or any folder or archive with train/ and test/; no labels in training.
Command: KERAS_BACKEND=tensorflow python examples/vicreg.py --data cifar10.tar.gz --epochs 5
Result: k-NN and linear accuracy beside raw pixels and the untrained network: table in the README.
"""

from common import run, small_views

import keras_ssl


def build(image_shape, args):
    return keras_ssl.models.VICReg(
        keras_ssl.backbones.small_resnet(image_shape),
        projection_dim=512,
        augmenter=small_views(image_shape, args.seed),
        seed=args.seed,
    )


if __name__ == "__main__":
    run(build, __doc__, learning_rate=1.0, batch_size=128)
