"""Learn from a video: neighbouring frames are the two views of one thing.

Time does what augmentation does by hand: a thing moves, turns, grows, before what moves as well.
Frames that are at most --gap apart are a pair for SimCLR.
Paper: Wang and Gupta, Unsupervised Learning of Visual Representations using Videos, 2015.
Data: --videos, files (animated GIF, PNG, WebP; MP4 with PyAV). Without them emoji are filmed that
move over photographs of --photos (an archive such as CIFAR-10's; colours without), two films each.
Measured: is a thing that is in no training film known again in its other film, among those of 30?
Command: KERAS_BACKEND=tensorflow python examples/video_frames.py --photos cifar10.tar.gz
Result: mAP 16.8 %, Rank-1 14.2 % (raw pixels 12.7, 13.1; untrained 10.2, 6.5), 2 min; frames.png.
"""

import argparse
import pathlib
import time

import keras
import numpy as np

import keras_ssl
from keras_ssl.augmentation import PairedViews
from keras_ssl.datasets import ImagePairs, moving_scene, read_videos, write_video
from keras_ssl.evaluation import extract_features, mean_average_precision
from keras_ssl.visualization import picture_grid


def films(args, folder):
    """Two films of each of `args.things` emoji, before two photographs."""
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (500, 2, 2, 3), "uint8")  # colours that flow into one another
    if args.photos is not None:
        photos = keras_ssl.datasets.load_arrays(args.photos, 32, subset="train")[0]
    drawings = keras_ssl.datasets.load_emoji("noto").images
    chosen = rng.permutation(len(drawings))[: args.things]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{row:04}_{take}.webp" for row in chosen for take in "ab"]
    for seed, (path, row) in enumerate(zip(paths, chosen.repeat(2), strict=True)):
        photo = photos[rng.integers(len(photos))]
        frames = moving_scene(drawings[row], photo, args.frames, 5 * args.size // 4, seed)
        write_video(path, frames)
    return paths


def measure(what, frames, numbers):
    """Is the thing of a first film found among the frames of all second films?"""
    x = extract_features(what, frames)
    x = x - x.mean(axis=0)
    first, thing = numbers % 2 == 0, numbers // 2
    return mean_average_precision(x[first], x[~first], thing[first], thing[~first], ranks=(1, 5))


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", nargs="+", help="files; default: films of emoji")
    parser.add_argument("--photos", help="folder or archive for the films' backgrounds")
    parser.add_argument("--things", type=int, default=150, help="in films; a fifth to measure on")
    parser.add_argument("--frames", type=int, default=16, help="of a film")
    parser.add_argument("--gap", type=int, default=6, help="frames between a pair, at most")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32, help="of the residual network")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/video_frames"))
    args = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    args.output.mkdir(parents=True, exist_ok=True)
    paths = args.videos or films(args, args.output / "films")
    held_out = 0 if args.videos else 2 * (args.things // 5)
    frames, numbers, times = read_videos(paths[held_out:], args.size)
    print(f"{len(paths) - held_out} films, {len(frames)} frames to learn from")
    picture_grid(frames[:32], columns=16, zoom=2).save(args.output / "frames.png")

    jitter = dict(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05, probability=0.8)
    views = [{"crop": {"scale": (0.4, 1.0)}, "flip": {}, "jitter": jitter}]
    model = keras_ssl.models.SimCLR(
        keras_ssl.backbones.small_resnet((args.size, args.size, 3), args.width),
        projection_dim=64,
        temperature=0.2,
        augmenter=PairedViews(views, size=args.size, seed=0),
        seed=0,
    )
    result = {}
    if held_out:
        test = read_videos(paths[:held_out], args.size)[:2]
        result = {"raw pixels": measure("pixels", *test), "untrained": measure(model, *test)}
    pairs = ImagePairs(frames, numbers, args.batch_size, times, max_gap=args.gap)
    model.compile(learning_rate=1.0)
    start = time.time()
    model.fit(pairs, epochs=args.epochs, shuffle=False, verbose=2)
    if held_out:
        result[f"gap {args.gap}"] = measure(model, *test)
    for name, figures in result.items():
        print(f"{name:12} " + "  ".join(f"{key} {100 * v:5.1f} %" for key, v in figures.items()))
    print(f"{time.time() - start:.0f} s")
    model.save_to_preset(args.output / "preset")
    return result


if __name__ == "__main__":
    main()
