"""Views per second: SimCLR's recipe at 224 pixels from 256-pixel uint8 images, beside the peers.

    python benchmarks/views.py [--quick]

One run measures, one after the other on the same machine: `keras_ssl.augmentation.Views` on each
backend (a process each, compiled where the backend compiles), the same operations in Keras' own
preprocessing layers mapped in a `tf.data` pipeline, torchvision on PIL images in one process per
core, and kornia on batches if it can be imported. What each peer does not do is in its note.

Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
2020, appendix A.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

SIZE, SOURCE = 224, 256
BACKENDS = ("tensorflow", "jax", "torch")
# (what, peer, ratio): "any" is for the fastest backend, "all" for each of them.
FIGURES = ("views_per_second", "cpu_ms_per_view", "compile_seconds")
AIMS = (("any", "keras", 3.0), ("any", "torchvision", 1.5), ("all", "keras", 1.0))


def _images(batch: int):
    """Smooth pictures, as photographs are; noise would make no difference to the time."""
    import numpy as np

    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (batch, 8, 8, 3)).astype("float32")
    fine = np.kron(coarse, np.ones((1, SOURCE // 8, SOURCE // 8, 1), "float32"))
    return np.clip(fine + generator.normal(0, 12, fine.shape), 0, 255).astype("uint8")


def _repeat(step, views: int, seconds: float) -> dict:
    """Runs `step`, which makes `views` views, for some seconds."""
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    step()
    times, end, processor = [], time.perf_counter() + seconds, time.process_time()
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    processor = (time.process_time() - processor) / len(times)
    median = sorted(times)[len(times) // 2]
    return {
        "views_per_second": views / median,
        "cpu_ms_per_view": 1e3 * processor / views,
        "compile_seconds": first - median,
    }


def measure_ours(batch: int, seconds: float) -> dict:
    """`Views` on the backend of this process."""
    import keras

    from keras_ssl.augmentation import Views

    views = Views("simclr", size=SIZE, seed=0)
    images = keras.ops.convert_to_tensor(_images(batch))
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        state = [variable.value for variable in views.non_trainable_variables]
        compiled = jax.jit(lambda state, x: views.stateless_call([], state, x, training=True))

        def step():
            nonlocal state
            result, state = compiled(state, images)
            jax.block_until_ready(result)

    elif backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda x: views(x, training=True), jit_compile=True)

        def step():
            compiled(images)[1][0, 0, 0, 0].numpy()

    else:
        import torch

        def step():
            with torch.no_grad():
                float(views(images, training=True)[1][0, 0, 0, 0])

    return _repeat(step, 2 * batch, seconds)


def measure_keras(batch: int, seconds: float) -> dict:
    """Keras' own layers in tf.data, two passes for two views."""
    import keras
    import tensorflow as tf

    layers = keras.layers
    pipeline = [
        layers.RandomCrop(SIZE, SIZE),
        layers.RandomFlip("horizontal"),
        layers.RandomColorJitter(
            value_range=(0, 255),
            brightness_factor=0.8,
            contrast_factor=0.8,
            saturation_factor=(0.1, 0.9),
            hue_factor=0.2,
        ),
        layers.RandomGrayscale(0.2),
        layers.RandomGaussianBlur(factor=0.5, kernel_size=23, sigma=(0.1, 2.0)),
        layers.Rescaling(1 / 255),
    ]

    def view(x):
        for layer in pipeline:
            x = layer(x) if isinstance(layer, layers.Rescaling) else layer(x, training=True)
        return x

    dataset = tf.data.Dataset.from_tensors(_images(batch)).repeat()
    dataset = dataset.map(
        lambda x: (view(tf.cast(x, "float32")), view(tf.cast(x, "float32"))),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    iterator = iter(dataset.prefetch(tf.data.AUTOTUNE))
    # Steps of several batches, so that what was prefetched while nobody waited does not count.
    steps = 4

    def step():
        for _ in range(steps):
            next(iterator)[1][0, 0, 0, 0].numpy()

    return _repeat(step, 2 * batch * steps, max(seconds, 2.0))


def _import_torchvision():
    import torch

    try:
        import torchvision
    except RuntimeError:
        # A CPU build of torch beside a CUDA build of torchvision: two operators that
        # augmentation does not use are missing, and their declarations are enough.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision

        torchvision.library_of_missing_operators = library
    return torchvision


def measure_torchvision(batch: int, seconds: float) -> dict:
    """torchvision on PIL images, in this process alone."""
    import torch
    from PIL import Image

    _import_torchvision()
    from torchvision import transforms

    torch.set_num_threads(1)
    jitter = transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)
    blur = transforms.GaussianBlur(23, (0.1, 2.0))
    recipe = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([jitter], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([blur], 0.5),
            transforms.ToTensor(),
        ]
    )
    pictures = [Image.fromarray(image) for image in _images(min(batch, 16))]

    def step():
        for picture in pictures:
            recipe(picture)
            recipe(picture)

    return _repeat(step, 2 * len(pictures), seconds)


