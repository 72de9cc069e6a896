"""Lesson: a large contrastive batch at the memory of a small one (GradCache), with CLIP on emoji.

Batches of 64, of 512 whole, and of 512 with cached gradients, 64 pairs at a time. All see every
picture equally often, so the large batches make an eighth of the steps. Each is a process of its
own; the memory is what its training takes at most beyond what stays between the epochs. The
encoders have no batch normalisation (a small ViT), which cached gradients ask for.

Paper: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.
Data: the shipped emoji; style and concepts held out as in clip.py.
Command: KERAS_BACKEND=tensorflow python examples/clip_batch_size.py (nine minutes of one core)
Result, by name among all 1,678, and picture to picture for things never seen:

    batch                  steps   memory of a step    names    never seen
    64                      2820         27 MB      10.6 %        11.6 %
    512, 64 at a time        330         41 MB       4.4 %         5.4 %
    512 whole                330        201 MB       4.4 %         5.4 %

With cached gradients the batch of 512 takes 14 MB more than that of 64, not 174, and learns the
same as whole. Both learn less here: 6,057 pictures give too few steps (one seed, rates not tuned).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import keras
from clip_emoji import load, measure
from watching import Memory, plt

import keras_ssl

# Batch, micro-batch, learning rate (with the square root of the batch).
RUNS = {
    "64": (64, None, 1e-3),
    "512, 64 at a time": (512, 64, 2.8e-3),
    "512 whole": (512, None, 2.8e-3),
}
PANELS = ("memory of a step (MB)", "zero-shot, all names (%)")


def run(name, epochs, concepts=None, width=64) -> dict:
    """Trains one configuration in this process."""
    batch_size, micro_batch_size, rate = RUNS[name]
    data = load(size=32, concepts=concepts)
    keras.utils.set_random_seed(0)
    tokenizer = keras_ssl.tokenizers.CLIPTokenizer(20, truncate=True, num_merges=3000)
    sizes = dict(hidden_dim=width, num_heads=4)
    image_encoder = keras_ssl.backbones.ViTBackbone((32, 32, 3), 8, num_layers=2, **sizes)
    vocabulary = tokenizer.vocabulary_size
    text_encoder = keras_ssl.backbones.TextTransformer(vocabulary, 20, num_layers=1, **sizes)
    model = keras_ssl.models.CLIP(image_encoder, text_encoder, width, tokenizer, seed=0)
    model.compile(learning_rate=rate, micro_batch_size=micro_batch_size)
    start, rows, memory = time.time(), data.train, Memory()
    fit = dict(batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[memory])
    model.fit(data.images[rows], data.captions[rows], **fit)
    seconds, found = time.time() - start, measure(model, data)
    shown = (memory.megabytes, 100 * found["zero-shot, all"]["R@1"])
    shown = dict(zip(PANELS, shown, strict=True))
    steps = epochs * (len(rows) // batch_size)
    return {**shown, "seconds": seconds, "steps": steps, **found}


def draw(results, path):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for axis, title in zip(axes, PANELS, strict=True):
        axis.bar(list(results), [result[title] for result in results.values()])
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/clip_batch"))
    parser.add_argument("--worker", choices=RUNS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(run(args.worker, args.epochs)))
        return
    # Freed arrays go back to the system at once, so that what is resident is what is needed.
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(2**16), TF_ENABLE_ONEDNN_OPTS="0")
    results = {}
    for name in RUNS:
        command = [sys.executable, __file__, "--epochs", str(args.epochs), "--worker", name]
        results[name] = json.loads(subprocess.check_output(command).splitlines()[-1])
        print(name, json.dumps(results[name]), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "result.json").write_text(json.dumps(results, indent=1))
    draw(results, args.output / "clip_batch_size.png")


if __name__ == "__main__":
    main()
