"""Image operations on whole batches, with one parameter per image.

Every function takes float images in [0, 1] of shape `(B, H, W, C)` (or, with
`channel_axis=-2`, the row-planar layout `(B, H, C, W)` in which `Views` works) and parameters
of shape `(B,)` or plain numbers. They are pure functions of `keras.ops`: equal on every
backend, differentiable, and compiled into the training step.

Geometry and blur are products with small matrices, one for the rows and one for the columns,
because a matrix product is the fastest thing on every device: `resize_matrix`, `blur_matrix`.

Two families of definitions exist and are offered side by side by `definition=`:
`"torchvision"` (PIL's and torchvision's: the later papers) and `"tensorflow"` (`tf.image`: SimCLR).
"""

from typing import Any

import numpy as np
from keras import ops

from keras_ssl.training.device import many_small_products_pay

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision and TensorFlow round it

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_DEFINITIONS = ("torchvision", "tensorflow")


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={value!r}")


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"`size` must be positive. Received: size={size}")
    return int(height), int(width)


def _per_sample(value: Any) -> Any:
    """A number or a `(B,)` tensor, ready to broadcast against a batch of images."""
    value = ops.convert_to_tensor(value, dtype="float32")
    return value if len(value.shape) == 0 else ops.reshape(value, (-1, 1, 1, 1))


def _channels(images: Any, channel_axis: int) -> tuple[Any, Any, Any]:
    if images.shape[channel_axis] != 3:
        raise ValueError(
            "Colour operations need 3 channels. "
            f"Received: images of shape {tuple(images.shape)}, channel_axis={channel_axis}"
        )
    if channel_axis == -1:
        return images[..., 0:1], images[..., 1:2], images[..., 2:3]
    return images[..., 0:1, :], images[..., 1:2, :], images[..., 2:3, :]


# --- resize ------------------------------------------------------------------------------------


def _cubic(xp: Any, distance: Any, a: float) -> Any:
    """Keys' cubic convolution kernel at non-negative distances (Keys 1981, eq. 15)."""
    # Both pieces are 0 where the other one takes over, so clamping the distance adds them up
    # without a choice (an elementwise choice is slow in eager PyTorch).
    near = xp.minimum(distance, 1.0)
    far = xp.minimum(xp.maximum(distance, 1.0), 2.0)
    near = ((a + 2.0) * near - (a + 3.0)) * near * near + 1.0
    return near + a * (((far - 5.0) * far + 8.0) * far - 4.0)


def resize_matrix(
    start: Any,
    extent: Any,
    input_size: Any,
    output_size: int,
    interpolation: str = "bilinear",
    antialias: bool = True,
    definition: str = "torchvision",
    flip: Any = None,
) -> Any:
    """The matrices that crop and resize one axis.

    Row `i` holds the weights of the input pixels for output pixel `i`, whose centre is
    `c = start + (i + 1/2) * s` with `s = extent / output_size`; pixel `p` has its centre at
    `p + 1/2`. With antialiasing the kernel `k` is widened by `max(s, 1)`:
    `w[i, p] = k(|p + 1/2 - c| / max(s, 1))`, over the pixels of the crop, and each row is divided
    by its sum. `k` is the triangle for `"bilinear"`, and Keys' cubic with `a = -1/2` for
    `"bicubic"` (`a = -3/4` for torch's bicubic without antialiasing).

    Without antialiasing, taps outside the crop repeat its edge (`"torchvision"`) or are left out
    and the rest is renormalised (`"tensorflow"`, which also rounds the distance to 1/1024 pixel).

    Args:
        start: Where the crop begins, in pixels: a number or a `(B,)` tensor.
        extent: Length of the crop in pixels, the same kind.
        input_size: Pixels on the input axis.
        output_size: Pixels on the output axis.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`.
        antialias: Whether to widen the kernel when shrinking.
        definition: `"torchvision"` (and PIL) or `"tensorflow"`.
        flip: `None`, or a `(B,)` tensor of booleans: mirror the output axis.

    Returns:
        float32 `(output_size, input_size)` (a NumPy array, computed in float64) if `start` and
        `extent` are numbers, else `(B, output_size, input_size)`.
    """
    _check_choice("interpolation", interpolation, _INTERPOLATIONS)
    _check_choice("definition", definition, _DEFINITIONS)
    numbers = (int, float, np.integer, np.floating)
    if all(isinstance(v, numbers) for v in (start, extent, input_size)) and flip is None:
        xp: Any = np
        index, pixel = np.arange(output_size)[:, None], np.arange(input_size)[None, :]
    else:
        xp = ops
        start, extent = (
            ops.reshape(ops.convert_to_tensor(v, dtype="float32"), (-1, 1, 1))
            for v in (start, extent)
        )
        index = ops.arange(output_size, dtype="float32")[None, :, None]
        pixel = ops.cast(ops.arange(input_size, dtype="int32"), "float32")[None, None, :]
        if flip is not None:
            flip = ops.reshape(ops.cast(flip, "float32"), (-1, 1, 1))
            index = index + flip * (output_size - 1 - 2 * index)
    step = extent / output_size
    center = start + (index + 0.5) * step
    first, last = xp.floor(start), xp.ceil(start + extent) - 1
    inside = (pixel + 0.5 > start) & (pixel + 0.5 < start + extent)
    inside = inside.astype("float32") if xp is np else ops.cast(inside, "float32")
    if interpolation == "nearest":
        chosen = xp.maximum(xp.minimum(xp.floor(center), last), first)
        weights = xp.where(pixel == chosen, 1.0, 0.0)
    elif antialias:
        distance = xp.abs(pixel + 0.5 - center) / xp.maximum(step, 1.0)
        if interpolation == "bilinear":
            weights = xp.maximum(1.0 - distance, 0.0)
        else:
            weights = _cubic(xp, distance, -0.5)
        weights = weights * inside
        weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    elif interpolation == "bilinear":
        place = xp.maximum(xp.minimum(center - 0.5, last), first)
        weights = xp.maximum(1.0 - xp.abs(pixel - place), 0.0)
    elif definition == "tensorflow":
        # In float32 relative to the crop, like TensorFlow, so that ties of the rounding agree.
        if xp is np:
            step, index = np.float32(step), index.astype("float32")
        place = (index + 0.5) * step - 0.5
        floor = xp.floor(place)
        place = start + floor + xp.round((place - floor) * 1024.0) / 1024.0
        weights = _cubic(xp, xp.abs(pixel - place), -0.5) * inside
        weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    else:
        place = center - 0.5
        floor = xp.floor(place)
        weights = 0.0
        for tap in (-1.0, 0.0, 1.0, 2.0):
            source = xp.maximum(xp.minimum(floor + tap, last), first)
            value = _cubic(xp, xp.abs(floor + tap - place), -0.75)
            weights = weights + xp.where(pixel == source, value, 0.0)
    return weights.astype("float32") if xp is np else weights


