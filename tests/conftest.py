"""Settings for every test, made before any backend is imported."""

import importlib
import os
import pathlib
import sys

import hypothesis
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compiling is most of a test's time on JAX and TensorFlow; toy models need no optimised code.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# JAX compiles a toy once for all processes, and none that it knows from an earlier run.
ROOT = pathlib.Path(__file__).parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "build" / "jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def seeded():
    """What a test leaves to chance is the same alone, in a file, and in any process."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def example():
    """Imports a script of the examples; afterwards they are as if never imported."""
    folder = str(ROOT / "examples")
    sys.path.insert(0, folder)
    before = set(sys.modules)
    yield importlib.import_module
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
        if os.path.dirname(getattr(sys.modules[name], "__file__", None) or "") == folder:
            del sys.modules[name]
