"""SimSiam on small pictures: a predictor and a stopped gradient, no negatives, no slow copy.

Paper: Chen and He, Exploring Simple Siamese Representation Learning, 2021.
Data: the shipped emoji, or any folder or archive with train/ and test/; no labels in training.
Command: KERAS_BACKEND=tensorflow python examples/simsiam.py --data cifar10.tar.gz --epochs 5
Result: k-NN and linear accuracy beside raw pixels and the untrained network: table in the README.
"""

from common import run, small_views

import keras_ssl


def build(image_shape, args):
    return keras_ssl.models.SimSiam(
        keras_ssl.backbones.small_resnet(image_shape),
        projection_dim=256,
        prediction_hidden_dim=64,
        augmenter=small_views(image_shape, args.seed),
        seed=args.seed,
    )


if __name__ == "__main__":
    run(build, __doc__, learning_rate=0.2, batch_size=64)