def measure_kornia(batch: int, seconds: float) -> dict:
    """kornia on float batches."""
    import torch

    _import_torchvision()
    from kornia import augmentation as K

    recipe = torch.nn.Sequential(
        K.RandomResizedCrop((SIZE, SIZE), resample="bicubic"),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5),
    )
    images = torch.from_numpy(_images(batch).transpose(0, 3, 1, 2).copy())

    def step():
        with torch.no_grad():
            pixels = images.float() / 255.0
            float(recipe(pixels)[0, 0, 0, 0])
            float(recipe(pixels)[0, 0, 0, 0])

    return _repeat(step, 2 * batch, seconds)


PEERS = {
    "keras": (measure_keras, "RandomCrop instead of crop and resize; jitter always on"),
    "torchvision": (measure_torchvision, "PIL, bicubic, one process per core"),
    "kornia": (measure_kornia, "float batches on torch"),
}


def _start(name: str, backend: str, batch: int, seconds: float, threads: int | None):
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    # Threads that spin while they wait ruin PyTorch's figures (and our peers') on a machine with
    # other work, and gain little on an idle one.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, __file__, "--worker", name]
    command += ["--batch", str(batch), "--seconds", str(seconds)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finish(process) -> dict:
    output, errors = process.communicate()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        reason = (errors.strip().splitlines() or ["no output"])[-1]
        return {**dict.fromkeys(FIGURES), "error": reason}
    return json.loads(lines[-1])


def run(quick: bool = False) -> list[dict]:
    """Measures everything once.

    Args:
        quick: Small batches and short times, to see that it runs; figures are rough.

    Returns:
        A row per measurement: `name`, `views_per_second`, `cpu_ms_per_view` (processor time of
        all threads: steadier than the clock on a machine with other work), `compile_seconds`,
        `note`, and for our rows the ratios `times_<peer>` and `cpu_times_<peer>`; then a row per
        aim: `name`, `aim`, `reached`, `reached_by_cpu` and `met`.
    """
    batch, seconds = (8, 1.0) if quick else (32, 8.0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = []
    for backend in BACKENDS:
        row = _finish(_start("ours", backend, batch, seconds, None))
        rows.append({"name": f"keras_ssl, {backend}", "note": "", **row})
    peers = {}
    for name, (_, note) in PEERS.items():
        count = cores if name == "torchvision" else 1
        backend = "tensorflow" if name == "keras" else "torch"
        processes = [
            _start(name, backend, batch, seconds, 1 if count > 1 else None) for _ in range(count)
        ]
        results = [_finish(process) for process in processes]
        errors = [result["error"] for result in results if "error" in result]
        row = {"name": name, "note": errors[0] if errors else note, **results[0]}
        if not errors:
            row["views_per_second"] = sum(result["views_per_second"] for result in results)
        peers[name] = row
        rows.append(row)
    ours = [row for row in rows if row["name"].startswith("keras_ssl")]
    for row in ours:
        for peer in ("keras", "torchvision"):
            known = row["views_per_second"] and peers[peer]["views_per_second"]
            row[f"times_{peer}"] = row["views_per_second"] / known if known else None
            known = row["cpu_ms_per_view"] and peers[peer]["cpu_ms_per_view"]
            row[f"cpu_times_{peer}"] = known / row["cpu_ms_per_view"] if known else None
    for scope, peer, aim in AIMS:
        best = max if scope == "any" else min
        reached = {}
        for key in ("times", "cpu_times"):
            ratios = [row[f"{key}_{peer}"] for row in ours]
            reached[key] = best(ratios) if None not in ratios else None
        which = "fastest backend" if scope == "any" else "slowest backend"
        rows.append(
            {
                "name": f"aim: {which} over {peer}",
                "aim": aim,
                "reached": reached["times"],
                "reached_by_cpu": reached["cpu_times"],
                "met": reached["times"] is not None and reached["times"] >= aim,
            }
        )
    return rows


def _number(value, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="rough figures in a minute")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure = measure_ours if arguments.worker == "ours" else PEERS[arguments.worker][0]
        print(json.dumps(measure(arguments.batch, arguments.seconds)))
        return
    rows = run(arguments.quick)
    print(f"SimCLR views at {SIZE} px from {SOURCE} px uint8, all cores")
    print(f"{'':24}{'views/s':>9}{'x Keras':>9}{'x tv':>7}{'CPU ms':>8}{'compile':>9}  note")
    for row in rows:
        if "aim" in row:
            verdict = "met" if row["met"] else "MISSED"
            reached = _number(row["reached"], "{:.2f}x")
            cpu = _number(row["reached_by_cpu"], "{:.2f}x")
            print(
                f"{row['name']:40} aim {row['aim']:.1f}x  reached {reached} (by processor time "
                f"{cpu})  {verdict}"
            )
        else:
            print(
                f"{row['name']:24}{_number(row['views_per_second'], '{:.0f}'):>9}"
                f"{_number(row.get('times_keras'), '{:.2f}'):>9}"
                f"{_number(row.get('times_torchvision'), '{:.2f}'):>7}"
                f"{_number(row['cpu_ms_per_view'], '{:.2f}'):>8}"
                f"{_number(row['compile_seconds'], '{:.1f} s'):>9}  {row.get('note', '')}"
            )


if __name__ == "__main__":
    main()
