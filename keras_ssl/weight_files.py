"""Weight files of presets: looked at before anything is built for them or read from them."""

import contextlib
import math
import os
import tempfile
import threading

import h5py
import keras
import numpy as np

from keras_ssl.presets import clear_errors, largest_numbers, read_json_files, resolve_preset
from keras_ssl.safe_files import check_unpacked_size

_ENDING = ".weights.h5"
_building = threading.RLock()


# === Looking ===


def weight_paths(folder) -> list[str]:
    """The HDF5 weight files of a preset."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(_ENDING))
    return [os.path.join(folder, name) for name in names]


def tensors(path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a weight file, by their paths in it; no tensor is read.

    Raises:
        ValueError: the file is damaged, unpacks to far more than it holds, or has what a weight
            file has no use for and a hostile one may have: links, tensors that lie in other
            files, other things than numbers. One tensor under two names is none of these.
    """
    name = os.path.basename(path)
    found, size, groups = {}, 0, []

    def refuse(where, what):
        raise ValueError(
            f"{name} is damaged or made to mislead: {where!r} {what}. Received: {os.fspath(path)!r}"
        )

    try:
        with h5py.File(path, "r") as file:
            groups.append(file)
            while groups:
                group = groups.pop()
                for key in group:
                    where = f"{group.name.rstrip('/')}/{key}"
                    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                        refuse(where, "is a link; weights may not lead elsewhere")
                    item = group[key]
                    if isinstance(item, h5py.Group):
                        if h5py.h5o.get_info(item.id).rc > 1:
                            refuse(where, "is a group under two names")
                        groups.append(item)
                        continue
                    if not isinstance(item, h5py.Dataset):
                        refuse(where, "is no tensor")
                    if item.is_virtual or item.external:
                        refuse(where, "keeps its numbers in another file")
                    if item.shape is None or not _is_numeric(item):
                        refuse(where, f"holds no numbers but {item.dtype}")
                    found[where] = item.shape
                    size += math.prod(item.shape) * item.dtype.itemsize
    except ValueError as error:
        if "Received" in str(error):
            raise
        raise _unreadable(path, error) from error
    except (OSError, RuntimeError, KeyError, TypeError) as error:  # h5py's, by what is damaged
        raise _unreadable(path, error) from error
    check_unpacked_size(path, size)
    return found


def _is_numeric(dataset) -> bool:
    return dataset.dtype.kind in "fiub" or dataset.attrs.get("dtype") == "bfloat16"


def _unreadable(path, error):
    return ValueError(
        f"{os.path.basename(path)} cannot be read: it is truncated or not a weight file. Save or "
        f"download the preset again. Received: {os.fspath(path)!r} ({error})"
    )


def _check_finite(folder) -> None:
    for path in weight_paths(folder):
        for name in tensors(path):
            try:
                with h5py.File(path, "r") as file:
                    array = file[name][()] if file[name].dtype.kind == "f" else np.zeros(())
            except (OSError, RuntimeError, ValueError) as error:
                raise _unreadable(path, error) from error
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{os.path.basename(path)}: tensor {name!r} holds NaN or infinity. "
                    f"Received: {os.fspath(path)!r}"
                )


# === Building ===


@contextlib.contextmanager
def no_more_than(count: int, numbers: int, config, where: str):
    """Stops the building of a model that is far larger than the weights which are to fill it.

    A model may have twice what there is and a little more: a new head, an official file's missing
    teacher.

    Args:
        count: of the tensors that there are.
        numbers: that they hold together.
        config: what the model is built from, whose largest numbers are named.
        where: it comes from.

    Raises:
        ValueError: before the first tensor that is too much is allocated.
    """
    left = {"tensors": 2 * count + 64, "numbers": 2 * numbers + 2**24}
    thread = threading.get_ident()

    def counted(self, *args, **kwargs):
        if threading.get_ident() == thread:
            shape = kwargs.get("shape") or (args[0] if args else ())
            left["tensors"] -= 1
            left["numbers"] -= math.prod(s for s in np.atleast_1d(shape).tolist() if s)
            if min(left.values()) < 0:
                raise ValueError(
                    f"{where} asks for a model far larger than its weights, which are {numbers:,} "
                    f"numbers in {count:,} tensors. It is refused at a tensor of shape "
                    f"{tuple(shape)} of {self.name!r}; the largest numbers there are "
                    f"{largest_numbers(config)}. Received: {where}"
                )
        return add_weight(self, *args, **kwargs)

    with _building:  # what is changed is everybody's
        add_weight = keras.Layer.add_weight
        keras.Layer.add_weight = counted
        try:
            yield
        finally:
            keras.Layer.add_weight = add_weight


