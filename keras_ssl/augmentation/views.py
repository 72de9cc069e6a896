"""All views of a batch from one recipe."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssl.augmentation import functional, operations
from keras_ssl.augmentation.layers import check_images, check_value_range, to_unit
from keras_ssl.augmentation.recipes import RECIPES
from keras_ssl.training.device import in_chunks
from keras_ssl.training.random import RandomStream

# Pixels of all views that are computed together where parts are faster (see `in_chunks`): 8 images
# with two views of 224 pixels.
_CHUNK_PIXELS = 840_000


class _Group:
    """Views of one kind, computed together: `count` times the batch, view after view."""

    def __init__(self, view: dict, size: tuple[int, int]):
        view = dict(view)
        self.count, self.size = view.pop("count", 1), size
        view.pop("local", None)
        unknown = sorted(set(view) - set(operations.OPERATIONS))
        if unknown:
            raise ValueError(
                f"A view is made of {sorted(operations.OPERATIONS)} (and `count`, `local`). "
                f"Received: {unknown}"
            )
        self.operations = []
        for name, options in view.items():
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
            if name == "crop":
                options["size"] = size
            self.operations.append(operations.OPERATIONS[name](**options))
        if "crop" not in view:
            raise ValueError(
                f"A view needs a `crop`, which gives it its size. Received: {list(view)}"
            )

    @property
    def draws(self) -> int:
        return self.count * sum(operation.draws for operation in self.operations)

    def parameters(self, uniforms: Any, height: int, width: int) -> dict:
        """Parameters of `count` views from `(B, draws)` uniforms, view-major."""
        each = self.draws // self.count
        uniforms = ops.reshape(uniforms, (-1, self.count, each))
        uniforms = ops.reshape(ops.transpose(uniforms, (1, 0, 2)), (-1, each))
        parameters, start = {}, 0
        for operation in self.operations:
            own = uniforms[:, start : start + operation.draws]
            parameters[operation.name] = operation.parameters(own, height, width)
            start += operation.draws
        return parameters

    def split(self, value: Any) -> list:
        """View-major `(count * B, ...)` into `count` tensors."""
        if self.count == 1:
            return [value]
        value = ops.reshape(value, (self.count, -1, *value.shape[1:]))
        return [value[i] for i in range(self.count)]

    def apply(self, images: Any, parameters: dict) -> Any:
        """The views of row-planar images, row-planar, view-major."""
        # Mirroring commutes with every other operation, so the crop does it for nothing.
        flip = parameters["flip"]["selected"] if "flip" in parameters else None
        flips = [None] * self.count if flip is None else self.split(flip)
        for operation in self.operations:
            if operation.name == "crop":
                boxes = self.split(parameters["crop"]["boxes"])
                images = [
                    operation.apply(images, {"boxes": b}, f)
                    for b, f in zip(boxes, flips, strict=True)
                ]
                images = images[0] if self.count == 1 else ops.concatenate(images, axis=0)
            elif operation.name != "flip":
                images = operation.apply(images, parameters[operation.name])
        return images


@keras.saving.register_keras_serializable(package="keras_ssl")
class Views(keras.layers.Layer):
    """Random views of a batch of images, as a method's paper makes them.

    One draw of random numbers serves all views; each operation runs on the whole batch with
    parameters for each image. Everything is compiled into the step that calls the layer, on
    the accelerator, and is equal on every backend for equal seeds.

    Recipes: `"simclr"`, `"simclr_cifar"`, `"mocov1"`, `"mocov2"`, `"mocov3"`, `"simsiam"`,
    `"byol"`, `"barlow_twins"`, `"vicreg"`, `"dino"`, `"dinov2"` and `"dino_small"` (2 global and 8
    local views) and `"mae"` (one view);
    `keras_ssl.augmentation.RECIPES` is the table, with the source of each.

    Args:
        recipe: Name of a recipe, or a list of views written like those of the table.
        size: Height and width of the views, or one integer. Default 224.
        local_size: The same for local views. Default: 3/7 of `size` (96 for 224).
        num_local_views: How many local views; default as in the recipe.
        mean, std: Per-channel constants for values in [0, 1]; default the recipe's (ImageNet's
            for most, none for SimCLR).
        value_range: Range of the pixel values of the input. Default (0, 255).
        seed: Integer seed, or `None`.

    Call arguments:
        images: uint8 or float `(B, H, W, 3)` in `value_range`, of any size; one channel is
            repeated to three, RGBA is refused.
        training: `False` uses fixed draws, so that `evaluate` repeats itself, and writes no
            state.
        parameters: What an earlier call returned, to apply the same again.
        return_parameters: Whether to return `(views, parameters)`: `parameters` has a dict for each
            view, of the parameters of each operation, tensors that begin with the batch.

    Returns:
        Tuple of normalised views `(B, height, width, 3)` in the layer's compute dtype.

    Raises:
        ValueError: For an unknown recipe or operation, and images that are not a batch of RGB
            images of known height and width.

    Example:

    >>> images = np.zeros((4, 40, 40, 3), "uint8")
    >>> views = Views("dino", size=28, local_size=14, num_local_views=3, seed=0)(images)
    >>> [view.shape[1] for view in views]
    [28, 28, 14, 14, 14]
    """

    def __init__(
        self,
        recipe: str | list = "simclr",
        size: int | tuple[int, int] = 224,
        local_size: int | tuple[int, int] | None = None,
        num_local_views: int | None = None,
        mean: Any = None,
        std: Any = None,
        value_range: tuple[float, float] = (0, 255),
        seed: int | None = None,
        **kwargs: Any,
    ):
        # Without `autocast` the pixels stay in float32 under mixed precision until the end.
        super().__init__(autocast=False, **kwargs)
        if isinstance(recipe, str):
            if recipe not in RECIPES:
                raise ValueError(
                    f"`recipe` must be one of {sorted(RECIPES)} or a list of views. "
                    f"Received: recipe={recipe!r}"
                )
            table = RECIPES[recipe]
        else:
            table = {"views": recipe, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        self.recipe = recipe
        self.size = functional._size(size)
        if local_size is None:
            local_size = tuple(max(1, round(side * 3 / 7)) for side in self.size)
        self.local_size = functional._size(local_size)
        self.num_local_views = num_local_views
        self.mean = tuple(float(v) for v in (table["mean"] if mean is None else mean))
        self.std = tuple(float(v) for v in (table["std"] if std is None else std))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0.0:
            raise ValueError(
                "`mean` and `std` need a value for each of 3 channels, and `std` positive ones. "
                f"Received: mean={mean}, std={std}"
            )
        self.value_range = check_value_range(value_range)
        self.seed = seed
        self.stream = RandomStream(seed, name="stream")
        groups = []
        for view in table["views"]:
            if view.get("local") and num_local_views is not None:
                view = {**view, "count": num_local_views}
            if view.get("count", 1) > 0:
                groups.append(_Group(view, self.local_size if view.get("local") else self.size))
        self._groups = groups
        self.built = True

    @property
    def num_views(self) -> int:
        """How many views a call returns."""
        return sum(group.count for group in self._groups)

    def draw(self, images: Any, training: bool | None = None) -> tuple[dict, ...]:
        """The parameters of each view for a batch of images, from one draw."""
        draws = sum(group.draws for group in self._groups)
        shape = (ops.shape(images)[0], draws)
        uniforms = self.stream.uniform(shape, advance=training is not False)
        height, width = images.shape[1:3]
        parameters, start = [], 0
        for group in self._groups:
            own = group.parameters(uniforms[:, start : start + group.draws], height, width)
            split = keras.tree.map_structure(group.split, own)
            for i in range(group.count):
                parameters.append(_pick(split, i))
            start += group.draws
        return tuple(parameters)

    def call(self, images, training=None, parameters=None, return_parameters=False):
        images = check_images(images)
        if parameters is None:
            parameters = self.draw(images, training)
        if len(parameters) != self.num_views:
            raise ValueError(
                f"`parameters` must have a dict for each of the {self.num_views} views. "
                f"Received: {len(parameters)} of them"
            )
        pixels = sum(group.count * group.size[0] * group.size[1] for group in self._groups)
        views = in_chunks(self._render, (images, parameters), max(1, _CHUNK_PIXELS // pixels))
        return (views, parameters) if return_parameters else views

    def _render(self, batch: tuple[Any, tuple]) -> tuple:
        images, parameters = batch
        planar = to_unit(functional.to_row_planar(images), self.value_range)
        scale = (1.0 / np.asarray(self.std, "float32")).reshape((1, 1, 3, 1))
        shift = np.asarray(self.mean, "float32").reshape((1, 1, 3, 1)) * scale
        views, start = [], 0
        for group in self._groups:
            own = _join(parameters[start : start + group.count])
            start += group.count
            result = group.apply(planar, own)
            if (self.mean, self.std) != ((0.0,) * 3, (1.0,) * 3):
                result = result * scale - shift
            result = ops.cast(functional.from_row_planar(result), self.compute_dtype)
            views.extend(group.split(result))
        return tuple(views)

    def get_config(self) -> dict:
        config = super().get_config()
        config.pop("autocast", None)
        config.update(
            {
                "recipe": self.recipe,
                "size": self.size,
                "local_size": self.local_size,
                "num_local_views": self.num_local_views,
                "mean": self.mean,
                "std": self.std,
                "value_range": self.value_range,
                "seed": self.seed,
            }
        )
        return config


def _pick(split: dict, index: int) -> dict:
    """View `index` of parameters whose leaves are lists over views."""
    return {
        name: {key: values[index] for key, values in own.items()} for name, own in split.items()
    }


def _join(parameters: tuple) -> dict:
    """Parameters of several views of one kind as one batch, view after view."""
    if len(parameters) == 1:
        return parameters[0]
    return {
        name: {
            key: ops.concatenate([ops.convert_to_tensor(p[name][key]) for p in parameters], axis=0)
            for key in own
        }
        for name, own in parameters[0].items()
    }
