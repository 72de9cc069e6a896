"""What `keras-ssl doctor` looks at."""

import importlib.metadata
import os
import platform
import shutil

from keras_ssl_cli.shell import BACKENDS, choose_backend

# package on the index, module, what it is for; required ones first
_PACKAGES = (
    ("keras", "keras", None),
    ("keras-hub", "keras_hub", None),
    ("numpy", "numpy", None),
    ("pillow", "PIL", None),
    ("jax", "jax", "the backend jax"),
    ("tensorflow", "tensorflow", "the backend tensorflow; tf.data pipelines"),
    ("torch", "torch", "the backend torch"),
    ("grain", "grain", "image_folder without TensorFlow"),
    ("tensorflow-datasets", "tensorflow_datasets", "--data tfds:NAME"),
    ("tensorboard", "tensorboard", "--tensorboard"),
    ("wandb", "wandb", "--wandb PROJECT"),
    ("pyarrow", "pyarrow", "embed to .parquet"),
    ("scikit-learn", "sklearn", "report --map tsne"),
    ("safetensors", "safetensors", "released weights in .safetensors"),
)


def examine(backend, table, say, installed) -> bool:
    """Prints what there is; gives whether keras_ssl can run."""
    well = True
    rows = []
    for name, module, purpose in _PACKAGES:
        if installed(module):
            rows.append([name, importlib.metadata.version(name), purpose or "needed"])
        else:
            well = well and purpose is not None
            rows.append([name, "missing" if purpose is None else "-", purpose or "needed"])
    table(
        f"Python {platform.python_version()} on {platform.platform()}",
        ["package", "version", "for"],
        rows,
    )
    available = [name for name, module in BACKENDS.items() if installed(module)]
    if not available:
        say("No backend: pip install jax, or tensorflow, or torch.")
        return False
    choose_backend(backend)
    import keras

    import keras_ssl
    from keras_ssl.training.device import list_devices

    say(f"keras_ssl {keras_ssl.__version__}, backend {keras.backend.backend()}")
    say(f"Devices: {', '.join(list_devices()) or 'none found'}")
    threads = os.environ.get("OMP_NUM_THREADS")
    say(f"{os.cpu_count()} processors" + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    free = shutil.disk_usage(".").free / 2**30
    say(f"{free:.0f} GB free on the disk of this folder")
    x = keras.ops.ones((64, 64))
    product = float(keras.ops.sum(keras.ops.matmul(x, x)))
    if product != 64**3:
        say(f"A matrix product is wrong on this device: {product} instead of {64**3}.")
        well = False
    say("All is well." if well else "Something that is needed is missing; see above.")
    return well
