"""Augmentation against PIL, NumPy in float64 and the official vectors."""

import colorsys
import itertools
import json
import pathlib

import keras
import numpy as np
import pytest
from conformance_augment import compare
from keras import ops
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from keras_ssl import augmentation
from keras_ssl.augmentation import functional, operations
from keras_ssl.training.random import RandomStream

VECTORS = pathlib.Path(__file__).parent / "vectors"
LEVEL = 1.0 / 255.0
HEIGHT, WIDTH, BATCH = 20, 26, 6


def pictures(batch=BATCH, height=HEIGHT, width=WIDTH, seed=0):
    """Noise over ramps: harder than photographs for every comparison."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 160, width)[None, None, :, None] * generator.random((batch, 1, 1, 3))
    noise = generator.integers(0, 96, (batch, height, width, 3))
    return (ramp + noise).astype("uint8")


def numpy(x):
    return ops.convert_to_numpy(x)


def unit(images):
    return images.astype("float32") / 255.0


# --- definitions -------------------------------------------------------------------------------


def test_official_simclr_vectors():
    with np.load(VECTORS / "simclr_augment.npz") as npz:
        meta = json.loads(str(npz["meta"]))
        results = compare(npz, meta)
        assert set(results) == {key for key in npz.files if key.startswith("out/")}
    for key, (ours, theirs) in results.items():
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 1e-5, (key, error)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(12, 12), (33, 17)])
def test_crop_resize_equals_pil(interpolation, size):
    images = pictures()
    generator = np.random.default_rng(1)
    heights, widths = generator.integers(5, HEIGHT + 1, BATCH), generator.integers(5, WIDTH, BATCH)
    tops = [generator.integers(0, HEIGHT - h + 1) for h in heights]
    lefts = [generator.integers(0, WIDTH - w + 1) for w in widths]
    boxes = np.stack([tops, lefts, heights, widths], axis=1)
    ours = numpy(
        functional.crop_resize(
            unit(images), ops.convert_to_tensor(boxes), size, interpolation, saturate=True
        )
    )
    method = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[interpolation]
    for i, (top, left, height, width) in enumerate(boxes):
        crop = Image.fromarray(images[i]).crop((left, top, left + width, top + height))
        theirs = unit(np.asarray(crop.resize(size[::-1], method)))
        # They round to 8 bits after each of the two directions; so the result in 8 bits is within
        # one level.
        assert np.abs(np.round(ours[i] / LEVEL) - theirs / LEVEL).max() <= 1.01


def test_crop_resize_forms_agree():
    images = unit(pictures())
    box = (3, 4, 11, 13)
    options = {"interpolation": "bicubic"}
    one = numpy(functional.crop_resize(images, box, 9, **options))
    boxes = ops.convert_to_tensor(np.tile(box, (BATCH, 1)))
    each = numpy(functional.crop_resize(images, boxes, 9, **options))
    np.testing.assert_allclose(one, each, atol=2e-6)
    cut = images[:, 3:14, 4:17]
    np.testing.assert_allclose(one, numpy(functional.resize(cut, 9, **options)), atol=2e-6)
    chosen = np.arange(BATCH) % 2 == 0
    flipped = numpy(functional.crop_resize(images, boxes, 9, flip=chosen, **options))
    np.testing.assert_allclose(flipped, numpy(functional.flip_horizontal(each, chosen)), atol=2e-6)
    np.testing.assert_array_equal(
        numpy(functional.resize(images, (HEIGHT, WIDTH), "nearest")), images
    )


def test_brightness_contrast_saturation_equal_pil():
    images = pictures()
    factors = np.array([0.0, 0.4, 0.9, 1.0, 1.3, 1.9], "float32")
    cases = {
        ImageEnhance.Brightness: functional.adjust_brightness,
        ImageEnhance.Contrast: functional.adjust_contrast,
        ImageEnhance.Color: functional.adjust_saturation,
    }
    for enhance, adjust in cases.items():
        ours = numpy(adjust(unit(images), factors))
        for i, factor in enumerate(factors):
            theirs = unit(np.asarray(enhance(Image.fromarray(images[i])).enhance(float(factor))))
            # The luma is rounded to 8 bits, and the result is cut off or rounded.
            assert np.abs(ours[i] - theirs).max() <= 1.6 * LEVEL, enhance


def test_grayscale_and_solarize_equal_pil():
    images = pictures()
    gray = numpy(functional.grayscale(unit(images)))
    inverted = numpy(functional.solarize(unit(images)))
    for i in range(BATCH):
        theirs = unit(np.asarray(Image.fromarray(images[i]).convert("L")))
        assert np.abs(gray[i, ..., 0] - theirs).max() <= 0.6 * LEVEL
        theirs = unit(np.asarray(ImageOps.solarize(Image.fromarray(images[i]), 128)))
        np.testing.assert_allclose(inverted[i], theirs, atol=1e-6)
    some = numpy(functional.solarize(unit(images), np.arange(BATCH) < 2, threshold=0.25))
    np.testing.assert_array_equal(some[2:], unit(images[2:]))
    expected = np.where(unit(images[:2]) >= 0.25, 1 - unit(images[:2]), unit(images[:2]))
    np.testing.assert_allclose(some[:2], expected, atol=1e-6)


def test_hue_equals_colorsys():
    images = pictures(batch=4, height=5, width=6)
    images[0, 0, 0] = 0
    images[0, 0, 1] = 255
    images[0, 0, 2] = (9, 200, 200)
    images[0, 0, 3] = (200, 9, 9)
    deltas = np.array([-0.5, -0.13, 0.2, 0.5], "float32")
    ours = numpy(functional.adjust_hue(unit(images), deltas))
    for i, y, x in itertools.product(range(4), range(5), range(6)):
        h, s, v = colorsys.rgb_to_hsv(*(images[i, y, x] / 255.0))
        expected = colorsys.hsv_to_rgb((h + float(deltas[i])) % 1.0, s, v)
        np.testing.assert_allclose(ours[i, y, x], expected, atol=2e-6)


def reference_jitter(image, factors, order, definition):
    """One image in float64, one operation after the other."""
    x = image.astype("float64")
    for operation in order:
        factor = factors[operation]
        gray = (x @ np.array(functional.GRAY_WEIGHTS))[..., None]
        if operation == 0:
            x = x + factor if definition == "simclr_v1" else x * factor
        elif operation == 1:
            mean = gray.mean() if definition == "torchvision" else x.mean(axis=(0, 1))
            x = factor * x + (1 - factor) * mean
        elif operation == 2 and definition == "torchvision":
            x = factor * x + (1 - factor) * gray
        else:
            hsv = np.array([[colorsys.rgb_to_hsv(*pixel) for pixel in row] for row in x])
            if operation == 2:
                hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 1)
            else:
                hsv[..., 0] = (hsv[..., 0] + factor) % 1
            x = np.array([[colorsys.hsv_to_rgb(*pixel) for pixel in row] for row in hsv])
        x = np.clip(x, 0, 1)
    return x


@pytest.mark.parametrize("definition", ["torchvision", "simclr_v1", "simclr_v2"])
def test_jitter_in_every_order(definition):
    orders = np.array(list(itertools.permutations(range(4))), "int32")
    images = unit(pictures(batch=24, height=4, width=5))
    generator = np.random.default_rng(3)
    factors = generator.uniform(0.3, 1.9, (4, 24)).astype("float32")
    factors[3] = generator.uniform(-0.5, 0.5, 24)
    if definition == "simclr_v1":
        factors[0] = generator.uniform(-0.6, 0.6, 24)
    ours = numpy(
        functional.color_jitter(
            images, *factors, order=ops.convert_to_tensor(orders), definition=definition
        )
    )
    for i in range(24):
        expected = reference_jitter(images[i], factors[:, i], orders[i], definition)
        np.testing.assert_allclose(ours[i], expected, atol=5e-5, err_msg=str(orders[i]))
    # One order for all images, and the layout that `Views` works in.
    fixed = numpy(
        functional.color_jitter(
            images.transpose(0, 1, 3, 2), *factors, (2, 0, 3, 1), definition, channel_axis=-2
        )
    ).transpose(0, 1, 3, 2)
    for i in range(3):
        expected = reference_jitter(images[i], factors[:, i], (2, 0, 3, 1), definition)
        np.testing.assert_allclose(fixed[i], expected, atol=5e-5)


def reference_blur(image, sigma, kernel_size, padding):
    radius = kernel_size // 2
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    mode = {"zero": "constant", "reflect": "reflect", "edge": "edge"}[padding]
    padded = np.pad(image.astype("float64"), ((radius, radius), (radius, radius), (0, 0)), mode)
    height, width = image.shape[:2]
    rows = sum(t * padded[i : i + height] for i, t in enumerate(taps))
    return sum(t * rows[:, i : i + width] for i, t in enumerate(taps))


@pytest.mark.parametrize("padding", ["zero", "reflect", "edge"])
def test_gaussian_blur(padding):
    images = unit(pictures())
    sigma = np.array([0.1, 0.5, 1.0, 1.5, 2.0, 3.0], "float32")
    selected = np.arange(BATCH) != 2
    ours = numpy(functional.gaussian_blur(images, sigma, 9, padding, selected))
    for i in range(BATCH):
        expected = reference_blur(images[i], sigma[i], 9, padding) if i != 2 else images[i]
        np.testing.assert_allclose(ours[i], expected, atol=2e-6)


def test_blur_of_large_images_takes_bands_to_the_same_result():
    images = unit(pictures(batch=2, height=110, width=110))
    for padding in ("reflect", "pil"):
        sigma = np.array([0.4, 1.2], "float32")
        full = numpy(functional.gaussian_blur(images, sigma, None, padding))
        bands = numpy(functional.gaussian_blur(images, sigma, None, padding, max_sigma=1.2))
        np.testing.assert_allclose(full, bands, atol=3e-6)


def test_blur_like_pil():
    images = pictures()
    sigma = np.array([0.1, 0.4, 0.8, 1.2, 1.6, 2.0], "float32")
    ours = numpy(functional.gaussian_blur(unit(images), sigma, padding="pil"))
    for i in range(BATCH):
        blurred = Image.fromarray(images[i]).filter(ImageFilter.GaussianBlur(float(sigma[i])))
        error = np.abs(ours[i] - unit(np.asarray(blurred)))
        # Six passes that each round to 8 bits: up to 3 levels on noise, under 1 on average.
        assert error.max() <= 3.0 * LEVEL and error.mean() <= 0.8 * LEVEL


# --- laws --------------------------------------------------------------------------------------


def uniforms(draws, batch=4000, seed=9):
    return RandomStream(seed).uniform((batch, draws))


def reference_boxes(count, height, width, scale, ratio, seed=0):
    """torchvision's loop of ten tries."""
    generator = np.random.default_rng(seed)
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * generator.uniform(*scale)
            aspect = np.exp(generator.uniform(*np.log(ratio)))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = generator.integers(0, height - h + 1)
                boxes.append((top, generator.integers(0, width - w + 1), h, w))
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(width / ratio[0])
            elif width / height > ratio[1]:
                w = round(height * ratio[1])
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.array(boxes)


