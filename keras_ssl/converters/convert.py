"""Moving weights between our variables and an official layout."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable

import keras
import numpy as np

from keras_ssl.converters.files import read_state_dict
from keras_ssl.converters.layouts import LAYOUTS, Map


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of an official layout and the variable it belongs to."""

    official: str
    variable: keras.Variable
    transform: str
    patch_size: int | None

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The official array in our layout."""
        return _TO_OURS[self.transform](array, self.patch_size)

    def to_official(self, array: np.ndarray) -> np.ndarray:
        """An array shaped as our variable in the official layout."""
        return _TO_OFFICIAL[self.transform](array, self.patch_size)

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
    """

    loaded: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    ignored: list[str]
    left: list[str]

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        for name in ("missing", "unexpected", "ignored", "left"):
            names = getattr(self, name)
            if names:
                lines.append(f"{name} ({len(names)}): {', '.join(names)}")
        return "\n".join(lines)


def _patch_conv_to_ours(array, patch_size):
    if array.ndim != 4:
        raise ValueError("a convolution has 4 axes")
    return np.transpose(array, (2, 3, 1, 0)).reshape(-1, array.shape[0])


def _patch_conv_to_official(array, patch_size):
    p, dim = patch_size, array.shape[-1]
    return np.transpose(array.reshape(p, p, -1, dim), (3, 2, 0, 1))


def _linear(array, patch_size):
    if array.ndim != 2:
        raise ValueError("a Linear weight has 2 axes")
    return np.transpose(array)


def _same(array, patch_size):
    return array


_TO_OURS = {"same": _same, "linear": _linear, "patch_conv": _patch_conv_to_ours}
_TO_OFFICIAL = {"same": _same, "linear": _linear, "patch_conv": _patch_conv_to_official}


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
    """The object at an attribute path ("blocks.0.norm1.gamma"), or None if it has none."""
    value = model
    for part in path.split("."):
        if value is None:
            return None
        value = value[int(part)] if part.isdigit() else getattr(value, part, None)
    return value


def official_entries(model, layout: str) -> list[Entry]:
    """The rows of a layout's name map that apply to a model, with its variables.

    Args:
        model: a built model of this package.
        layout: `"mae"` (facebookresearch/mae, pretraining) or `"timm_vit"` (timm's
            VisionTransformer and MAE's fine-tuning model).

    Raises:
        ValueError: unknown layout, a class that it does not cover, or a variable of the model that
            its map neither reaches nor lists as left.
    """
    table = _map_for(model, layout)
    backbone = getattr(model, "backbone", model)
    patch_size = getattr(backbone, "patch_size", None)
    displaced = _displaced(model, table)
    entries = []
    for official, ours, transform in table.entries:
        if ours.startswith(displaced):
            continue
        count = 1
        if "{i}" in ours:
            layers = _resolve(model, ours.split(".{i}", maxsplit=1)[0])
            count = len(layers) if layers is not None else 0
        for i in range(count):
            variable = _resolve(model, ours.replace("{i}", str(i)))
            if variable is not None:
                entries.append(
                    Entry(official.replace("{i}", str(i)), variable, transform, patch_size)
                )
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
        model: a built model: `MAE`, `ViTBackbone` or `ImageClassifier`, configured like the
            official one.
        path_or_state_dict: a `.safetensors`, `.npz` or PyTorch file, or a mapping from official
            name to array.
        layout: `"mae"` (facebookresearch/mae, pretraining) or `"timm_vit"` (timm's
            VisionTransformer and MAE's fine-tuning model).
        strict: refuse missing and unexpected tensors. Else they are only reported. A tensor of
            the wrong shape is always refused.
        key: entry of a PyTorch file that holds the tensors.

    Returns:
        A `LoadReport`: what was loaded, missing, unexpected, ignored, and left as it was.

    Raises:
        ValueError: unknown layout, unreadable file, or tensors that do not fit; every one is named.

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
    state = read_state_dict(path_or_state_dict, key)
    known = {entry.official for entry in entries}
    missing = [entry.official for entry in entries if entry.official not in state]
    ignored, unexpected = [], []
    for name in state:
        if name not in known:
            matched = any(fnmatch.fnmatchcase(name, pattern) for pattern in table.ignored)
            (ignored if matched else unexpected).append(name)
    problems, arrays = [], []
    for entry in entries:
        if entry.official not in state:
            continue
        array, expected = state[entry.official], entry.official_shape
        if tuple(array.shape) != tuple(expected):
            problems.append(
                f"tensor {entry.official!r} has shape {tuple(array.shape)}, the model needs "
                f"{tuple(expected)}{_shape_hint(entry, array)}"
            )
            continue
        arrays.append((entry, np.array(entry.to_ours(array), order="C")))
    if strict and missing:
        problems.append(f"missing: {', '.join(missing)}")
    if strict and unexpected:
        problems.append(f"unexpected: {', '.join(unexpected)}")
    if problems:
        raise ValueError(
            f"The weights do not fit this {type(model).__name__} in the layout {layout!r}; nothing "
            "was loaded:\n  " + "\n  ".join(problems) + "\nBuild the model with the sizes of the "
            "weights, or pass `strict=False` to accept missing and unexpected tensors. "
            f"Received: {len(state)} tensors"
        )
    for entry, array in arrays:
        entry.variable.assign(array.astype("float32", copy=False))
    return LoadReport(
        loaded={entry.official: entry.variable.path for entry, _ in arrays},
        missing=missing,
        unexpected=unexpected,
        ignored=ignored,
        left=[v.path for v in _left(model, table)],
    )


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
        model: a built model: `MAE`, `ViTBackbone` or `ImageClassifier`.
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
        value = np.asarray(keras.ops.convert_to_numpy(value))
        arrays[entry.official] = np.array(entry.to_official(value), order="C")
    return arrays
