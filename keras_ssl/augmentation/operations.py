"""The random operations: which numbers each one draws, and what it does with them.

An operation is plain data with three methods: `draws`, how many uniform numbers an image needs;
`parameters(uniforms, height, width)`, their law; `apply(images, parameters)`, the operation on
row-planar float images in [0, 1]. The layers wrap one each; `Views` runs many of them on the
uniforms of a single draw.
"""

import dataclasses
import math
from typing import Any, ClassVar

from keras import ops

from keras_ssl.augmentation import functional


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"`{name}` must lie in [0, 1]. Received: {name}={value}")


def _check_range(name: str, value: Any, lowest: float, highest: float = math.inf) -> None:
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
        raise ValueError(
            f"`{name}` must be (low, high) with {lowest} <= low <= high <= {highest}. "
            f"Received: {name}={value}"
        )


def _between(uniform: Any, low: float, high: float) -> Any:
    return low + (high - low) * uniform


@dataclasses.dataclass(frozen=True)
class Crop:
    """torchvision's RandomResizedCrop: see `RandomResizedCrop` for the law."""

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    antialias: bool = True
    definition: str = "torchvision"

    name: ClassVar[str] = "crop"
    tries: ClassVar[int] = 10

    def __post_init__(self):
        object.__setattr__(self, "size", functional._size(self.size))
        _check_range("scale", self.scale, 0.0, 1.0)
        _check_range("ratio", self.ratio, 1e-6)

    @property
    def draws(self) -> int:
        return 2 * self.tries + 2

    def parameters(self, uniforms: Any, height: int, width: int) -> dict:
        tries = self.tries
        area = height * width * _between(uniforms[:, :tries], *self.scale)
        log_ratio = _between(uniforms[:, tries : 2 * tries], *(math.log(r) for r in self.ratio))
        ratio = ops.exp(log_ratio)
        widths = ops.round(ops.sqrt(area * ratio))
        heights = ops.round(ops.sqrt(area / ratio))
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        # The first try that fits, without a loop over tries: one that has none before it.
        fits = ops.cast(fits, "float32")
        first = fits * ops.cast(ops.cumsum(fits, axis=1) == 1.0, "float32")
        found = ops.max(first, axis=1)
        fallback_height, fallback_width = self._fallback(height, width)
        crop_height = ops.sum(first * heights, axis=1) + (1.0 - found) * fallback_height
        crop_width = ops.sum(first * widths, axis=1) + (1.0 - found) * fallback_width
        place = uniforms[:, 2 * tries :]
        boxes = []
        for uniform, whole, part in (
            (place[:, 0], height, crop_height),
            (place[:, 1], width, crop_width),
        ):
            room = whole - part
            drawn = ops.minimum(ops.floor(uniform * (room + 1.0)), room)
            central = ops.floor(room / 2.0)
            boxes.append(found * drawn + (1.0 - found) * central)
        return {"boxes": ops.stack([*boxes, crop_height, crop_width], axis=1)}

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        """The largest central crop whose ratio is allowed."""
        if width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        if width / height > self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width

    def apply(self, images: Any, parameters: dict, flip: Any = None) -> Any:
        return functional.resize_row_planar(
            images,
            parameters["boxes"],
            self.size,
            self.interpolation,
            self.antialias,
            self.definition,
            saturate=True,
            flip=flip,
        )