@pytest.mark.parametrize("shape, scale", [((40, 56), (0.08, 1.0)), ((12, 60), (0.5, 1.0))])
def test_law_of_the_crop(shape, scale):
    crop = operations.Crop((8, 8), scale=scale)
    boxes = numpy(crop.parameters(uniforms(crop.draws), *shape)["boxes"]).astype("float64")
    np.testing.assert_array_equal(boxes, np.round(boxes))
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()
    expected = reference_boxes(4000, *shape, scale, crop.ratio)
    for ours, theirs in (
        (height * width, expected[:, 2] * expected[:, 3]),
        (np.log(width / height), np.log(expected[:, 3] / expected[:, 2])),
        (top, expected[:, 0]),
        (left, expected[:, 1]),
    ):
        points = np.quantile(theirs, np.linspace(0.05, 0.95, 10))
        for point in points:  # both empirical distribution functions, within 3 sigma
            share = (ours <= point).mean() - (theirs <= point).mean()
            assert abs(share) < 3 * np.sqrt(0.5 / 4000)


def test_fallback_of_the_crop_is_central():
    crop = operations.Crop((8, 8), scale=(1.0, 1.0))
    for shape in ((10, 100), (100, 10)):
        boxes = numpy(crop.parameters(uniforms(crop.draws, 5), *shape)["boxes"])
        np.testing.assert_array_equal(boxes, reference_boxes(5, *shape, (1, 1), (0.75, 4 / 3)))