def to_row_planar(images: Any) -> Any:
    """`(B, H, W, C)` to float32 `(B, H, C, W)`: within a row, one plane per channel.

    In this layout both products of a resize or a blur are plain matrix products, and an
    operation on one channel runs over contiguous memory.
    """
    return ops.cast(ops.transpose(images, (0, 1, 3, 2)), "float32")


def from_row_planar(images: Any) -> Any:
    """`(B, H, C, W)` back to `(B, H, W, C)`."""
    return ops.transpose(images, (0, 1, 3, 2))


def apply_columns(images: Any, matrix: Any) -> Any:
    """Multiplies the columns of row-planar images `(B, H, C, W)` by `(B?, P, W)` matrices."""
    height, channels = images.shape[1], images.shape[2]
    rows = ops.reshape(images, (-1, height * channels, images.shape[3]))
    rows = ops.matmul(rows, ops.swapaxes(matrix, -1, -2))
    return ops.reshape(rows, (-1, height, channels, matrix.shape[-2]))


def apply_rows(images: Any, matrix: Any) -> Any:
    """Multiplies the rows of row-planar images `(B, H, C, W)` by `(B?, O, H)` matrices."""
    height, channels, width = images.shape[1:]
    columns = ops.reshape(images, (-1, height, channels * width))
    return ops.reshape(ops.matmul(matrix, columns), (-1, matrix.shape[-2], channels, width))


def resize_row_planar(
    images: Any,
    boxes: Any,
    size: int | tuple[int, int],
    interpolation: str = "bilinear",
    antialias: bool = True,
    definition: str = "torchvision",
    saturate: bool = False,
    flip: Any = None,
) -> Any:
    """`crop_resize` of images that are row-planar already; `flip` mirrors the columns."""
    out_height, out_width = _size(size)
    options = {"interpolation": interpolation, "antialias": antialias, "definition": definition}
    top, left, height, width = (
        boxes if isinstance(boxes, tuple) else (boxes[:, i] for i in range(4))
    )
    columns = resize_matrix(left, width, images.shape[3], out_width, flip=flip, **options)
    rows = resize_matrix(top, height, images.shape[1], out_height, **options)
    # Columns first, as PIL does; it rounds and clips to 8 bits after each of the two.
    images = apply_columns(images, ops.convert_to_tensor(columns))
    if saturate and interpolation == "bicubic":
        images = ops.clip(images, 0.0, 1.0)
    images = apply_rows(images, ops.convert_to_tensor(rows))
    if saturate and interpolation == "bicubic":
        images = ops.clip(images, 0.0, 1.0)
    return images


