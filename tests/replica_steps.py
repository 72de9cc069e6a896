"""Training steps of a given model as real processes do them together (PyTorch, gloo).

`python tests/replica_steps.py RANK FOLDER` is one of them: it loads `model.keras`, trains on its
rows of every batch in `batches.npz`, and writes the loss and all variables after every step.
"""

import pathlib
import sys
import tempfile

import numpy as np
from replica_losses import run_processes


def on_processes(world: int, model, batches) -> list[dict]:
    """What `world` processes compute that each have their share of every batch's rows.

    Args:
        world: number of processes.
        model: compiled; it is saved, and each process loads it. It stays as it is.
        batches: for each step a tuple of arrays with a common first axis.

    Returns:
        For each step `{"loss": ..., "variables": [...]}`, in the order of `model.variables`.

    Raises:
        RuntimeError: a process failed, or its variables are not those of the first one.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.save(folder / "model.keras")
        arrays = {f"{i}/{j}": a for i, batch in enumerate(batches) for j, a in enumerate(batch)}
        np.savez(folder / "batches.npz", world=world, **arrays)
        run_processes(__file__, world, folder)
        ranks = [np.load(folder / f"rank{rank}.npz") for rank in range(world)]
        for rank in ranks[1:]:
            for key in ranks[0]:
                if not np.array_equal(ranks[0][key], rank[key]):
                    raise RuntimeError(f"The processes differ. Received: {key}")
        count = len(model.variables)
        return [
            {
                "loss": ranks[0][f"{step}/loss"],
                "variables": [ranks[0][f"{step}/{i}"] for i in range(count)],
            }
            for step in range(len(batches))
        ]


def main(rank: int, folder: str) -> None:
    import keras
    import torch.distributed as distributed

    import keras_ssl  # noqa: F401 (registers the classes)

    class Batch(keras.utils.PyDataset):
        def __init__(self, views):
            super().__init__()
            self.views = views

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return (self.views,)

    with np.load(f"{folder}/batches.npz") as arrays:
        world = int(arrays["world"])
        steps = 1 + max(int(key.split("/")[0]) for key in arrays if "/" in key)
        batches = [
            [arrays[key] for key in sorted(k for k in arrays if k.startswith(f"{step}/"))]
            for step in range(steps)
        ]
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", world_size=world, rank=rank
    )
    model, results = keras.saving.load_model(f"{folder}/model.keras"), {}
    for step, batch in enumerate(batches):
        size = len(batch[0]) // world
        own = tuple(array[rank * size : (rank + 1) * size] for array in batch)
        results[f"{step}/loss"] = model.fit(Batch(own), verbose=0).history["loss"][0]
        for i, variable in enumerate(model.variables):
            results[f"{step}/{i}"] = keras.ops.convert_to_numpy(variable)
    np.savez(f"{folder}/rank{rank}.npz", **results)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