def test_law_of_the_jitter():
    jitter = operations.Jitter(0.8, 0.4, 1.5, 0.2, probability=0.7)
    drawn = {k: numpy(v) for k, v in jitter.parameters(uniforms(9), 8, 8).items()}
    selected = drawn["selected"]
    assert abs(selected.mean() - 0.7) < 0.03
    ranges = {"brightness": (0.2, 1.8), "contrast": (0.6, 1.4), "saturation": (0, 2.5)}
    for name, (low, high) in {**ranges, "hue": (-0.2, 0.2)}.items():
        values = drawn[name][selected]
        assert low <= values.min() and values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)
        assert abs(values.std() - (high - low) / np.sqrt(12)) < 0.03 * (high - low)
        np.testing.assert_array_equal(drawn[name][~selected], 0.0 if name == "hue" else 1.0)
    counts = np.unique(drawn["order"] @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24 and counts.min() > 110
    assert abs(np.corrcoef(drawn["brightness"][selected], drawn["contrast"][selected])[0, 1]) < 0.08


def test_frequencies():
    for operation in (
        operations.Flip(0.5),
        operations.Grayscale(0.2),
        operations.Solarize(0.1),
        operations.Blur(0.3, (0.1, 2.0)),
    ):
        drawn = operation.parameters(uniforms(operation.draws), 8, 8)
        assert abs(numpy(drawn["selected"]).mean() - operation.probability) < 0.03
    sigma = numpy(drawn["sigma"])
    assert sigma.min() >= 0.1 and sigma.max() <= 2.0 and abs(sigma.mean() - 1.05) < 0.05


# --- layers ------------------------------------------------------------------------------------

LAYERS = {
    "crop": lambda **k: augmentation.RandomResizedCrop(12, **k),
    "flip": lambda **k: augmentation.RandomHorizontalFlip(**k),
    "jitter": lambda **k: augmentation.RandomColorJitter(0.4, 0.4, 0.2, 0.1, **k),
    "fixed": lambda **k: augmentation.RandomColorJitter(0.4, 0.4, order=(1, 0, 2, 3), **k),
    "grayscale": lambda **k: augmentation.RandomGrayscale(0.5, **k),
    "blur": lambda **k: augmentation.RandomGaussianBlur(0.5, **k),
    "solarize": lambda **k: augmentation.RandomSolarize(0.5, **k),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    images = pictures()
    layer = LAYERS[name](seed=4)
    output, parameters = layer(images, return_parameters=True)
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    assert numpy(output).min() >= -1e-3 and numpy(output).max() <= 255.001
    # Given parameters, and a restored layer, do the same again.
    again = layer(images.astype("float32"), parameters=parameters)
    np.testing.assert_array_equal(numpy(output), numpy(again))
    config = layer.get_config()
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert json.loads(json.dumps(clone.get_config())) == json.loads(json.dumps(config))
    np.testing.assert_array_equal(numpy(output), numpy(clone(images)))
    # Another range of values is the same picture.
    scaled = LAYERS[name](seed=4, value_range=(-1, 1))
    close = numpy(scaled(images / 127.5 - 1.0)) * 127.5 + 127.5
    np.testing.assert_allclose(numpy(output), close, atol=5e-2 if name != "solarize" else 255)
    assert np.mean(np.abs(numpy(output) - close) > 5e-2) < 0.01


def test_normalize():
    images = pictures()
    layer = augmentation.Normalize(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    expected = (images / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(numpy(layer(images)), expected, atol=1e-5)
    clone = augmentation.Normalize.from_config(layer.get_config())
    np.testing.assert_array_equal(numpy(clone(images)), numpy(layer(images)))


# --- views -------------------------------------------------------------------------------------


# Of recipes that do not make two views; multi-crop with two local ones here.
VIEWS = {"mae": 1, "clip": 1, "siglip": 1, "align": 1, "dino": 4, "dino_small": 4, "dinov2": 4}


@pytest.mark.parametrize("recipe", sorted(augmentation.RECIPES))
def test_recipes(recipe):
    views = augmentation.Views(recipe, size=12, local_size=12, num_local_views=2, seed=2)
    table = augmentation.RECIPES[recipe]
    assert table["source"]
    images = pictures()
    outputs, parameters = views(images, return_parameters=True)
    assert len(outputs) == len(parameters) == views.num_views
    assert views.num_views == VIEWS.get(recipe, 2)
    mean, std = np.array(table["mean"]), np.array(table["std"])
    for view in outputs:
        assert tuple(view.shape) == (BATCH, 12, 12, 3)
        pixels = numpy(view) * std + mean
        assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5
    # Each view, one image and one operation at a time, from its parameters.
    view = [v for v in table["views"] for _ in range(v.get("count", 1))][0]
    x = functional.to_row_planar(unit(images))
    drawn = parameters[0]
    for name, options in view.items():
        if name in operations.OPERATIONS:
            options = {**options, "size": (12, 12)} if name == "crop" else options
            x = operations.OPERATIONS[name](**options).apply(x, drawn[name])
    expected = (numpy(functional.from_row_planar(x)) - mean) / std
    np.testing.assert_allclose(numpy(outputs[0]), expected, atol=2e-5)


def test_draws_are_equal_on_every_backend():
    views = augmentation.Views("simclr", size=12, seed=1234)
    outputs, parameters = views(pictures(), return_parameters=True)
    crops = [numpy(p["crop"]["boxes"]).astype(int).tolist() for p in parameters]
    assert crops == KNOWN_BOXES
    drawn = [numpy(p["jitter"]["hue"]) for p in parameters]
    np.testing.assert_allclose(np.concatenate(drawn), KNOWN_HUES, atol=1e-6)
    orders = [numpy(p["jitter"]["order"]).tolist() for p in parameters]
    assert orders == KNOWN_ORDERS
    means = [numpy(view).mean(axis=(1, 2, 3)) for view in outputs]
    np.testing.assert_allclose(np.concatenate(means), KNOWN_MEANS, atol=1e-5)


KNOWN_BOXES = [
    [
        [3, 0, 15, 13],
        [1, 1, 19, 15],
        [1, 2, 14, 18],
        [2, 12, 11, 11],
        [3, 6, 17, 18],
        [4, 1, 12, 10],
    ],
    [[0, 5, 15, 20], [7, 7, 13, 11], [8, 2, 12, 13], [1, 2, 18, 17], [5, 4, 10, 9], [4, 1, 15, 13]],
]
KNOWN_HUES = [
    0.07674,
    0.0784443,
    -0.1743513,
    0.0622439,
    0.0,
    0.0750516,
    -0.0437896,
    -0.043501,
    0.0,
    0.1851616,
    -0.1163543,
    0.1918269,
]
KNOWN_ORDERS = [
    [[1, 2, 3, 0], [3, 0, 2, 1], [0, 1, 3, 2], [0, 1, 3, 2], [2, 3, 0, 1], [1, 0, 2, 3]],
    [[1, 3, 0, 2], [2, 1, 0, 3], [2, 3, 0, 1], [2, 3, 0, 1], [2, 1, 3, 0], [3, 0, 2, 1]],
]
KNOWN_MEANS = [
    0.283257,
    0.425552,
    0.2096,
    0.090391,
    0.38352,
    0.437914,
    0.263695,
    0.450686,
    0.314081,
    0.287689,
    0.54423,
    0.197572,
]


def test_seed_determines_and_state_moves():
    images = pictures()
    make = lambda seed: augmentation.Views("mocov2", size=12, seed=seed)
    a, b, c = make(1), make(1), make(2)
    first, second = numpy(a(images)[0]), numpy(a(images)[0])
    np.testing.assert_array_equal(first, numpy(b(images)[0]))
    assert np.abs(first - second).max() > 0.1
    assert np.abs(first - numpy(c(images)[0])).max() > 0.1
    state = numpy(a.stream.state)
    one, two = numpy(a(images, training=False)[0]), numpy(a(images, training=False)[0])
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(numpy(a.stream.state), state)
    # The fixed draws do not depend on how far the training is.
    np.testing.assert_array_equal(one, numpy(b(images, training=False)[0]))


def test_images_do_not_mix():
    images = pictures()
    views = augmentation.Views("byol", size=12, seed=1)
    outputs, parameters = views(images, return_parameters=True)
    other = images.copy()
    other[0] = 255 - other[0]
    changed = views(other, parameters=parameters)
    for before, after in zip(outputs, changed, strict=True):
        assert np.abs(numpy(before)[0] - numpy(after)[0]).max() > 0.05
        np.testing.assert_allclose(numpy(before)[1:], numpy(after)[1:], atol=1e-5)
    # The two views differ, and so do two images that are equal.
    twins = np.repeat(images[:1], BATCH, axis=0)
    view = numpy(views(twins)[0])
    assert min(np.abs(view[i] - view[i - 1]).max() for i in range(BATCH)) > 1e-3


def test_parts_of_the_batch_are_the_whole(monkeypatch):
    images = pictures()
    whole = augmentation.Views("byol", size=12, seed=1)(images)
    # Room for the views of four of the six images (only eager PyTorch takes parts).
    monkeypatch.setattr("keras_ssl.augmentation.views._CHUNK_PIXELS", 2 * 144 * 4)
    parts = augmentation.Views("byol", size=12, seed=1)(images)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), atol=1e-5)


def test_uint8_and_float_agree_and_gray_is_repeated():
    images = pictures()
    views = augmentation.Views("simclr_cifar", size=12, seed=1)
    _, parameters = views(images, return_parameters=True)
    a = views(images, parameters=parameters)
    b = views(images.astype("float32"), parameters=parameters)
    half = augmentation.Views("simclr_cifar", size=12, seed=1, value_range=(0, 1))
    c = half(unit(images), parameters=parameters)
    for x, y, z in zip(a, b, c, strict=True):
        np.testing.assert_array_equal(numpy(x), numpy(y))
        np.testing.assert_allclose(numpy(x), numpy(z), atol=1e-5)
    gray = images[..., :1]
    d = views(gray, parameters=parameters)
    e = views(np.repeat(gray, 3, axis=-1), parameters=parameters)
    np.testing.assert_array_equal(numpy(d[0]), numpy(e[0]))


class Pair(keras.Model):
    """A loss that is the mean of the first view."""

    def __init__(self, views):
        super().__init__()
        self.views = views
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return ops.mean(ops.cast(x, "float32"), axis=(1, 2, 3)) * self.scale

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        first, second = self.views(x, training=training)
        return ops.mean(first) + 10.0 * ops.mean(second) + 0.0 * ops.mean(y_pred)


def test_compiled_into_the_step(tmp_path):
    images = pictures(batch=12)
    make = lambda: augmentation.Views("mocov3", size=12, seed=3)
    eager, model = make(), Pair(make())
    expected = []
    for start in (0, 6):
        first, second = eager(images[start : start + 6])
        expected.append(numpy(first).mean() + 10.0 * numpy(second).mean())
    model.compile("sgd")
    history = model.fit(images, images[:, 0, 0, 0], batch_size=6, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [np.mean(expected)], rtol=1e-4, atol=1e-4)
    state = numpy(model.views.stream.state)
    assert state[2] == 2
    losses = [model.evaluate(images, images[:, 0, 0, 0], batch_size=6, verbose=0) for _ in "ab"]
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(numpy(model.views.stream.state), state)
    # The place in the stream is saved with the weights.
    model.save_weights(tmp_path / "pair.weights.h5")
    other = Pair(make())
    other(images[:1])
    other.load_weights(tmp_path / "pair.weights.h5")
    np.testing.assert_array_equal(numpy(other.views.stream.state), state)


def test_symbolic_call_and_serialization():
    inputs = keras.Input((HEIGHT, WIDTH, 3), dtype="uint8")
    views = augmentation.Views("dino", size=12, local_size=6, num_local_views=1, seed=3)
    outputs = views(inputs)
    assert [tuple(view.shape) for view in outputs] == [(None, s, s, 3) for s in (12, 12, 6)]
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(views))
    assert clone.get_config() == views.get_config() and clone.num_views == 3
    small = augmentation.Views("mae", size=12, seed=3)
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(small))
    np.testing.assert_array_equal(numpy(small(pictures())[0]), numpy(clone(pictures())[0]))
    own = [{"count": 2, "crop": {"scale": [0.5, 1.0]}, "solarize": {"probability": 1.0}}]
    custom = augmentation.Views(own, size=12, seed=0)
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(custom))
    np.testing.assert_array_equal(numpy(custom(pictures())[1]), numpy(clone(pictures())[1]))


