"""Moving weights between our variables and an official layout."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable

import keras
import numpy as np

from keras_ssl.converters.files import read_state_dict
from keras_ssl.converters.layouts import Map
from keras_ssl.converters.sources import LAYOUTS


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of an official layout and the variable, or the part of one, it belongs to.

    Attributes:
        official: its name there.
        variable: ours.
        transform: how the array is turned; see `layouts.py`.
        patch_size: of the model, for the patch projection.
        part: which part of the variable, and of how many, along its last axis.
        zeros: whether a source may leave it out, meaning zeros.
    """

    official: str
    variable: keras.Variable
    transform: str
    patch_size: int | None
    part: tuple[int, int] = (0, 1)
    zeros: bool = False

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The official array in our layout: the whole variable, or this part of it."""
        return _TO_OURS[self.transform](array, self)

    def to_official(self, array: np.ndarray) -> np.ndarray:
        """An array shaped as our variable in the official layout, cut to this part."""
        index, count = self.part
        if count > 1:
            array = np.split(array, count, axis=-1)[index]
        return _TO_OFFICIAL[self.transform](array, self)

    @property
    def official_shape(self) -> tuple[int, ...]:
        # Broadcasting one number costs no memory, whatever the size.
        return self.to_official(np.broadcast_to(np.float32(0), self.variable.shape)).shape


@dataclasses.dataclass
class LoadReport:
    """What `load_official` did.

    Attributes:
        loaded: our variable's path by official name.
        missing: official names that the model needs and the source did not have.
        unexpected: names in the source that the layout does not know.
        ignored: names in the source that the layout knows and this model has no place for.
        left: paths of our variables that the layout has no tensors for; they kept their values.
        layout: whose names these are.
    """

    loaded: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    ignored: list[str]
    left: list[str]
    layout: str

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        for name in ("missing", "unexpected", "ignored", "left"):
            names = getattr(self, name)
            if names:
                lines.append(f"{name} ({len(names)}): {', '.join(names)}")
        return "\n".join(lines)


def _axes(array, count, what):
    if array.ndim != count:
        raise ValueError(f"{what} has {count} axes")
    return array


def _patch_conv_to_ours(array, entry):
    array = _axes(array, 4, "a convolution")
    return np.transpose(array, (2, 3, 1, 0)).reshape(-1, array.shape[0])


def _patch_conv_to_official(array, entry):
    p, dim = entry.patch_size, array.shape[-1]
    return np.transpose(array.reshape(p, p, -1, dim), (3, 2, 0, 1))


def _without_leading_ones(array, entry):
    while array.shape[0] == 1:
        array = array[0]
    return array


def _heads_to_official(array, entry):
    return np.transpose(array.reshape(array.shape[0], -1))


def _from_heads_to_official(array, entry):
    return np.transpose(array.reshape(-1, array.shape[-1]))


_TO_OURS = {
    "same": lambda array, entry: array,
    "linear": lambda array, entry: np.transpose(_axes(array, 2, "a Linear weight")),
    "conv": lambda array, entry: np.transpose(_axes(array, 4, "a convolution"), (2, 3, 1, 0)),
    "patch_conv": _patch_conv_to_ours,
    "depthwise": lambda array, entry: np.transpose(_axes(array, 4, "a convolution"), (2, 3, 0, 1)),
    "heads": lambda array, entry: np.transpose(array).reshape(entry.variable.shape),
    "from_heads": lambda array, entry: np.transpose(array).reshape(entry.variable.shape),
    "vector": lambda array, entry: array.reshape(entry.variable.shape),
    "temperature": lambda array, entry: -np.log(array),
    "flat": lambda array, entry: array.reshape(entry.variable.shape),
    "leading": lambda array, entry: array.reshape(entry.variable.shape),
    "scalar": lambda array, entry: array.reshape(entry.variable.shape),
    "lead1": lambda array, entry: array.reshape(-1),
    "lead3": lambda array, entry: array.reshape(-1),
}
_TO_OFFICIAL = {
    "same": lambda array, entry: array,
    "linear": lambda array, entry: np.transpose(array),
    "conv": lambda array, entry: np.transpose(array, (3, 2, 0, 1)),
    "patch_conv": _patch_conv_to_official,
    "depthwise": lambda array, entry: np.transpose(array, (2, 3, 0, 1)),
    "heads": _heads_to_official,
    "from_heads": _from_heads_to_official,
    "vector": lambda array, entry: array.reshape(-1),
    "temperature": lambda array, entry: np.exp(-array),
    "flat": lambda array, entry: array.reshape(1, 1, -1),
    "leading": _without_leading_ones,
    "scalar": lambda array, entry: array.reshape(1),
    "lead1": lambda array, entry: array.reshape(1, -1),
    "lead3": lambda array, entry: array.reshape(1, 1, 1, -1),
}


def _map_for(model, layout: str) -> Map:
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {sorted(LAYOUTS)}. Received: layout={layout!r}")
    for cls in type(model).__mro__:
        if cls.__name__ in LAYOUTS[layout]:
            return LAYOUTS[layout][cls.__name__]
    raise ValueError(
        f"The layout {layout!r} is known for {', '.join(sorted(LAYOUTS[layout]))}. "
        f"Received: model of class {type(model).__name__}"
    )


def _resolve(model, path: str):
    """The object at an attribute path, or None if the model has none.

    `"blocks.0.norm1.gamma"` goes through attributes and lists; `"backbone.@conv1_bn.gamma"` takes
    a layer of a Keras model by its name.
    """
    value = model
    for part in path.split("."):
        if value is None:
            return None
        if part.startswith("@"):
            names = {layer.name: layer for layer in value.layers}
            value = names.get(part[1:])
        elif part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = getattr(value, part, None)
    return value


def official_entries(model, layout: str) -> list[Entry]:
    """The rows of a layout's name map that apply to a model, with its variables.

    Args:
        model: a built model of this package.
        layout: a key of `keras_ssl.converters.LAYOUTS`.

    Raises:
        ValueError: unknown layout, a class that it does not cover, or a variable of the model that
            its map neither reaches nor lists as left.
    """
    table = _map_for(model, layout)
    backbone = getattr(model, "backbone", model)
    patch_size = getattr(backbone, "patch_size", None)
    displaced = _displaced(model, table)
    entries = []
    for official, ours, transform in table.rows(model):
        if ours.startswith(displaced):
            continue
        count = 1
        if "{i}" in ours:
            layers = _resolve(model, ours.split(".{i}", maxsplit=1)[0])
            count = len(layers) if layers is not None else 0
        transform, _, part = transform.partition(" ")
        part = tuple(map(int, part.split("/"))) if part else (0, 1)
        for i in range(count):
            variable = _resolve(model, ours.replace("{i}", str(i)))
            if variable is not None:
                name = official.replace("{i}", str(i))
                zeros = any(fnmatch.fnmatchcase(name, pattern) for pattern in table.zeros)
                entries.append(Entry(name, variable, transform, patch_size, part, zeros))
    unreached = _unreached(model, table, entries)
    if unreached:
        raise ValueError(
            f"The layout {layout!r} has no place for these variables of the model: "
            f"{', '.join(unreached)}. Received: model of class {type(model).__name__}"
        )
    return entries


def _displaced(model, table: Map) -> tuple[str, ...]:
    """Prefixes of attribute paths whose entries do not apply to this model."""
    return tuple(f"{path}." for path, by in table.displaced if _resolve(model, by) is not None)


def _left(model, table: Map) -> list:
    variables = []
    for path in (*table.left, *(path[:-1] for path in _displaced(model, table))):
        value = _resolve(model, path)
        if value is not None:
            variables.extend(value.variables if hasattr(value, "variables") else [value])
    return variables


def _weights(model) -> list:
    """Variables that hold weights: no metrics, optimizer slots, seeds or augmentation state."""
    return [
        v
        for v in model.weights
        if keras.backend.is_float_dtype(v.dtype) and not v.path.startswith("optimizer")
    ]


def _unreached(model, table: Map, entries) -> list[str]:
    reached = {id(entry.variable) for entry in entries} | {id(v) for v in _left(model, table)}
    return [v.path for v in _weights(model) if id(v) not in reached]


def load_official(
    model, path_or_state_dict, layout: str, strict: bool = True, key: str | None = None
) -> LoadReport:
    """Load weights that are named and shaped as in an official repository.

    Nothing is assigned unless everything fits. See `read_state_dict` for the kinds of files; none
    of them is executed.

    Args:
        model: a built model, configured like the official one. Every layout is known for some
            classes: a method's, the backbone's, the classifier's.
        path_or_state_dict: a `.safetensors`, `.npz` or PyTorch file, or a mapping from official
            name to array.
        layout: a key of `keras_ssl.converters.LAYOUTS`, e.g. `"mae"` (facebookresearch/mae) or
            `"timm_vit"`; docs/presets.md lists them.
        strict: refuse missing and unexpected tensors. Else they are only reported. A tensor of
            the wrong shape is always refused.
        key: entry of a PyTorch file that holds the tensors.

    Returns:
        A `LoadReport`: what was loaded, missing, unexpected, ignored, and left as it was.

    Raises:
        ValueError: unknown layout, unreadable file, or tensors that do not fit, which are named.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, hidden_dim=32, num_layers=2, num_heads=4
    )
    weights = keras_ssl.converters.to_official(backbone, "timm_vit")
    report = keras_ssl.converters.load_official(backbone, weights, layout="timm_vit")
    ```
    """
    table = _map_for(model, layout)
    entries = official_entries(model, layout)
    state = table.renamed(read_state_dict(path_or_state_dict, key))
    known = {entry.official for entry in entries}
    state, outside = _inside(state, table, known)
    missing = [e.official for e in entries if e.official not in state and not e.zeros]
    ignored, unexpected = outside, []
    for name in state:
        if name not in known:
            matched = any(fnmatch.fnmatchcase(name, pattern) for pattern in table.ignored)
            (ignored if matched else unexpected).append(name)
    problems, arrays = [], {}
    for entry in entries:
        if entry.official not in state:
            continue
        array, expected = state[entry.official], entry.official_shape
        if tuple(array.shape) != tuple(expected):
            problems.append(
                f"tensor {entry.official!r} has shape {tuple(array.shape)}, the model needs "
                f"{tuple(expected)}{_shape_hint(entry, array)}"
            )
        elif not _is_finite(array):
            problems.append(
                f"tensor {entry.official!r} holds NaN or infinity, or more than float32 does"
            )
        else:
            arrays[entry.official] = np.array(entry.to_ours(array), order="C")
    if len(problems) > 24:
        problems = [*problems[:24], f"and {len(problems) - 24} more tensors"]
    if strict and missing:
        problems.append(f"missing: {_listed(missing)}")
    if strict and unexpected:
        problems.append(f"unexpected: {_listed(unexpected)}")
    if problems:
        raise ValueError(
            f"The weights do not fit this {type(model).__name__} in the layout {layout!r}; nothing "
            "was loaded:\n  " + "\n  ".join(problems) + "\nBuild the model with the sizes of the "
            "weights, or pass `strict=False` to accept missing and unexpected tensors. "
            f"Received: {len(state)} tensors"
        )
    _assign(entries, arrays)
    return LoadReport(
        loaded={e.official: e.variable.path for e in entries if e.official in arrays},
        missing=missing,
        unexpected=unexpected,
        ignored=ignored,
        left=[v.path for v in _left(model, table)],
        layout=layout,
    )


def _is_finite(array) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype("float32", copy=False)).all())


def _listed(names: list[str], most: int = 24) -> str:
    """Names for a message; of a file that is of another kind altogether, the first ones."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _inside(state: dict, table: Map, known: set[str]) -> tuple[dict, list[str]]:
    """The part of a larger file that a layout is about, and the names of the rest."""
    if not known & state.keys():
        for prefix in table.inside:
            part = {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}
            if known & part.keys():
                return part, [name for name in state if not name.startswith(prefix)]
    return state, []


def _assign(entries: list[Entry], arrays: dict[str, np.ndarray]) -> None:
    """Puts the tensors into the variables, those that are parts of one side by side."""
    parts: dict[int, list[Entry]] = {}
    for entry in entries:
        parts.setdefault(id(entry.variable), []).append(entry)
    for group in parts.values():
        group = sorted(group, key=lambda entry: entry.part)
        variable, count = group[0].variable, group[0].part[1]
        if not any(entry.official in arrays for entry in group):
            continue
        pieces = (
            np.split(keras.ops.convert_to_numpy(variable), count, axis=-1) if count > 1 else [0]
        )
        for entry in group:
            if entry.official in arrays:
                pieces[entry.part[0]] = arrays[entry.official]
            elif entry.zeros:
                pieces[entry.part[0]] = np.zeros_like(pieces[entry.part[0]])
        value = np.concatenate(pieces, axis=-1) if count > 1 else pieces[0]
        variable.assign(value.astype("float32", copy=False))


def _shape_hint(entry: Entry, array: np.ndarray) -> str:
    if "pos_embed" not in entry.official or array.ndim != 3 or array.shape[-1] < 1:
        return ""
    side = math.isqrt(max(0, array.shape[1] - 1))
    if side * side + 1 != array.shape[1]:
        return ""
    return (
        f" (these are positions of {side} x {side} patches: build the model with the image size of "
        "the weights; it takes other image sizes when called)"
    )


def to_official(
    model, layout: str, values: Callable | None = None, trainable_only: bool = False
) -> dict[str, np.ndarray]:
    """A model's weights, named and shaped as in an official repository.

    Args:
        model: a built model of a class that the layout covers.
        layout: as in `load_official`.
        values: function from a variable to an array of its shape, to convert something else than
            its value, for example its gradient; where it gives `None`, the name is left out.
        trainable_only: leave out variables that do not train, e.g. fixed position embeddings.

    Returns:
        A dict from official name to NumPy array.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, hidden_dim=32, num_layers=2, num_heads=4
    )
    keras_ssl.converters.to_official(backbone, "timm_vit")["patch_embed.proj.weight"].shape
    # (32, 3, 8, 8)
    ```
    """
    arrays = {}
    for entry in official_entries(model, layout):
        if trainable_only and not entry.variable.trainable:
            continue
        value = entry.variable if values is None else values(entry.variable)
        if value is None:
            continue
        value = entry.to_official(np.asarray(keras.ops.convert_to_numpy(value)))
        if entry.zeros and not value.any():
            continue
        arrays[entry.official] = np.array(value, order="C")
    return arrays