def _check_images(images: Any) -> None:
    if len(images.shape) != 4:
        raise ValueError(
            "Expected a batch of images of shape (B, H, W, C). "
            f"Received: shape={tuple(images.shape)}"
        )
    if images.shape[1] is None or images.shape[2] is None:
        raise ValueError(
            "The height and width of a batch must be known when it is compiled. Resize the "
            f"images to one size on the host first. Received: shape={tuple(images.shape)}"
        )


def crop_resize(
    images: Any,
    boxes: Any,
    size: int | tuple[int, int],
    interpolation: str = "bilinear",
    antialias: bool = True,
    definition: str = "torchvision",
    saturate: bool = False,
    flip: Any = None,
) -> Any:
    """Crops a box from each image and resizes it, as two matrix products.

    With the default `antialias=True` this is `torchvision.transforms.functional.resized_crop` and
    `PIL.Image.crop` followed by `resize`, to within 1/255 (they round to 8 bits). With
    `definition="tensorflow"` and `antialias=False` it is `tf.image.resize` of the crop.

    Args:
        images: Float tensor `(B, H, W, C)`; any range.
        boxes: `(B, 4)` tensor of (top, left, height, width) in pixels, or a tuple of four
            numbers for all images.
        size: Output (height, width), or one integer for both.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`.
        antialias: Whether to filter when shrinking.
        definition: `"torchvision"` or `"tensorflow"`; see `resize_matrix`.
        saturate: Clip bicubic overshoot to [0, 1] after each of the two products, as libraries
            that work in 8 bits do.
        flip: `None`, or a `(B,)` boolean tensor: which outputs to mirror left-right.

    Returns:
        float32 tensor `(B, size[0], size[1], C)`.

    Raises:
        ValueError: If the images are not a batch of known height and width, or an option is
            unknown.

    Example:

    >>> images = np.zeros((2, 32, 32, 3), "float32")
    >>> boxes = ops.convert_to_tensor([[0, 0, 32, 32], [4, 8, 16, 20]])
    >>> tuple(crop_resize(images, boxes, size=24, interpolation="bicubic").shape)
    (2, 24, 24, 3)
    """
    images = ops.convert_to_tensor(images)
    _check_images(images)
    planar = resize_row_planar(
        to_row_planar(images), boxes, size, interpolation, antialias, definition, saturate, flip
    )
    return from_row_planar(planar)


def resize(
    images: Any,
    size: int | tuple[int, int],
    interpolation: str = "bilinear",
    antialias: bool = True,
    definition: str = "torchvision",
    saturate: bool = False,
) -> Any:
    """Resizes a batch of images. Arguments and definitions as `crop_resize`.

    Example:

    >>> tuple(resize(np.zeros((1, 8, 8, 3), "float32"), (4, 6), "bicubic").shape)
    (1, 4, 6, 3)
    """
    images = ops.convert_to_tensor(images)
    _check_images(images)
    box = (0, 0, images.shape[1], images.shape[2])
    return crop_resize(images, box, size, interpolation, antialias, definition, saturate)


def center_crop_box(
    height: int, width: int, size: tuple[int, int], proportion: float
) -> tuple[int, int, int, int]:
    """SimCLR's evaluation crop: the central box of `proportion` of the image.

    The box is as large as the proportion of the image allows at the output's aspect ratio.

    Returns:
        (top, left, height, width) in pixels.
    """
    aspect = size[1] / size[0]
    if aspect > width / height:
        crop_height = int(np.rint(proportion / aspect * width))
        crop_width = int(np.rint(proportion * width))
    else:
        crop_height = int(np.rint(proportion * height))
        crop_width = int(np.rint(proportion * aspect * height))
    return (
        ((height - crop_height) + 1) // 2,
        ((width - crop_width) + 1) // 2,
        crop_height,
        crop_width,
    )


def center_crop(
    images: Any,
    size: int | tuple[int, int],
    proportion: float = 0.875,
    interpolation: str = "bicubic",
    antialias: bool = True,
    definition: str = "torchvision",
    saturate: bool = True,
) -> Any:
    """The central `proportion` of each image, resized: preprocessing for evaluation.

    Args:
        images: Float tensor `(B, H, W, C)` in [0, 1].
        size: Output (height, width), or one integer.
        proportion: Fraction of the side that is kept, in (0, 1].
        interpolation, antialias, definition, saturate: As `crop_resize`.

    Returns:
        float32 tensor `(B, size[0], size[1], C)`.

    Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual
    Representations", 2020, appendix A; the official code's `center_crop`.
    """
    images = ops.convert_to_tensor(images)
    _check_images(images)
    size = _size(size)
    box = center_crop_box(images.shape[1], images.shape[2], size, proportion)
    return crop_resize(images, box, size, interpolation, antialias, definition, saturate)


def select(chosen: Any, yes: Any, no: Any) -> Any:
    """`yes` where an image is chosen (1), `no` elsewhere (0): exact, and fast on every backend."""
    return yes * chosen + no * (1.0 - chosen)