def test_mixed_precision_rounds_only_at_the_end():
    images = pictures()
    full = augmentation.Views("mocov1", size=12, seed=3)(images.astype("float32"))
    half = augmentation.Views("mocov1", size=12, seed=3, dtype="mixed_bfloat16")(
        images.astype("float32")
    )
    assert keras.backend.standardize_dtype(half[0].dtype) == "bfloat16"
    for a, b in zip(full, half, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(ops.cast(b, "float32")), atol=0.01, rtol=0.004)


def test_errors():
    views = augmentation.Views("simclr", size=12)
    with pytest.raises(ValueError, match="RGBA"):
        views(np.zeros((2, 16, 16, 4), "uint8"))
    with pytest.raises(ValueError, match="3 channels"):
        views(np.zeros((2, 16, 16, 2), "uint8"))
    with pytest.raises(ValueError, match="batch of images"):
        views(np.zeros((16, 16, 3), "uint8"))
    with pytest.raises(ValueError, match="`recipe` must be one of"):
        augmentation.Views("simclr3")
    with pytest.raises(ValueError, match="A view is made of"):
        augmentation.Views([{"crop": {}, "swirl": {}}])
    with pytest.raises(ValueError, match="needs a `crop`"):
        augmentation.Views([{"flip": {}}])
    with pytest.raises(ValueError, match="`mean` and `std`"):
        augmentation.Views("simclr", std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="`value_range`"):
        augmentation.Views("simclr", value_range=(1, 1))
    with pytest.raises(ValueError, match="dict for each of the 2 views"):
        views(pictures(), parameters=({},))
    with pytest.raises(ValueError, match="`size` must be positive"):
        augmentation.RandomResizedCrop(0)
    with pytest.raises(ValueError, match="`scale` must be"):
        augmentation.RandomResizedCrop(8, scale=(0.5, 1.5))
    with pytest.raises(ValueError, match="`ratio` must be"):
        augmentation.RandomResizedCrop(8, ratio=(2.0, 1.0))
    with pytest.raises(ValueError, match="`probability` must lie"):
        augmentation.RandomHorizontalFlip(1.5)
    with pytest.raises(ValueError, match="`hue` must lie"):
        augmentation.RandomColorJitter(hue=0.7)
    with pytest.raises(ValueError, match="`contrast` must not be negative"):
        augmentation.RandomColorJitter(contrast=-0.1)
    with pytest.raises(ValueError, match="permutation"):
        augmentation.RandomColorJitter(0.4, order=(0, 1, 2))
    with pytest.raises(ValueError, match="`sigma` must be"):
        augmentation.RandomGaussianBlur(sigma=(2.0, 1.0))
    with pytest.raises(ValueError, match="`padding` must be"):
        augmentation.RandomGaussianBlur(padding="wrap")
    with pytest.raises(ValueError, match="`interpolation` must be one of"):
        functional.resize(np.zeros((1, 4, 4, 3), "float32"), 2, "lanczos")
    with pytest.raises(ValueError, match="kernel is larger"):
        functional.gaussian_blur(np.zeros((1, 4, 4, 3), "float32"), 1.0, 9, "valid")
    with pytest.raises(ValueError, match="Reflection"):
        functional.gaussian_blur(np.zeros((1, 4, 4, 3), "float32"), 1.0, 9, "reflect")
    with pytest.raises(ValueError, match="3 channels"):
        functional.adjust_hue(np.zeros((1, 4, 4, 1), "float32"), 0.1)