@dataclasses.dataclass(frozen=True)
class Flip:
    """Left-right mirroring with a probability."""

    probability: float = 0.5

    name: ClassVar[str] = "flip"
    draws: ClassVar[int] = 1

    def __post_init__(self):
        _check_probability("probability", self.probability)

    def parameters(self, uniforms: Any, height: int, width: int) -> dict:
        return {"selected": uniforms[:, 0] < self.probability}

    def apply(self, images: Any, parameters: dict) -> Any:
        selected = ops.reshape(ops.cast(parameters["selected"], "float32"), (-1, 1, 1, 1))
        return functional.select(selected, ops.flip(images, axis=3), images)


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue: see `RandomColorJitter`."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0
    order: Any = "random"
    definition: str = "torchvision"

    name: ClassVar[str] = "jitter"
    draws: ClassVar[int] = 9

    def __post_init__(self):
        _check_probability("probability", self.probability)
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0.0:
                raise ValueError(
                    f"`{name}` must not be negative. Received: {name}={getattr(self, name)}"
                )
        if not 0.0 <= self.hue <= 0.5:
            raise ValueError(f"`hue` must lie in [0, 0.5]. Received: hue={self.hue}")
        if self.order != "random":
            object.__setattr__(self, "order", tuple(self.order))
            if sorted(self.order) != [0, 1, 2, 3]:
                raise ValueError(
                    '`order` must be "random" or a permutation of (0, 1, 2, 3). '
                    f"Received: order={self.order}"
                )

    def parameters(self, uniforms: Any, height: int, width: int) -> dict:
        selected = uniforms[:, 0] < self.probability
        additive = self.definition == "simclr_v1"
        parameters = {"selected": selected}
        for i, name in enumerate(("brightness", "contrast", "saturation")):
            strength = getattr(self, name)
            if name == "brightness" and additive:
                value, neutral = _between(uniforms[:, 1], -strength, strength), 0.0
            else:
                low = max(0.0, 1.0 - strength)
                value, neutral = _between(uniforms[:, 1 + i], low, 1.0 + strength), 1.0
            parameters[name] = ops.where(selected, value, neutral)
        parameters["hue"] = ops.where(selected, _between(uniforms[:, 4], -self.hue, self.hue), 0.0)
        if self.order == "random":
            parameters["order"] = ops.cast(ops.argsort(uniforms[:, 5:9], axis=1), "int32")
        return parameters

    def apply(self, images: Any, parameters: dict) -> Any:
        return functional.color_jitter(
            images,
            *(parameters[name] for name in ("brightness", "contrast", "saturation", "hue")),
            order=parameters["order"] if self.order == "random" else self.order,
            definition=self.definition,
            channel_axis=-2,
        )


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """Conversion to the luma with a probability."""

    probability: float = 0.2

    name: ClassVar[str] = "grayscale"
    draws: ClassVar[int] = 1

    def __post_init__(self):
        _check_probability("probability", self.probability)

    def parameters(self, uniforms: Any, height: int, width: int) -> dict:
        return {"selected": uniforms[:, 0] < self.probability}

    def apply(self, images: Any, parameters: dict) -> Any:
        selected = ops.reshape(ops.cast(parameters["selected"], "float32"), (-1, 1, 1, 1))
        gray = functional.grayscale(images, channel_axis=-2, keep_channels=False)
        return functional.select(selected, gray, images)


@dataclasses.dataclass(frozen=True)
class Blur:
    """Gaussian blur of a random width with a probability."""

    probability: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel_size: Any = None
    padding: str = "pil"

    name: ClassVar[str] = "blur"
    draws: ClassVar[int] = 2

    def __post_init__(self):
        _check_probability("probability", self.probability)
        _check_range("sigma", self.sigma, 1e-6)
        if self.padding not in ("zero", "reflect", "edge", "pil"):
            raise ValueError(
                "`padding` must be 'zero', 'reflect', 'edge' or 'pil'. "
                f"Received: padding={self.padding!r}"
            )

    def parameters(self, uniforms: Any, height: int, width: int) -> dict:
        return {
            "selected": uniforms[:, 0] < self.probability,
            "sigma": _between(uniforms[:, 1], *self.sigma),
        }

    def apply(self, images: Any, parameters: dict) -> Any:
        kernel = self.kernel_size
        if isinstance(kernel, float):  # a share of the height
            kernel = int(images.shape[1] * kernel + 1e-6)
        return functional.gaussian_blur(
            images,
            parameters["sigma"],
            kernel,
            self.padding,
            parameters["selected"],
            self.sigma[1],
            channel_axis=-2,
        )


@dataclasses.dataclass(frozen=True)
class Solarize:
    """Inversion of the bright values with a probability."""

    probability: float = 0.2
    threshold: float = 0.5

    name: ClassVar[str] = "solarize"
    draws: ClassVar[int] = 1

    def __post_init__(self):
        _check_probability("probability", self.probability)

    def parameters(self, uniforms: Any, height: int, width: int) -> dict:
        return {"selected": uniforms[:, 0] < self.probability}

    def apply(self, images: Any, parameters: dict) -> Any:
        return functional.solarize(images, parameters["selected"], self.threshold)


OPERATIONS = {op.name: op for op in (Crop, Flip, Jitter, Grayscale, Blur, Solarize)}