def flip_horizontal(images: Any, selected: Any) -> Any:
    """Mirrors the selected images left-right.

    Args:
        images: Tensor `(B, H, W, C)`.
        selected: `(B,)` booleans.
    """
    images = ops.convert_to_tensor(images)
    selected = ops.reshape(ops.cast(selected, "bool"), (-1, 1, 1, 1))
    return ops.where(selected, ops.flip(images, axis=2), images)


# --- colour ------------------------------------------------------------------------------------


def grayscale(images: Any, channel_axis: int = -1, keep_channels: bool = True) -> Any:
    """Luma `0.2989 R + 0.587 G + 0.114 B` (torchvision's and TensorFlow's weights).

    Args:
        images: Float tensor with 3 channels.
        channel_axis: -1, or -2 for the row-planar layout.
        keep_channels: Whether to repeat the result over 3 channels.
    """
    red, green, blue = _channels(ops.convert_to_tensor(images), channel_axis)
    gray = red * GRAY_WEIGHTS[0] + green * GRAY_WEIGHTS[1] + blue * GRAY_WEIGHTS[2]
    return ops.repeat(gray, 3, axis=channel_axis) if keep_channels else gray


def adjust_brightness(images: Any, factor: Any, additive: bool = False, clip: bool = True) -> Any:
    """`x * factor`, or `x + factor` (SimCLR's first version, `tf.image.adjust_brightness`).

    Args:
        images: Float tensor in [0, 1].
        factor: A number or `(B,)`.
        additive: Whether to add.
        clip: Whether to clip the result to [0, 1], as torchvision does.
    """
    images = ops.convert_to_tensor(images)
    factor = _per_sample(factor)
    images = images + factor if additive else images * factor
    return ops.clip(images, 0.0, 1.0) if clip else images


def adjust_contrast(
    images: Any,
    factor: Any,
    definition: str = "torchvision",
    clip: bool = True,
    channel_axis: int = -1,
) -> Any:
    """`factor * x + (1 - factor) * m`.

    `m` is the mean of the image's luma (`"torchvision"`; PIL rounds it to 8 bits) or the mean of
    each channel (`"tensorflow"`).

    Args:
        images: Float tensor in [0, 1].
        factor: A number or `(B,)`.
        definition: `"torchvision"` or `"tensorflow"`.
        clip: Whether to clip the result to [0, 1].
        channel_axis: -1, or -2 for the row-planar layout.
    """
    _check_choice("definition", definition, _DEFINITIONS)
    images = ops.convert_to_tensor(images)
    factor = _per_sample(factor)
    if definition == "torchvision":
        gray = grayscale(images, channel_axis, keep_channels=False)
        mean = ops.mean(gray, axis=(1, 2, 3), keepdims=True)
    else:
        mean = ops.mean(images, axis=(1, 2 if channel_axis == -1 else 3), keepdims=True)
    images = images * factor + mean * (1.0 - factor)
    return ops.clip(images, 0.0, 1.0) if clip else images


def adjust_saturation(
    images: Any,
    factor: Any,
    definition: str = "torchvision",
    clip: bool = True,
    channel_axis: int = -1,
) -> Any:
    """Changes the saturation.

    `"torchvision"` blends with the luma: `factor * x + (1 - factor) * gray(x)`. `"tensorflow"`
    scales S of HSV and limits it to 1: `V - (V - x) * min(factor, V / (V - min))` with `V` the
    largest and `min` the smallest channel of the pixel.

    Args:
        images: Float tensor in [0, 1].
        factor: A number or `(B,)`.
        definition: `"torchvision"` or `"tensorflow"`.
        clip: Whether to clip the result to [0, 1].
        channel_axis: -1, or -2 for the row-planar layout.
    """
    _check_choice("definition", definition, _DEFINITIONS)
    images = ops.convert_to_tensor(images)
    factor = _per_sample(factor)
    if definition == "torchvision":
        gray = grayscale(images, channel_axis, keep_channels=False)
        images = images * factor + gray * (1.0 - factor)
    else:
        red, green, blue = _channels(images, channel_axis)
        value = ops.maximum(ops.maximum(red, green), blue)
        chroma = value - ops.minimum(ops.minimum(red, green), blue)
        limit = ops.minimum(factor, value / ops.maximum(chroma, 1e-12))
        images = value - (value - images) * limit
    return ops.clip(images, 0.0, 1.0) if clip else images


