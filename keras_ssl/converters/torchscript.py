"""Tensors of TorchScript archives, whose code is neither run nor imported."""

import collections
import io
import pickle
import zipfile

import numpy as np

_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # widened below
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def is_torchscript(path) -> bool:
    """Whether a file is an archive of `torch.jit.save`: a zip with code and constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


def read_torchscript(path) -> dict[str, np.ndarray]:
    """Tensors by the attributes that lead to them, as `state_dict` names them.

    Args:
        path: of the archive.

    Raises:
        pickle.UnpicklingError, and others of zip and NumPy: it names anything but tensors, plain
            containers and its own modules, or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (root,) = {name.partition("/")[0] for name in archive.namelist()}
        content = _Unpickler(archive, root).load()
    return dict(_tensors(content, "", set()))


def _tensors(value, name: str, seen: set):
    if isinstance(value, np.ndarray):
        yield name, value
        return
    children = getattr(value, "state", None)
    if isinstance(children, dict) and id(value) not in seen:
        seen.add(id(value))
        for key, child in children.items():
            yield from _tensors(child, f"{name}.{key}" if name else str(key), seen)


class _Unpickler(pickle.Unpickler):
    """Knows tensors, and makes records without behaviour of whatever classes an archive names."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module, name):
        # What is given out is new at every call, so that no pickle changes it for others.
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Record", (), {"__setstate__": lambda self, x: setattr(self, "state", x)})
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _strided(storage, offset, size, stride)
        if module == "torch.jit._pickle":  # lists with the types of their elements
            return lambda value, *_: value
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid):
        _, kind, key, _, _ = pid
        if key not in self.storages:
            entry = self.archive.getinfo(f"{self.root}/data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:  # never written so; it could be a bomb
                raise pickle.UnpicklingError(f"the tensor {key} is compressed")
            array = np.frombuffer(self.archive.read(entry), _STORAGES[kind])
            if kind == "BFloat16Storage":
                array = (array.astype("uint32") << 16).view("float32")
            self.storages[key] = array
        return self.storages[key]


def _strided(storage, offset, size, stride) -> np.ndarray:
    """A tensor of a storage, which it may not reach beyond."""
    count = int(np.prod(size, dtype=object))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or count > storage.size or count and last >= storage.size:
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} does not fit its storage")
    strides = [storage.itemsize * step for step in stride]
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)
    return view.copy()