def within_files(folder):
    """`no_more_than` what a preset's weight files hold; where it has none, as much as is asked."""
    shapes = [shape for path in weight_paths(folder) for shape in tensors(path).values()]
    if not shapes:
        return contextlib.nullcontext()
    numbers, config = sum(map(math.prod, shapes)), dict(read_json_files(folder))
    return no_more_than(len(shapes), numbers, config, f"the configuration in {folder!r}")


def within_state(state: dict, config, where: str):
    """`no_more_than` what a dict of arrays holds."""
    return no_more_than(len(state), sum(array.size for array in state.values()), config, where)


# === Loading ===


def load_preset(from_preset, preset, load_weights=True, folder=None, **kwargs):
    """A backbone or a classifier of keras-hub's kind, by its class's own `from_preset`.

    Raises:
        ValueError: the message names the file, and the tensor that does not fit.
    """
    folder = folder or resolve_preset(preset)
    with clear_errors(preset):
        # With new weights, arguments may make the model as large as they like.
        limited = load_weights or not kwargs
        with within_files(folder) if limited else contextlib.nullcontext():
            if load_weights:
                _check_finite(folder)
            try:
                return from_preset(folder, load_weights=load_weights, **kwargs)
            except Exception as error:
                if not load_weights:
                    raise
                # If the architecture is not what is wrong, this gives the tensors that are needed.
                model = from_preset(folder, load_weights=False, **kwargs)
                _raise_misfits(getattr(model, "backbone", model), folder, error)
                task = dict(read_json_files(folder)).get("task.json") or {}
                if task.get("registered_name") == keras.saving.get_registered_name(type(model)):
                    _raise_misfits(model, folder, error)
                raise


def load_task_weights(task, folder) -> None:
    """Loads the backbone and the rest of a task from a preset."""
    _check_finite(folder)
    for name, load in (
        ("model.weights.h5", task.embedding_backbone.load_weights),
        ("task.weights.h5", task.load_task_weights),
    ):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            sharded = path.replace(_ENDING, ".weights.json")
            if not os.path.exists(sharded):
                raise ValueError(
                    f"The preset is incomplete: {name} is missing. Received: folder {folder!r}"
                )
            path = sharded
        try:
            load(path)
        except (OSError, RuntimeError) as error:
            raise _unreadable(path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            _raise_misfits(
                task if name.startswith("task") else task.embedding_backbone, folder, error
            )
            raise ValueError(
                f"{name} does not fit this architecture. Received: {path!r} ({error})"
            ) from error


def _raise_misfits(model, folder, error) -> None:
    """Names the tensors that a model needs and a preset has otherwise; nothing where all fit."""
    task = hasattr(model, "save_task_weights")
    name = "task" if task else "model"
    found = {}
    for path in weight_paths(folder):  # one, or its shards
        if os.path.basename(path).startswith(name):
            found.update(tensors(path))
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "needed" + _ENDING)
        (model.save_task_weights if task else model.save_weights)(path)
        needed = tensors(path)
    problems = [
        f"tensor {where!r} "
        + (f"has shape {found[where]}" if where in found else "is missing")
        + f", the model needs {shape}"
        for where, shape in needed.items()
        if found.get(where) != shape and not where.startswith("/optimizer/")  # no preset has one
    ]
    if problems:
        more = [f"and {len(problems) - 24} more"] if len(problems) > 24 else []
        raise ValueError(
            f"{name}{_ENDING} does not fit this architecture:\n  "
            + "\n  ".join(problems[:24] + more)
            + f"\nReceived: folder {folder!r}"
        ) from error