def adjust_hue(images: Any, delta: Any, channel_axis: int = -1) -> Any:
    """Turns the hue of HSV by `delta` turns.

    With `V` the largest and `m` the smallest channel and `c = V - m`, the hue is a position on a
    hexagon of circumference 6 with red at 0: `h = sign(G - B) * (1 + (G + B - R - m) / c)`, which
    needs no branch on the sextant. After `h <- (h + 6 delta) mod 6` the channels are
    `m + c * clip(|h - 3| - 1)`, `m + c * clip(2 - |h - 2|)` and `m + c * clip(2 - |h - 4|)`. Exact
    in float, as `tf.image.adjust_hue` and torchvision on float tensors are; PIL and torchvision
    on 8-bit images round H, S and V to 8 bits, which moves single pixels by several levels.

    Args:
        images: Float tensor in [0, 1].
        delta: A number or `(B,)`, in turns: [-0.5, 0.5] covers all hues.
        channel_axis: -1, or -2 for the row-planar layout.
    """
    return _adjust_hsv(ops.convert_to_tensor(images), delta, None, channel_axis)


def _adjust_hsv(images: Any, delta: Any, factor: Any, channel_axis: int) -> Any:
    """Turns the hue and scales the saturation (if a factor is given) of HSV, in one pass."""
    delta = _per_sample(delta)
    red, green, blue = _channels(images, channel_axis)
    value = ops.maximum(ops.maximum(red, green), blue)
    low = ops.minimum(ops.minimum(red, green), blue)
    chroma = value - low
    # The addend gives equal channels a sign (a tiny one inside would be lost: TensorFlow's graph
    # optimizer reorders sums). Where the chroma is 0 so is the dividend, and any positive divisor
    # will do.
    side = ops.sign(ops.sign(green - blue) + 0.5)
    hue = chroma + ((green - red) + (blue - low))
    hue = side * (hue / ops.maximum(chroma, 1e-12)) + 6.0 * delta
    hue = hue - 6.0 * ops.floor(hue * (1.0 / 6.0))
    if factor is not None:
        # S = chroma / V is scaled and limited to 1.
        chroma = ops.minimum(chroma * _per_sample(factor), value)
        low = value - chroma

    def channel(shade):  # one after the other, to keep few temporary arrays alive
        return low + chroma * ops.clip(shade, 0.0, 1.0)

    channels = [
        channel(ops.abs(hue - 3.0) - 1.0),
        channel(2.0 - ops.abs(hue - 2.0)),
        channel(2.0 - ops.abs(hue - 4.0)),
    ]
    return ops.concatenate(channels, axis=channel_axis)


def color_jitter(
    images: Any,
    brightness: Any,
    contrast: Any,
    saturation: Any,
    hue: Any,
    order: Any = (0, 1, 2, 3),
    definition: str = "torchvision",
    channel_axis: int = -1,
) -> Any:
    """Brightness, contrast, saturation and hue, each followed by clipping to [0, 1].

    Args:
        images: Float tensor in [0, 1].
        brightness, contrast, saturation: Factors, numbers or `(B,)`.
        hue: Turns, a number or `(B,)`.
        order: The order of the operations, 0 to 3 being brightness, contrast, saturation, hue: a
            tuple for all images, or a `(B, 4)` integer tensor with an order for each image.
        definition: `"torchvision"`; `"simclr_v2"`, with TensorFlow's contrast and saturation; or
            `"simclr_v1"`, where `brightness` is added.
        channel_axis: -1, or -2 for the row-planar layout.

    Returns:
        Float tensor of the shape of `images`.

    Example:

    >>> images = np.zeros((2, 8, 8, 3), "float32")
    >>> jittered = color_jitter(images, 1.2, [0.5, 1.5], 0.8, 0.1, order=(3, 1, 0, 2))
    """
    _check_choice("definition", definition, ("torchvision", "simclr_v1", "simclr_v2"))
    images = ops.convert_to_tensor(images)
    family = "torchvision" if definition == "torchvision" else "tensorflow"
    additive = definition == "simclr_v1"
    if isinstance(order, (tuple, list)):
        if sorted(order) != [0, 1, 2, 3]:
            raise ValueError(
                f"`order` must be a permutation of (0, 1, 2, 3). Received: order={order}"
            )
        for operation in order:
            if operation == 0:
                images = adjust_brightness(images, brightness, additive)
            elif operation == 1:
                images = adjust_contrast(images, contrast, family, True, channel_axis)
            elif operation == 2:
                images = adjust_saturation(images, saturation, family, True, channel_axis)
            else:
                # The hue keeps values inside [0, 1] but for rounding.
                images = ops.clip(adjust_hue(images, hue, channel_axis), 0.0, 1.0)
        return images

    place = ops.cast(ops.argsort(ops.convert_to_tensor(order), axis=1), "int32")
    place = [place[:, i] for i in range(4)]  # when each of the four comes, for each image
    factors = [ops.convert_to_tensor(f, dtype="float32") for f in (brightness, contrast)]
    saturation = ops.convert_to_tensor(saturation, dtype="float32")
    hue = ops.convert_to_tensor(hue, dtype="float32")
    jitter = _jitter_torchvision if family == "torchvision" else _jitter_tensorflow
    return jitter(images, *factors, saturation, hue, place, additive, channel_axis)


