"""SimCLR on CIFAR-10 in twenty minutes on two cores.

Paper: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020.
Data: CIFAR-10's 50,000 training pictures, without their labels.
Command: KERAS_BACKEND=torch python examples/simclr.py --data ../shared/data/cifar10.tar.gz
Result: see the README's table; the last line that this prints.
"""

import argparse
import os

import keras
from keras import layers

import keras_ssl
from keras_ssl.evaluation import KNNProtocol

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True, help="folder or archive with train/ and test/")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--learning-rate", type=float, default=1.0, help="for a batch of 256")
parser.add_argument("--temperature", type=float, default=0.2)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="runs/simclr")
args = parser.parse_args()


def residual_network(image_shape, width):
    """Any Keras model is a backbone: a ResNet of three stages that fits a CPU."""

    def convolution(x, filters, size, strides=1):
        x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    x = images = keras.Input(image_shape)
    x = layers.ReLU()(convolution(x, width, 3, strides=2))
    for stage, filters in enumerate((width, 2 * width, 4 * width)):
        strides = 1 if stage == 0 else 2
        shortcut = x if stage == 0 else convolution(x, filters, 1, strides)
        x = layers.ReLU()(convolution(x, filters, 3, strides))
        x = layers.ReLU()(convolution(x, filters, 3) + shortcut)
    return keras.Model(images, x, name="residual_network")


keras.utils.set_random_seed(args.seed)
x_train, y_train, names = keras_ssl.datasets.load_arrays(args.data, subset="train")
x_test, y_test, _ = keras_ssl.datasets.load_arrays(args.data, subset="test")

model = keras_ssl.models.SimCLR(
    residual_network(x_train.shape[1:], args.width),
    projection_dim=64,
    temperature=args.temperature,
    seed=args.seed,
)


def knn(what):
    """k-NN accuracy over the whole test set, with the whole training set as the bank."""
    return KNNProtocol(k=20).evaluate(what, train=(x_train, y_train), test=(x_test, y_test)).top1


before = knn(model)
model.compile(learning_rate=args.learning_rate)
model.fit(x_train, batch_size=args.batch_size, epochs=args.epochs, verbose=2)

os.makedirs(args.output, exist_ok=True)
model.save_to_preset(os.path.join(args.output, "preset"))
print(f"k-NN: raw pixels {knn('pixels'):.4f}, before {before:.4f}, after {knn(model):.4f}")
