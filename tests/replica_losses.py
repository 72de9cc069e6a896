"""Losses of image-text pairs as real processes compute them together (PyTorch).

`python tests/replica_losses.py RANK FOLDER` is one of them: it reads `inputs.npz` and writes every
loss of its rows, with the gradients that came back from all.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

NAMES = ("image_features", "text_features", "log_logit_scale")


def run_processes(script: str, world: int, folder) -> None:
    """Runs `script RANK FOLDER` in as many processes, and waits for all of them.

    Raises:
        RuntimeError: one of them ended with an error.
    """
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), str(folder)], env=environment)
        for rank in range(world)
    ]
    try:
        ended = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(ended):
        raise RuntimeError(f"The processes ended with {ended}.")


def on_processes(world: int, values) -> list[dict]:
    """What each of `world` processes gets for its share of the rows.

    Args:
        world: number of processes.
        values: images' and texts' features, log scale and bias, of all processes together.

    Returns:
        For each process `{loss's name: [loss, gradients by its features and the scale]}`.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.savez(pathlib.Path(folder) / "inputs.npz", *values, world=world)
        run_processes(__file__, world, folder)
        results = []
        for rank in range(world):
            with np.load(pathlib.Path(folder) / f"rank{rank}.npz") as arrays:
                results.append(
                    {
                        loss: [arrays[f"{loss}/{name}"] for name in ("loss", *NAMES)]
                        for loss in ("clip", "siglip")
                    }
                )
        return results


def main(rank: int, folder: str) -> None:
    import torch
    import torch.distributed as distributed

    from keras_ssl.losses import CLIPLoss, SigLIPLoss

    with np.load(f"{folder}/inputs.npz") as arrays:
        world = int(arrays["world"])
        values = [torch.tensor(arrays[f"arr_{i}"]) for i in range(4)]
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", world_size=world, rank=rank
    )
    size = len(values[0]) // world
    own, results = slice(rank * size, (rank + 1) * size), {}
    losses = {
        "clip": CLIPLoss(normalize=False),
        "siglip": SigLIPLoss(normalize=False, block_size=max(1, size // 2)),
    }
    for name, function in losses.items():
        leaves = [values[0][own].clone(), values[1][own].clone(), values[2].clone()]
        for leaf in leaves:
            leaf.requires_grad_()
        bias = values[3] if name == "siglip" else None
        loss = function(*leaves, bias)
        loss.backward()
        results[f"{name}/loss"] = loss.detach().numpy()
        for key, leaf in zip(NAMES, leaves, strict=True):
            results[f"{name}/{key}"] = leaf.grad.numpy()
    np.savez(f"{folder}/rank{rank}.npz", **results)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