# Every image has its own order, but the operations run on the whole batch. So they are laid out as
# a sequence that contains each of the 24 orders as a subsequence, and an image's factors are
# neutral in the slots that it does not use. The sequences are the shortest in time.


def _jitter_torchvision(
    images: Any, brightness, contrast, saturation, hue, place: list, additive: bool, axis: int
) -> Any:
    # Brightness, contrast and saturation are all `scale * x + shift` with a shift made of the
    # luma, so that one slot can be any of them: the sequence is A H A A H A. Row k says for the
    # k-th A which of the four operations of an order it is, by the place of the hue in it.
    table = np.array([[-1, 0, 0, 0], [1, 2, 1, 1], [2, 3, -1, 2], [3, -1, 3, -1]], "int32")
    factors = (brightness, contrast, saturation)

    def affine(images, slot):
        wanted = ops.take(ops.convert_to_tensor(table[slot]), place[3], axis=0)
        b, c, s = (_per_sample(ops.where(place[i] == wanted, factors[i], 1.0)) for i in range(3))
        gray = grayscale(images, axis, keep_channels=False)
        mean = ops.mean(gray, axis=(1, 2, 3), keepdims=True)
        images = images * (b * c * s) + (gray * (1.0 - s) + mean * (1.0 - c))
        return ops.clip(images, 0.0, 1.0)

    early = place[3] <= 1
    images = affine(images, 0)
    images = _adjust_hsv(images, ops.where(early, hue, 0.0), None, axis)
    images = affine(images, 1)
    images = affine(images, 2)
    images = _adjust_hsv(images, ops.where(early, 0.0, hue), None, axis)
    return affine(images, 3)


def _jitter_tensorflow(
    images: Any, brightness, contrast, saturation, hue, place: list, additive: bool, axis: int
) -> Any:
    # Saturation and hue are both in HSV and commute, so only their places among brightness and
    # contrast matter: the sequence is SH A SH A SH.
    first = place[0] < place[1]  # whether brightness comes before contrast
    before = [
        ops.cast(place[0] < place[i], "int32") + ops.cast(place[1] < place[i], "int32")
        for i in (2, 3)
    ]
    neutral = 0.0 if additive else 1.0

    def hsv(images, slot):
        s = ops.where(before[0] == slot, saturation, 1.0)
        return _adjust_hsv(images, ops.where(before[1] == slot, hue, 0.0), s, axis)

    def affine(images, is_brightness):
        b = _per_sample(ops.where(is_brightness, brightness, neutral))
        c = _per_sample(ops.where(is_brightness, 1.0, contrast))
        mean = ops.mean(images, axis=(1, 2 if axis == -1 else 3), keepdims=True)
        shift = mean * (1.0 - c)
        images = images * c + (shift + b) if additive else images * (b * c) + shift
        return ops.clip(images, 0.0, 1.0)

    images = hsv(ops.clip(images, 0.0, 1.0), 0)
    images = hsv(affine(images, first), 1)
    return hsv(affine(images, ops.logical_not(first)), 2)


def solarize(images: Any, selected: Any = True, threshold: float = 0.5) -> Any:
    """Inverts the values of the selected images that are at or above a threshold.

    PIL's `solarize` inverts 8-bit values of 128 or more. A float value counts as the 8-bit value
    it would be rounded to, so the default threshold is 127.5 / 255.

    Args:
        images: Float tensor `(B, H, W, C)` in [0, 1].
        selected: Booleans, one or `(B,)`.
        threshold: In [0, 1].
    """
    images = ops.convert_to_tensor(images)
    selected = _per_sample(ops.cast(ops.convert_to_tensor(selected), "float32"))
    if threshold == 0.5:
        inverted = ops.minimum(images, 1.0 - images)
    else:
        inverted = ops.where(images >= threshold, 1.0 - images, images)
    return select(selected, inverted, images)


def normalize(images: Any, mean: Any, std: Any) -> Any:
    """`(x - mean) / std` for each channel of `(B, H, W, C)`."""
    images = ops.convert_to_tensor(images)
    mean, std = np.asarray(mean, "float32"), np.asarray(std, "float32")
    return images * (1.0 / std) - mean / std


# --- blur --------------------------------------------------------------------------------------


