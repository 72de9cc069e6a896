"""What a backbone says of each place in a picture: patch features and attention."""

import copy
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_ssl.layers.image_converter import convert_images
from keras_ssl.training.device import predict_arrays


class _Outputs(keras.Model):
    """`function(backbone, images)` of prepared images, through a compiled `predict`."""

    def __init__(self, backbone, converter, function):
        super().__init__(name="outputs")
        self.backbone, self.converter, self.function = backbone, converter, function

    def call(self, images, training=False):
        if self.converter is not None:
            images = convert_images(images, self.converter)
        return ops.cast(self.function(self.backbone, images), "float32")


def backbone_of(model):
    """The backbone that `predict` embeds with (a teacher's, perhaps), or the model itself."""
    backbone = getattr(model, "embedding_backbone", None)
    return getattr(model, "backbone", model) if backbone is None else backbone


def backbone_outputs(
    model, images, function: Callable, image_size=None, batch_size: int = 64
) -> np.ndarray:
    """`function(backbone, prepared images)` for all images, compiled, in batches.

    Args:
        model: a task of `keras_ssl.models` or keras-hub, whose own preprocessor prepares the
            images; or a backbone, which takes them as they are.
        images: `(N, height, width, channels)`.
        function: from a backbone and a batch to one tensor that begins with the batch.
        image_size: int or `(height, width)` to resize to instead of the preprocessor's size.
        batch_size: images at a time.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(
            "Expected images (N, height, width, channels), at least one. "
            f"Received: shape {images.shape}"
        )
    backbone = backbone_of(model)
    converter = getattr(getattr(model, "preprocessor", None), "image_converter", None)
    if image_size is not None:
        if converter is None:
            raise ValueError(
                "`image_size` is for a task with a preprocessor; a backbone takes images as they "
                f"are: resize them first. Received: image_size={image_size}"
            )
        converter = copy.copy(converter)
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        converter.image_size = size
    outputs = _Outputs(backbone, converter, function)
    return np.asarray(predict_arrays(outputs, images, batch_size, verbose=0), "float32")


def attention_maps(
    model,
    images,
    layer: int | None = None,
    query: str | tuple[int, int] = "class_token",
    image_size=None,
    batch_size: int = 64,
) -> np.ndarray:
    """Where a vision transformer looks: attention from one token to all patches.

    For a head with queries `q` and keys `k`, the map is `softmax(q k^T / sqrt(head_dim))` in the
    query's row and the patches' columns. What the query gives to the class token and to
    registers is left out and not redistributed, so a map sums to at most one.

    Args:
        model: a task with a `ViTBackbone`, or such a backbone. A task's own preprocessor prepares
            the images, and the backbone is that of its `predict` (DINO's teacher); a backbone
            takes images as they are, so normalise them first.
        images: `(N, height, width, channels)`; uint8 or float in `[0, 255]` for a task.
        layer: block, e.g. -1 for the last; `None` for all of them.
        query: `"class_token"`, `"mean"` (mean over all patches as queries) or the
            `(row, column)` of a patch.
        image_size: int or `(height, width)`, multiples of the patch size, in place of the
            preprocessor's: the larger, the finer the maps (positions are interpolated).
        batch_size: images at a time.

    Returns:
        float32 `(N, layers, heads, rows, columns)`, or `(N, heads, rows, columns)` for one layer.

    Raises:
        ValueError: for a backbone without attention, or a query or layer that does not exist.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4
    )
    images = np.random.rand(2, 32, 32, 3)
    maps = keras_ssl.visualization.attention_maps(backbone, images)  # (2, 6, 4, 8, 8)
    ```

    Reference:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, section
        4.2.2 and appendix D.
    """
    backbone = backbone_of(model)
    if not hasattr(backbone, "num_heads") or not hasattr(backbone, "num_prefix_tokens"):
        raise ValueError(
            "Attention maps need a keras_ssl.backbones.ViTBackbone, or a task that has one. "
            f"Received: model={model!r}"
        )
    prefix, depth = backbone.num_prefix_tokens, backbone.num_layers
    if query == "class_token" and not backbone.use_class_token:
        raise ValueError(
            'This backbone has no class token: use query="mean" or a patch (row, column). '
            f"Received: query={query!r}"
        )
    named = isinstance(query, str)
    if query not in ("class_token", "mean") if named else len(query) != 2:
        raise ValueError(
            '`query` must be "class_token", "mean" or a patch (row, column). '
            f"Received: query={query!r}"
        )
    if layer is not None and not -depth <= layer < depth:
        raise ValueError(f"This backbone has {depth} layers. Received: layer={layer}")

    def maps(backbone, images):
        rows, columns = grid = backbone.grid_of(*images.shape[1:3])
        attention = backbone(images, training=False, return_attention=True)["attention"]
        attention = attention if layer is None else [attention[layer]]
        attention = ops.stack(attention, axis=1)  # (batch, layers, heads, tokens, tokens)
        if query == "class_token":
            attention = attention[:, :, :, 0]
        elif query == "mean":
            attention = ops.mean(attention[:, :, :, prefix:], axis=3)
        else:
            row, column = query
            if not (0 <= row < rows and 0 <= column < columns):
                raise ValueError(
                    f"The grid of patches is {rows} x {columns}. Received: query={query}"
                )
            attention = attention[:, :, :, prefix + row * columns + column]
        return ops.reshape(attention[..., prefix:], (*ops.shape(attention)[:3], *grid))

    result = backbone_outputs(model, images, maps, image_size, batch_size)
    return result if layer is None else result[:, 0]


def patch_features(
    model, images, layer: int | None = None, image_size=None, batch_size: int = 64
) -> np.ndarray:
    """Features of every patch, as maps.

    Args:
        model: a task of `keras_ssl.models` or keras-hub, whose own preprocessor prepares the
            images; or a backbone, which takes them as they are. Of a `ViTBackbone` the patch
            tokens are taken, of a convolutional one the map `(N, rows, columns, D)`.
        images: `(N, height, width, channels)`; uint8 or float in `[0, 255]` for a task.
        layer: `None` for the output, after the final normalisation; or a block of a
            `ViTBackbone` or a stage of a `ConvNeXtBackbone`, e.g. -2: what it gives, not
            normalised.
        image_size: int or `(height, width)` in place of the preprocessor's size.
        batch_size: images at a time.

    Returns:
        float32 `(N, rows, columns, D)`.

    Raises:
        ValueError: for a backbone that gives vectors, or a layer that does not exist.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4
    )
    features = keras_ssl.evaluation.patch_features(backbone, np.random.rand(2, 32, 32, 3))
    features.shape  # (2, 8, 8, 128)
    ```
    """
    backbone = backbone_of(model)
    if hasattr(backbone, "num_prefix_tokens"):
        depth = backbone.num_layers
        if layer is not None and not -depth <= layer < depth:
            raise ValueError(f"This backbone has {depth} layers. Received: layer={layer}")
    elif layer is not None:
        raise ValueError(
            "Of a backbone that is no keras_ssl.backbones.ViTBackbone only the output is known: "
            f"use layer=None. Received: layer={layer}"
        )

    def features(backbone, images):
        if not hasattr(backbone, "num_prefix_tokens"):
            output = backbone(images, training=False)
            if len(getattr(output, "shape", ())) != 4:
                raise ValueError(
                    "The backbone must return a map (N, rows, columns, D), or be a "
                    f"keras_ssl.backbones.ViTBackbone. Received: {output!r}"
                )
            return output
        if layer is None:
            tokens = backbone(images, training=False)
        else:
            tokens = backbone(images, training=False, return_intermediate=True)
            tokens = tokens["intermediate"][layer]
            if len(tokens.shape) == 4:  # the map of a ConvNeXt's stage
                return tokens
        tokens = tokens[:, backbone.num_prefix_tokens :]
        grid = backbone.grid_of(*images.shape[1:3])
        return ops.reshape(tokens, (-1, *grid, tokens.shape[-1]))

    return backbone_outputs(model, images, features, image_size, batch_size)
