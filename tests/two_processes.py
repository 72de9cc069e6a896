"""One of two processes that train together over the loopback, until the second one dies.

`KERAS_BACKEND=torch python tests/two_processes.py RANK FOLDER ADDRESS ADDRESS` prints the loss of
every epoch, and after two of them writes all variables and what `predict` gives to a file in the
folder, `rank{RANK}.npz`. There the second process goes without a word. Checkpoints go to
`run{RANK}`. The addresses are those of the processes, the first one's first.
"""

import contextlib
import json
import os
import sys

import keras
import numpy as np

from keras_ssl.callbacks import Checkpoint

EPOCHS = 2  # until the second process dies; of two steps each


class Watch(keras.callbacks.Callback):
    def __init__(self, rank, folder):
        super().__init__()
        self.rank, self.folder = rank, folder

    def on_epoch_end(self, epoch, logs=None):
        print(f"loss {float(logs['loss'])!r}", flush=True)
        if epoch == EPOCHS - 1:
            arrays = [*variables(self.model), embeddings(self.model)]
            np.savez(f"{self.folder}/rank{self.rank}.npz", *arrays)
            if self.rank == 1:
                os._exit(9)


def variables(model) -> list:
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.variables]


def embeddings(model) -> np.ndarray:
    import toy

    return model.predict(toy.images(7), batch_size=3, verbose=0)


def join(rank: int, addresses: list[str]):
    """Becomes one of two processes; gives the scope in which a model has to be made."""
    if keras.backend.backend() == "torch":
        import torch.distributed as distributed

        distributed.init_process_group(
            "gloo", init_method=f"tcp://{addresses[0]}", rank=rank, world_size=2
        )
        return contextlib.nullcontext()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        task = {"type": "worker", "index": rank}
        cluster = {"cluster": {"worker": addresses}, "task": task}
        os.environ["TF_CONFIG"] = json.dumps(cluster)
        return tf.distribute.MultiWorkerMirroredStrategy().scope()
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(addresses[0], 2, rank, heartbeat_timeout_seconds=10)
    # Every host reads its own part of the batches.
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)
    return contextlib.nullcontext()


def train(epochs: int, callbacks=(), scope=None):
    """A model trained, its variables before, and the losses of the epochs.

    The last batch of an epoch is not full, and left out.
    """
    import toy  # after `join`

    keras.utils.set_random_seed(0)
    with scope or contextlib.nullcontext():
        model = toy.moco(momentum=0.9)
        toy.fill(model, scale=0.2)
        model.reset_teacher()
        # TensorFlow: the kernels of several devices, which XLA does not compile for.
        jit = False if keras.backend.backend() == "tensorflow" else "auto"
        model.compile(keras.optimizers.SGD(0.02), jit_compile=jit)
    start = variables(model)
    options = dict(batch_size=8, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model, start, model.fit(toy.images(20), **options).history["loss"]


if __name__ == "__main__":
    number = int(sys.argv[1])
    place = join(number, sys.argv[3:])
    checkpoint = Checkpoint(f"{sys.argv[2]}/run{number}")
    train(20, [checkpoint, Watch(number, sys.argv[2])], place)