def _box_matrix(size: int, radius: Any) -> Any:
    """PIL's box blur of a fractional radius, edges repeated: `(B, size, size)`."""
    out = np.arange(size, dtype="float32")[None, :, None]
    pixel = np.arange(size, dtype="float32")[None, None, :]
    # The weight of a tap at distance d is clip(radius + 1 - d, 0, 1): 1 up to floor(radius), then
    # the fraction, then 0. What is past an edge falls on it, and is the sum of such a tail.
    inner = ops.clip((radius + 1.0) - ops.convert_to_tensor(np.abs(pixel - out)), 0.0, 1.0)
    whole = ops.floor(radius)

    def tail(distance):
        full = ops.maximum(whole - distance + 1.0, 0.0)
        return full + (radius - whole) * ops.clip(whole + 2.0 - distance, 0.0, 1.0)

    for edge in (0.0, size - 1.0):
        on_edge = ops.convert_to_tensor((pixel == edge).astype("float32"))
        distance = ops.convert_to_tensor(np.abs(out - edge))
        inner = inner * (1.0 - on_edge) + tail(distance) * on_edge
    return inner / (2.0 * radius + 1.0)


def _pil_box_radius(sigma: Any, xp: Any = ops) -> Any:
    """Radius of the box that PIL applies three times for a Gaussian of this sigma."""
    variance = sigma * sigma / 3.0
    whole = xp.floor((xp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    return whole + part / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))


def blur_reach(kernel_size: int | None, padding: str, max_sigma: float | None) -> int | None:
    """How many pixels away a blurred pixel can see, or `None` if there is no limit.

    Args:
        kernel_size, padding: As `blur_matrix`.
        max_sigma: The largest sigma, if it is known.
    """
    if padding == "pil":
        if max_sigma is None:
            return None
        return 3 * (int(_pil_box_radius(max_sigma, np)) + 1)
    reach = None if kernel_size is None else kernel_size // 2
    if max_sigma is not None:
        # Beyond 5 sigma all weights together are below 1e-6.
        limit = int(np.ceil(5.0 * max_sigma))
        reach = limit if reach is None else min(reach, limit)
    return reach


# Output rows of one product of a band matrix. Smaller blocks multiply fewer zeros, larger ones are
# fewer calls; 32 was the fastest at 224 pixels.
_BLOCK = 32


def _band_product(matrix: Any, other: Any, reach: int | None, transpose: bool = False) -> Any:
    """`matrix @ other` (or `other @ matrix^T`) for matrices that are zero `reach` off the diagonal.

    In blocks of rows with only the columns that matter, where that saves most of the work.
    """
    size = matrix.shape[-1]
    is_large = reach is not None and 2 * (2 * reach + _BLOCK) <= size
    if not is_large or matrix.shape[-2] != size or not many_small_products_pay():
        if transpose:
            return ops.matmul(other, ops.swapaxes(matrix, -1, -2))
        return ops.matmul(matrix, other)
    blocks = []
    for start in range(0, size, _BLOCK):
        stop = min(size, start + _BLOCK)
        low, high = max(0, start - reach), min(size, stop + reach)
        band = matrix[:, start:stop, low:high]
        if transpose:
            blocks.append(ops.matmul(other[..., low:high], ops.swapaxes(band, -1, -2)))
        else:
            blocks.append(ops.matmul(band, other[:, low:high]))
    return ops.concatenate(blocks, axis=-1 if transpose else -2)


