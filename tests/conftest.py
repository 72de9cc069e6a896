"""Settings for every test."""

import os

import keras

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if keras.backend.backend() == "jax":
    import jax

    # Compiling is most of a test's time on JAX; toy models need no optimised code.
    jax.config.update("jax_disable_most_optimizations", True)
