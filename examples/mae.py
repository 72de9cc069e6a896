"""MAE on CIFAR-10 in twenty minutes on two cores.

Paper: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021.
Data: CIFAR-10's 50,000 training pictures, without their labels.
Command: KERAS_BACKEND=tensorflow python examples/mae.py --data ../shared/data/cifar10.tar.gz
Result: see the README's table; the last line that this prints.
"""

import argparse
import os

import keras
import numpy as np

import keras_ssl
from keras_ssl.evaluation import KNNProtocol
from keras_ssl.visualization import reconstruction_grid

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True, help="folder or archive with train/ and test/")
parser.add_argument("--epochs", type=int, default=16)
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--learning-rate", type=float, default=1e-3, help="for a batch of 256")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="runs/mae")
args = parser.parse_args()

keras.utils.set_random_seed(args.seed)
x_train, y_train, names = keras_ssl.datasets.load_arrays(args.data, subset="train")
x_test, y_test, _ = keras_ssl.datasets.load_arrays(args.data, subset="test")

backbone = keras_ssl.backbones.ViTBackbone.from_size(
    "vit_nano",
    image_shape=x_train.shape[1:],
    patch_size=4,
    position_embedding="sincos",
    initializer="mae",
)
model = keras_ssl.models.MAE(
    backbone,
    decoder_hidden_dim=64,
    decoder_num_layers=2,
    decoder_num_heads=4,
    normalize_targets=True,
    pooling="mean",
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
chosen = np.random.default_rng(0).choice(len(x_test), 12, replace=False)
reconstruction_grid(model, x_test[chosen]).save(os.path.join(args.output, "reconstructions.png"))
print(f"k-NN: raw pixels {knn('pixels'):.4f}, before {before:.4f}, after {knn(model):.4f}")
