"""SimCLR on the pictures that ship with keras_ssl, in a few minutes on a CPU.

Paper: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020.
Command: make demo, or: KERAS_BACKEND=torch python examples/demo.py --output demo
Result: k-NN accuracy of the picture's group, on things never seen in training, for raw pixels, the
untrained model and the trained one; and demo/neighbours.png. Figures are in the README.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

import keras_ssl  # noqa: E402
from keras_ssl.evaluation import KNNProtocol  # noqa: E402
from keras_ssl.visualization import neighbour_grid  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", default="demo")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

keras.utils.set_random_seed(args.seed)
data = keras_ssl.datasets.load_emoji(image_size=32, background=(255, 255, 255))
train, test = data.split(test_fraction=0.2, seed=0)
print(f"{len(train)} pictures to learn from, {len(test)} of other things to test on")

x = images = keras.Input(train.images.shape[1:])
for filters in (32, 64, 128):
    for strides in (2, 1):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
model = keras_ssl.models.SimCLR(
    keras.Model(images, x, name="convolutions"),
    projection_dim=64,
    temperature=0.2,
    seed=args.seed,
)


def knn(what):
    """Accuracy in telling the nine groups of pictures apart by their nearest neighbours."""
    labelled = [(part.images, part.labels) for part in (train, test)]
    return KNNProtocol(k=20).evaluate(what, train=labelled[0], test=labelled[1]).top1


pixels, before = knn("pixels"), knn(model)
start = time.time()
model.compile(learning_rate=1.0)
model.fit(train.images, batch_size=128, epochs=args.epochs)
seconds = time.time() - start

# For each of six test pictures, the nearest training pictures by what was learned.
queries = np.random.default_rng(3).choice(len(test), 6, replace=False)
os.makedirs(args.output, exist_ok=True)
picture = os.path.join(args.output, "neighbours.png")
neighbour_grid(model, test.images[queries], train.images).save(picture)
model.save_to_preset(os.path.join(args.output, "preset"))
print(f"k-NN accuracy: raw pixels {pixels:.3f}, untrained {before:.3f}, trained {knn(model):.3f}")
print(f"{seconds:.0f} s of training on {keras.backend.backend()}. Look at {picture}: in each row a")
print("picture that the model never saw, and those it finds most like it.")
