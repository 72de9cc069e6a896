"""Reading tensors from files without executing anything that stands in them."""

import argparse
import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping

import numpy as np

from keras_ssl.converters.torchscript import is_torchscript, read_torchscript
from keras_ssl.presets import clear_errors
from keras_ssl.safe_files import check_unpacked_size

_SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # widened to float32 below
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # .pth.tar
_READABLE = (".safetensors", ".npz", *_TORCH_SUFFIXES)
# Where training scripts put the weights among optimizer state and arguments.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
# Whole runs of DINO and DINOv2: entries that belong together, and the prefix of their names.
_RUN = {"student": "student.", "teacher": "teacher.", "dino_loss": ""}


def read_state_dict(source, key: str | None = None) -> dict[str, np.ndarray]:
    """Tensors by name, from a mapping or from a file.

    `.safetensors` and `.npz` hold plain arrays and are read as such. Files of PyTorch (`.pth`,
    `.pth.tar`, `.pt`, `.bin`, `.ckpt`) are read with `torch.load(weights_only=True)`, which needs
    PyTorch and refuses everything but tensors and plain containers. TorchScript archives (OpenAI's
    CLIP) give their tensors; their code is not run. A checkpoint of TensorFlow is
    named by its prefix (`model.ckpt-250228` beside `model.ckpt-250228.index`), and needs
    TensorFlow. Other pickles are refused.

    Args:
        source: a path, or a mapping from name to array or tensor.
        key: entry of a PyTorch file that holds the tensors. By default the whole file, or its
            entry `"model"`, `"state_dict"` or `"model_state_dict"`, or both `"student"` and
            `"teacher"`, whose names then begin so.

    Returns:
        A dict from name to NumPy array. bfloat16 is widened to float32. A prefix `module.` that
        all names share (PyTorch's DistributedDataParallel) is removed.

    Raises:
        ValueError: the file is missing, damaged, of another kind, or would have to be unpickled.

    Example:

    ```python
    state = keras_ssl.converters.read_state_dict({"norm.weight": np.ones(8)})
    ```
    """
    with clear_errors(source, "path"):
        return _read(source, key)


def _read(source, key) -> dict[str, np.ndarray]:
    if isinstance(source, Mapping):
        return _plain(source, "the mapping")
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            "Expected a mapping from names to arrays, or a path. "
            f"Received: source of type {type(source).__name__}"
        )
    path = pathlib.Path(source)
    if path.with_name(path.name + ".index").is_file():
        return _plain(_read_tensorflow(path), str(path))
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"The weights file {what}. Received: path={os.fspath(path)!r}")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _plain(_read_safetensors(path), str(path))
    if suffix == ".npz":
        return _plain(_read_npz(path), str(path))
    if suffix in _TORCH_SUFFIXES:
        return _plain(_unwrap(_read_torch(path), key, path), str(path))
    raise ValueError(
        f"Weights are read from {', '.join(_READABLE)}. A pickle can run any code when it is "
        "opened, so other files are refused; convert them to .safetensors first. "
        f"Received: path={os.fspath(path)!r}"
    )


def _check_npz(path) -> None:
    """Refuses what unpacks to far more than the file holds, by what its headers say."""
    if not zipfile.is_zipfile(path):
        return  # the reader says what it is
    size, formats = 0, np.lib.format
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            size += member.file_size  # no more than this is unpacked
            with archive.open(member) as file:
                version = formats.read_magic(file)
                header = (
                    formats.read_array_header_1_0
                    if version == (1, 0)
                    else formats.read_array_header_2_0
                )
                shape, _, dtype = header(file)
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} is shorter than its header says")
    check_unpacked_size(path, size)


def _read_npz(path) -> dict[str, np.ndarray]:
    try:
        _check_npz(path)
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise ValueError("it is a single .npy array")
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile and numpy raise many kinds for damaged files
        raise ValueError(
            "The .npz file cannot be read as plain arrays: it is damaged or holds Python objects, "
            f"which are pickles and are refused ({error}). Received: path={os.fspath(path)!r}"
        ) from error