def blur_matrix(
    size: int,
    sigma: Any,
    kernel_size: int | None = None,
    padding: str = "zero",
    selected: Any = None,
    max_sigma: float | None = None,
) -> Any:
    """The matrices that blur one axis.

    `w[i, p] = exp(-(i - p)^2 / (2 sigma^2))` for `|i - p| <= kernel_size // 2`, divided by the sum
    over the whole kernel. `padding` says what lies beyond the edge:

    - `"zero"`: nothing (TensorFlow's SAME: the edges darken);
    - `"valid"`: the output is smaller by `2 * (kernel_size // 2)`;
    - `"reflect"`: the image mirrored about its edge pixel (torchvision);
    - `"edge"`: the edge pixel repeated;
    - `"pil"`: not a Gaussian, but PIL's `GaussianBlur(radius=sigma)`: three box blurs of a
      fractional radius with the edge pixel repeated. `kernel_size` is not used.

    Args:
        size: Pixels on the axis.
        sigma: Standard deviation in pixels, > 0: a number or `(B,)`.
        kernel_size: Number of taps; an even number counts as the next odd one, as SimCLR's does.
            `None`: as far as `max_sigma` or the axis allows.
        padding: See above.
        selected: `None`, or `(B,)` booleans: the other matrices are the identity.
        max_sigma: The largest sigma, if it is known when compiling: saves work.

    Returns:
        float32 `(B or 1, out, size)`.
    """
    _check_choice("padding", padding, ("zero", "valid", "reflect", "edge", "pil"))
    if padding == "valid" and kernel_size is None:
        raise ValueError("`padding='valid'` needs a `kernel_size`.")
    sigma = ops.reshape(ops.convert_to_tensor(sigma, dtype="float32"), (-1, 1, 1))
    if padding == "pil":
        reach = blur_reach(None, padding, max_sigma)
        reach = None if reach is None else reach // 3
        box = _box_matrix(size, _pil_box_radius(sigma))
        matrix = _band_product(box, _band_product(box, box, reach), reach)
        rows, total = size, 1.0
    else:
        radius = kernel_size // 2 if padding == "valid" else None
        if radius is None:
            radius = blur_reach(kernel_size, padding, max_sigma)
            # No limit: the axis itself, or as far as mirroring is defined.
            radius = size - 1 if radius is None else radius
            if kernel_size is None:
                radius = min(radius, size - 1)
        if padding == "reflect" and radius >= size:
            raise ValueError(
                "Reflection needs a kernel that reaches less than the image's size beyond it. "
                f"Received: kernel_size={kernel_size}, size={size}"
            )
        first = radius if padding == "valid" else 0
        rows = size - 2 * first
        if rows < 1:
            raise ValueError(
                f"The kernel is larger than the image. Received: kernel_size={kernel_size}, "
                f"size={size}, padding='valid'"
            )
        out = (np.arange(rows) + first)[:, None]
        pixel = np.arange(size)[None, :]
        scale = -0.5 / (sigma * sigma)

        def weights(distance, where=True):
            # What is outside the kernel gets a distance whose exponential is 0.
            inside = (np.abs(distance) <= radius) & where
            squares = np.where(inside, np.square(distance.astype("float32")), 1e30)
            return ops.exp(ops.convert_to_tensor(squares.astype("float32")[None]) * scale)

        total = ops.sum(weights(np.arange(-radius, radius + 1)[None]), axis=-1, keepdims=True)
        matrix = weights(out - pixel)
        if padding == "reflect":
            # Only the pixel's own mirror images are other pixels: the edge is not repeated.
            matrix = matrix + weights(out + pixel, pixel > 0)
            matrix = matrix + weights(2 * (size - 1) - pixel - out, pixel < size - 1)
        elif padding == "edge" and radius:
            for edge, sign in ((0, -1), (size - 1, 1)):
                beyond = edge + sign * np.arange(1, radius + 1)[None, :]
                tail = ops.sum(weights(out - beyond), axis=-1, keepdims=True)
                on_edge = (pixel == edge).astype("float32")[None]
                matrix = matrix + ops.convert_to_tensor(on_edge) * tail
    if selected is None:
        return matrix / total
    if rows != size:
        raise ValueError("`selected` needs a padding that keeps the size, not 'valid'.")
    chosen = ops.reshape(ops.cast(selected, "float32"), (-1, 1, 1))
    identity = ops.convert_to_tensor(np.eye(size, dtype="float32")[None])
    return matrix * (chosen / total) + identity * (1.0 - chosen)


def gaussian_blur(
    images: Any,
    sigma: Any,
    kernel_size: int | None = None,
    padding: str = "reflect",
    selected: Any = None,
    max_sigma: float | None = None,
    channel_axis: int = -1,
) -> Any:
    """Separable Gaussian blur, as products with band matrices.

    Args:
        images: Float tensor `(B, H, W, C)`.
        sigma: Standard deviation in pixels, a number or `(B,)`.
        kernel_size: Taps of the kernel; `None` for no limit.
        padding: `"zero"` is SimCLR's, `"reflect"` torchvision's, `"pil"` PIL's approximation by
            boxes; see `blur_matrix` for these and the others.
        selected: `None`, or `(B,)` booleans: which images to blur.
        max_sigma: The largest sigma, if it is known when compiling: saves work. Without a
            `kernel_size` the Gaussian is then cut at 5 `max_sigma`.
        channel_axis: -1, or -2 for the row-planar layout.

    Returns:
        float32 tensor of the shape of `images` (smaller for `"valid"`).

    Raises:
        ValueError: If the kernel does not fit the image, or the padding is unknown.

    Example:

    >>> images = np.zeros((2, 16, 16, 3), "float32")
    >>> tuple(gaussian_blur(images, sigma=[0.5, 2.0], kernel_size=5).shape)
    (2, 16, 16, 3)
    """
    images = ops.convert_to_tensor(images)
    _check_images(images)
    if channel_axis == -1:
        images = to_row_planar(images)
    height, channels, width = images.shape[1:]
    options = (kernel_size, padding, selected, max_sigma)
    reach = blur_reach(kernel_size, padding, max_sigma)
    columns = blur_matrix(width, sigma, *options)
    rows = columns if height == width else blur_matrix(height, sigma, *options)
    images = ops.reshape(images, (-1, height * channels, width))
    images = _band_product(columns, images, reach, transpose=True)
    images = ops.reshape(images, (-1, height, channels * columns.shape[-2]))
    images = _band_product(rows, images, reach)
    images = ops.reshape(images, (-1, rows.shape[-2], channels, columns.shape[-2]))
    return from_row_planar(images) if channel_axis == -1 else images
