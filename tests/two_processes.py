"""One of two processes that train together over the loopback, until the second one dies.

`KERAS_BACKEND=torch python tests/two_processes.py RANK ADDRESS` prints the loss of every epoch. The
second process goes without a word after two epochs. JAX and PyTorch.
"""

import os
import sys

import keras


class Watch(keras.callbacks.Callback):
    def __init__(self, dies):
        super().__init__()
        self.dies = dies

    def on_epoch_end(self, epoch, logs=None):
        print(f"loss {float(logs['loss'])!r}", flush=True)
        if self.dies and epoch == 1:
            os._exit(9)


def join(rank: int, address: str) -> None:
    if keras.backend.backend() == "torch":
        import torch.distributed as distributed

        distributed.init_process_group(
            "gloo", init_method=f"tcp://{address}", rank=rank, world_size=2
        )
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, rank, heartbeat_timeout_seconds=10)
    # Every host reads its own part of the batches.
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)


def train(epochs: int, callbacks=()) -> list[float]:
    """Losses of the epochs. The last batch of an epoch is not full, and left out."""
    import toy  # JAX: after `join`

    keras.utils.set_random_seed(0)
    model = toy.moco(momentum=0.9)
    toy.fill(model, scale=0.2)
    model.reset_teacher()
    model.compile(keras.optimizers.SGD(0.02))
    options = dict(batch_size=8, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model.fit(toy.images(20), **options).history["loss"]


if __name__ == "__main__":
    join(int(sys.argv[1]), sys.argv[2])
    train(20, [Watch(dies=sys.argv[1] == "1")])
