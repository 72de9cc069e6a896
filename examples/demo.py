"""A masked autoencoder on the pictures that ship with keras_ssl, in a few minutes on a CPU.

Paper: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021.
Command: make demo, or: KERAS_BACKEND=torch python examples/demo.py --output demo
Result: k-NN accuracy of the picture's group, on things never seen in training, for raw pixels, the
untrained model and the trained one; and demo/reconstructions.png. Figures are in the README.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_ssl  # noqa: E402
from keras_ssl.evaluation import KNNProtocol  # noqa: E402
from keras_ssl.visualization import reconstruction_grid  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", default="demo")
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

keras.utils.set_random_seed(args.seed)
data = keras_ssl.datasets.load_emoji(image_size=32, background=(255, 255, 255))
train, test = data.split(test_fraction=0.2, seed=0)
print(f"{len(train)} pictures to learn from, {len(test)} of other things to test on")

backbone = keras_ssl.backbones.ViTBackbone.from_size(
    "vit_nano",
    image_shape=train.images.shape[1:],
    patch_size=4,
    position_embedding="sincos",
    initializer="mae",
)
model = keras_ssl.models.MAE(
    backbone,
    decoder_hidden_dim=64,
    decoder_num_layers=2,
    decoder_num_heads=4,
    pooling="mean",
    seed=args.seed,
)


def knn(what):
    """Accuracy in telling the nine groups of pictures apart by their nearest neighbours."""
    labelled = [(part.images, part.labels) for part in (train, test)]
    return KNNProtocol(k=20).evaluate(what, train=labelled[0], test=labelled[1]).top1


pixels, before = knn("pixels"), knn(model)
start = time.time()
model.compile(learning_rate=2e-3)
model.fit(train.images, batch_size=128, epochs=args.epochs)
seconds = time.time() - start

os.makedirs(args.output, exist_ok=True)
chosen = np.random.default_rng(1).choice(len(test), 12, replace=False)
picture = os.path.join(args.output, "reconstructions.png")
reconstruction_grid(model, test.images[chosen], zoom=3).save(picture)
model.save_to_preset(os.path.join(args.output, "preset"))
print(f"k-NN accuracy: raw pixels {pixels:.3f}, untrained {before:.3f}, trained {knn(model):.3f}")
print(
    f"{seconds:.0f} s of training on {keras.backend.backend()}. Look at {picture}: each triple is"
)
print("a picture, the quarter of it that the model saw, and what it painted.")
