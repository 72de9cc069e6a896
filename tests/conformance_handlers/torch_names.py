"""Parameters by the names of a PyTorch state dict, for networks that only the vectors have.

`TinyResNet` is no part of the package: the references of MoCo and MoCo v3 use it as an encoder, to
show that any Keras model is a backbone. It is built here from their names.
"""

import re

import keras
import numpy as np
from keras import layers, ops

from conformance_handlers.framework import as_numpy
from keras_ssl.converters import official_entries

_NORM = {"weight": "gamma", "bias": "beta"}
_STATISTICS = {"running_mean": "moving_mean", "running_var": "moving_variance"}


def tiny_resnet(parameters: dict, size: int, channels: int) -> keras.Model:
    """conv1, bn1, ReLU and torchvision's BasicBlocks, up to the map before pooling.

    Args:
        parameters: official name to array; widths and the blocks there are come from it. A block
            with a `downsample` has stride 2.
        size: side of the images.
        channels: of the images.
    """

    def convolution(x, name, strides=1):
        filters, _, side, _ = parameters[f"{name}.weight"].shape
        if side > 1:  # "same" would pad on one side only where the stride is 2
            x = layers.ZeroPadding2D(side // 2)(x)
        options = dict(strides=strides, use_bias=False, name=name.replace(".", "_"))
        return layers.Conv2D(filters, side, **options)(x)

    def norm(x, name):
        name = name.replace(".", "_")
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)

    images = x = keras.Input((size, size, channels))
    x = layers.ReLU()(norm(convolution(x, "conv1"), "bn1"))
    blocks = sorted({m[1] for name in parameters if (m := re.match(r"(layer\d+)\.", name))})
    for block in blocks:
        shortcut, strides = x, 1
        if f"{block}.downsample.0.weight" in parameters:
            strides = 2
            shortcut = convolution(x, f"{block}.downsample.0", strides)
            shortcut = norm(shortcut, f"{block}.downsample.1")
        x = layers.ReLU()(norm(convolution(x, f"{block}.conv1", strides), f"{block}.bn1"))
        x = norm(convolution(x, f"{block}.conv2"), f"{block}.bn2")
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    return keras.Model(images, x)


def pixels(name: str, size: int) -> int:
    """Positions of a map that a normalisation of `tiny_resnet` is over; block 2 has stride 2."""
    return (-(-size // 2) if "layer2" in name else size) ** 2


class TorchNames:
    """Variables of a model by official names, with arrays turned to PyTorch's layout and back."""

    def __init__(self):
        self.variables: dict[str, keras.Variable] = {}
        self.entries = {}
        self._start: dict[str, np.ndarray] = {}

    def add_layer(self, prefix: str, layer) -> None:
        """A Dense, Conv2D or BatchNormalization layer."""
        if isinstance(layer, layers.BatchNormalization):
            if layer.scale:
                self.variables[f"{prefix}.weight"] = layer.gamma
            if layer.center:
                self.variables[f"{prefix}.bias"] = layer.beta
            for official, ours in _STATISTICS.items():
                self.variables[f"{prefix}.{official}"] = getattr(layer, ours)
            return
        self.variables[f"{prefix}.weight"] = layer.kernel
        if layer.use_bias:
            self.variables[f"{prefix}.bias"] = layer.bias

    def add_resnet(self, prefix: str, model) -> None:
        for layer in model.layers:
            if layer.weights:
                name = re.sub(r"(layer\d+|downsample)_", r"\1.", layer.name)
                self.add_layer(prefix + name, layer)

    def add_head(self, prefix: str, head, first: int = 0) -> None:
        """A ProjectionHead as a Sequential: Linear, [BatchNorm], ReLU, ..., Linear, [BatchNorm]."""
        position = first
        for i, linear in enumerate(head.linears):
            self.add_layer(f"{prefix}{position}", linear)
            position += 1
            if i < len(head.norms):
                self.add_layer(f"{prefix}{position}", head.norms[i])
                position += 1
            position += 1

    def add_vit(self, prefix: str, backbone) -> None:
        for entry in official_entries(backbone, "timm_vit"):
            self.variables[prefix + entry.official] = entry.variable
            self.entries[prefix + entry.official] = entry

    def fresh(self) -> dict[str, np.ndarray]:
        """Every value as it is now, by official name."""
        return {name: self.official(name) for name in self.variables}

    def load(self, case, parameters: dict) -> None:
        """Sets every variable; every array of the file but counters must have a place."""
        ours = set(self.variables)
        theirs = {n for n in parameters if not n.endswith("num_batches_tracked")}
        wrong = sorted(ours ^ theirs)
        case.check("every parameter has its place", not wrong, ", ".join(wrong))
        for name in ours & theirs:
            self.set(name, parameters[name])

    def set(self, name: str, array) -> None:
        self._start[name] = array
        if name in self.entries:
            array = self.entries[name].to_ours(array)
        elif array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:
            array = array.T
        variable = self.variables[name]
        variable.assign(ops.convert_to_tensor(np.ascontiguousarray(array)))

    def official(self, name: str, array=None) -> np.ndarray:
        """Our variable's value (or a gradient of its shape) in the official layout."""
        array = as_numpy(self.variables[name] if array is None else array)
        if name in self.entries:
            return self.entries[name].to_official(array)
        if array.ndim == 4:
            return array.transpose(3, 2, 0, 1)
        return array.T

    def unbiased(self, name: str, count: int, updates: int, momentum: float = 0.9) -> np.ndarray:
        """A running variance as PyTorch keeps it, of batches of `count` values.

        Keras averages the variance that it normalises with; PyTorch normalises with the same, but
        averages `count / (count - 1)` times it. The average being linear, one gives the other.
        """
        ours = self.official(name)
        if not name.endswith("running_var"):
            return ours
        kept = momentum**updates * self._start[name]
        return kept + (ours - kept) * (count / (count - 1))
