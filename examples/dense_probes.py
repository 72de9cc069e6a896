"""What a linear layer reads from DINO's patches: where a thing is, of which kind, and how far.

Paper: Oquab et al., DINOv2, 2023, section 7.4: segmentation and depth from frozen features.
Data: the scenes and the networks of dino_segmentation.py; for depth, rooms that are rendered here:
photographs on a floor and a wall, and drawings that stand on the floor.
Command: KERAS_BACKEND=tensorflow python examples/dense_probes.py --data cifar10.tar.gz
Result: mean IoU of thing and ground 0.80, untrained 0.74, pixels 0.39; of ten classes 0.22, 0.16,
0.08; error of depth 1.76 m (DINO alone), untrained 1.86, the mean of each place 1.91; 4 minutes
"""

import argparse
import os

import numpy as np
from dino_segmentation import SIZE, scenes
from PIL import Image

from keras_ssl import datasets, evaluation, models, visualization

EYES, TALL = 1.5, 1.0  # metres: the camera above the floor, and the side of a drawing
SEGMENTATION = evaluation.LinearSegmentationProtocol(epochs=10)
DEPTH = evaluation.LinearDepthProtocol(epochs=10, bins=64)


def room(rng, photos, drawings, size=SIZE):
    """A picture, uint8 `(size, size, 3)`, and its depth in metres, `(size, size)`.

    The camera looks ahead, its focal length is the picture's side, and the horizon is anywhere in
    the upper half. Behind the floor is a wall, 4 to 12 m away; one to three things stand before it.
    """
    horizon, wall = size * rng.uniform(0.0, 0.5), rng.uniform(4, 12)
    v, u = np.mgrid[:size, :size] + 0.5
    depth = np.minimum(size * EYES / np.maximum(v - horizon, 1e-6), wall)
    floor = depth < wall
    across = depth * (u - size / 2) / size
    along = np.where(floor, depth, depth * (v - horizon) / size)
    tile = (np.floor(8 * np.stack([along, across])) % photos.shape[1]).astype(int)  # 8 per metre
    below, behind = photos[rng.integers(len(photos), size=2)]
    picture = np.where(floor[..., None], below[*tile], behind[*tile])
    for far in -np.sort(-rng.uniform(2, wall, rng.integers(1, 4))):  # the nearest last
        side, foot = round(size * TALL / far), round(horizon + size * EYES / far)
        drawing = Image.fromarray(drawings[rng.integers(len(drawings))]).resize((side, side))
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(drawing, (int(rng.integers(size - side // 2)) - side // 4, foot - side))
        colours, alpha = np.split(np.asarray(canvas), [3], axis=-1)
        picture = np.where(alpha > 127, colours, picture)
        depth = np.where(alpha[..., 0] > 127, far, depth)
    return picture.astype("uint8"), depth


def rooms(count, photos, drawings, seed):
    rng = np.random.default_rng(seed)
    pictures, depths = zip(*(room(rng, photos, drawings) for _ in range(count)), strict=True)
    return np.stack(pictures), np.stack(depths)


def tasks(archive, count=1500):
    """Name, protocol, and pictures and targets to train and to test with, of each task."""
    train, _, test = scenes(archive)
    parts = train.select(np.random.default_rng(0).permutation(len(train))[:count]), test
    masks = [part.alphas > 127 for part in parts]
    things = [(part.images, mask.astype("uint8")) for part, mask in zip(parts, masks, strict=True)]
    yield "thing", SEGMENTATION, *things
    kinds = [
        mask * (1 + part.labels[:, None, None]) for part, mask in zip(parts, masks, strict=True)
    ]
    yield "kind", SEGMENTATION, *((images, k) for (images, _), k in zip(things, kinds, strict=True))
    drawings = datasets.load_emoji().split(test_fraction=0.1, seed=0)
    photos = [datasets.load_arrays(archive, subset=p, verbose=False)[0] for p in ("train", "test")]
    few = count, len(test)
    yield "depth", DEPTH, *(rooms(few[i], photos[i], drawings[i].images, i) for i in range(2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder or archive with train/ and test/")
    parser.add_argument("--networks", default="runs/dino_segmentation", help="of that example")
    args = parser.parse_args()
    networks = {"pixels": None}
    for name in ("untrained", "DINO_alone", "DINO"):
        networks[name] = models.DINO.from_preset(os.path.join(args.networks, f"{name}_preset"))
    for task, protocol, train, test in tasks(args.data):
        if task == "depth":
            place = np.sqrt(np.mean((test[1] - train[1].mean(axis=0)) ** 2))
            print(f"depth, the mean of each place: rmse {place:.3f}")
            shown = np.stack([test[0][:8], visualization.heat_map(-test[1][:8])], axis=1)
            grid = visualization.picture_grid(shown.reshape(-1, SIZE, SIZE, 3), columns=8, zoom=2)
            grid.save(os.path.join(args.networks, "rooms.png"))
        for name, model in networks.items():
            parts = [train, test]
            if model:  # twice the training's size, for finer maps
                maps = (evaluation.patch_features(model, x, image_size=2 * SIZE) for x, _ in parts)
                parts = [(x, y) for x, (_, y) in zip(maps, parts, strict=True)]
            result = protocol.evaluate(None if model else "pixels", train=parts[0], test=parts[1])
            figures = ", ".join(f"{key} {value:.3f}" for key, value in result.metrics.items())
            print(f"{task}, {name}: {figures}", flush=True)