def _read_safetensors(path) -> dict[str, np.ndarray]:
    def damaged(why):
        return ValueError(
            f"The .safetensors file is damaged: {why}. Received: path={os.fspath(path)!r}"
        )

    data = path.read_bytes()
    if len(data) < 8:
        raise damaged("it is shorter than its header")
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise damaged("its header is cut off")
    try:
        header = json.loads(data[8:start], object_pairs_hook=_without_duplicates)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged("its header is not a JSON object with a name for each tensor") from error
    tensors, spans = {}, []
    for name, entry in entries.items():
        try:
            dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
            sizes = [*shape, first, last]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(f"the entry of tensor {name!r} is malformed") from error
        if not all(type(size) is int for size in sizes):
            raise damaged(f"the entry of tensor {name!r} is malformed")
        if not isinstance(dtype, str) or dtype not in _SAFETENSORS_DTYPES:
            raise ValueError(
                f"Tensor {name!r} has a dtype that is not supported; supported are "
                f"{', '.join(_SAFETENSORS_DTYPES)}. Received: dtype={dtype!r}"
            )
        numpy_dtype = np.dtype(_SAFETENSORS_DTYPES[dtype])
        size = math.prod(shape) * numpy_dtype.itemsize
        if min(sizes) < 0 or last - first != size:
            raise damaged(f"tensor {name!r} of shape {tuple(shape)} does not fit its bytes")
        if start + last > len(data):
            raise damaged(f"tensor {name!r} is cut off")
        spans.append((first, last, name))
        try:
            array = np.frombuffer(data[start + first : start + last], numpy_dtype).reshape(shape)
        except ValueError as error:  # more axes than NumPy has, or one beyond any memory
            raise damaged(f"tensor {name!r} has an impossible shape") from error
        if dtype == "BF16":
            array = (array.astype("uint32") << 16).view("float32")
        tensors[name] = array
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise damaged(f"tensor {name!r} does not begin where the one before it ends")
        end = last
    if start + end != len(data):
        raise damaged("bytes are left over behind its tensors")
    return tensors


def _without_duplicates(pairs):
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name is there twice")
    return content


def _read_tensorflow(path) -> dict[str, np.ndarray]:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ValueError(
            "Reading a checkpoint of TensorFlow needs TensorFlow (`pip install tensorflow`). "
            f"Received: path={os.fspath(path)!r}"
        ) from error
    try:
        reader = tf.train.load_checkpoint(os.fspath(path))
        names = reader.get_variable_to_dtype_map()
        # Strings are the bookkeeping of object-based checkpoints.
        return {n: reader.get_tensor(n) for n, dtype in names.items() if dtype != tf.string}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoint of TensorFlow is damaged ({error}). Received: path={os.fspath(path)!r}"
        ) from error


def _read_torch(path):
    try:
        if is_torchscript(path):
            return read_torchscript(path)
    except Exception as error:  # pickle, zip and NumPy, by what is wrong with the file
        raise ValueError(
            "The TorchScript archive is damaged, or holds more than modules and tensors, and is "
            f"refused ({error}). Received: path={os.fspath(path)!r}"
        ) from error
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"Reading {path.suffix} needs PyTorch (`pip install torch`), or convert the file to "
            f".safetensors. Received: path={os.fspath(path)!r}"
        ) from error
    try:
        # Arguments of a training script are a plain record: DINO's files hold them.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors, by what is wrong with the file
        # Not PyTorch's own words, which advise to open the file all the same.
        found = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it names {found[1]}" if found else type(error).__name__
        raise ValueError(
            "The file cannot be read as weights only: it is damaged, or it holds Python objects "
            "beside tensors, and unpickling those can run any code, so it is refused. Save its "
            "state dict alone, or convert it to .safetensors. "
            f"({why}) Received: path={os.fspath(path)!r}"
        ) from error


def _unwrap(content, key, path):
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            names = sorted(content) if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(
                f"The file has no entry {key!r}; it has {names}. Received: key={key!r}"
            )
        content = content[key]
    elif isinstance(content, Mapping):
        for name in _WRAPPERS:
            if isinstance(content.get(name), Mapping):
                return content[name]
        if any(isinstance(content.get(name), Mapping) for name in ("student", "teacher")):
            return {
                prefix + str(inner).removeprefix("module."): value
                for name, prefix in _RUN.items()
                for inner, value in (content.get(name) or {}).items()
            }
    if not isinstance(content, Mapping):
        raise ValueError(
            "Expected a mapping from names to tensors in the file. "
            f"Received: {type(content).__name__} in path={os.fspath(path)!r}"
        )
    return content


def _whole(tensor, name, where):
    """Refuses a PyTorch tensor that is not as many numbers in memory as its shape says."""
    kind = str(tensor.layout).removeprefix("torch.")
    if tensor.is_nested or tensor.is_quantized or tensor.is_meta or kind != "strided":
        kinds = [k for k in ("nested", "quantized", "meta") if getattr(tensor, f"is_{k}")]
        raise ValueError(
            f"Entry {name!r} of {where} is no plain tensor; store it as one. "
            f"Received: a {' '.join(kinds) or kind} tensor"
        )
    size, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > max(held, 2**16):
        raise ValueError(
            f"Entry {name!r} of {where} repeats {held:,} bytes to {size:,}: store it as large as "
            f"it is. Received: shape={tuple(tensor.shape)}"
        )
    return tensor


def _plain(tensors: Mapping, where: str) -> dict[str, np.ndarray]:
    arrays = {}
    for name, value in tensors.items():
        if hasattr(value, "detach"):  # a PyTorch tensor
            value = _whole(value.detach(), name, where).cpu()
            value = value.float() if "bfloat16" in str(value.dtype) else value
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise ValueError(
                f"Entry {name!r} of {where} is not an array of numbers. If the tensors lie one "
                f"level deeper, name that entry with `key`. Received: dtype={array.dtype}"
            )
        arrays[str(name)] = array
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name[len("module.") :]: array for name, array in arrays.items()}
    return arrays
