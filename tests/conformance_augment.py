"""The SimCLR augmentation vectors: what each key of such a file is in our functions.

`compare(npz, meta)` reads every size and option from `meta["config"]`; `tests/conformance.py`
calls it and measures the errors.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_ssl.augmentation import functional

# The official evaluation crop (CROP_PROPORTION) and batch blur (its default probability, and the
# kernel's share of the height).
CROP_PROPORTION = 0.875
BLUR_PROBABILITY = 0.5
BLUR_SHARE = 10


def compare(npz: Any, meta: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Computes every `out/` key of a SimCLR augmentation file.

    Args:
        npz: Mapping of the file's arrays.
        meta: Its decoded `meta`.

    Returns:
        Dictionary of key -> (ours, theirs).
    """
    config = meta["config"]
    image, batch = np.asarray(npz["in/image"])[None], np.asarray(npz["in/batch"])
    resize = {"interpolation": "bicubic", "antialias": False, "definition": "tensorflow"}
    ours: dict[str, Any] = {}

    blurs = config.get("blur", [])
    padding = {"SAME": "zero", "VALID": "valid"}
    for i, (kernel, sigma, pad) in enumerate(blurs):
        ours[f"blur{i}_k{kernel}_s{sigma}_{pad}"] = functional.gaussian_blur(
            image, sigma, kernel, padding[pad]
        )
    if blurs and "out/blur_batch" in npz:
        # A batch goes through the first of the listed blurs.
        kernel, sigma, pad = blurs[0]
        ours["blur_batch"] = functional.gaussian_blur(batch, sigma, kernel, padding[pad])

    ours["grayscale"] = functional.grayscale(image)
    ours["grayscale_1ch"] = functional.grayscale(image, keep_channels=False)
    for factor in config.get("factors", []):
        ours[f"brightness_v2_{factor}"] = functional.adjust_brightness(image, factor, clip=False)
        ours[f"contrast_{factor}"] = functional.adjust_contrast(
            image, factor, "tensorflow", clip=False
        )
        ours[f"saturation_{factor}"] = functional.adjust_saturation(
            image, factor, "tensorflow", clip=False
        )
    for delta in config.get("hues", []):
        ours[f"hue_{delta}"] = functional.adjust_hue(image, delta)

    for i, jitter in enumerate(config.get("jitter", [])):
        names = ("brightness", "contrast", "saturation", "hue")
        factors = {name: jitter[name] for name in names}
        definition = {"simclrv1": "simclr_v1", "simclrv2": "simclr_v2"}[jitter["impl"]]
        ours[f"jitter{i}_nonrand"] = functional.color_jitter(
            image, **factors, order=(0, 1, 2, 3), definition=definition
        )
        # As a tensor, so that the form with an order for each image is what is compared.
        order = ops.convert_to_tensor([jitter["order"]], dtype="int32")
        ours[f"jitter{i}_rand_order"] = functional.color_jitter(
            image, **factors, order=order, definition=definition
        )

    for i, (top, left, height, width, out_height, out_width) in enumerate(config.get("crops", [])):
        box = ops.convert_to_tensor([[top, left, height, width]], dtype="float32")
        ours[f"crop_resize{i}"] = functional.crop_resize(
            image, box, (out_height, out_width), **resize
        )
    for size in config.get("center", []):
        name = f"{size[0]}x{size[1]}"
        crop = functional.center_crop(image, tuple(size), CROP_PROPORTION, **resize, saturate=False)
        ours[f"center_crop_{name}"] = crop
        ours[f"preprocess_for_eval_{name}"] = ops.clip(crop, 0.0, 1.0)

    if "blur_selector" in config:
        kernel = batch.shape[1] // BLUR_SHARE
        selected = np.asarray(config["blur_selector"]) < BLUR_PROBABILITY
        ours["batch_random_blur"] = ops.clip(
            functional.gaussian_blur(batch, config["blur_sigma"], kernel, "zero", selected), 0, 1
        )

    result = {}
    for name, value in ours.items():
        if f"out/{name}" in npz:
            theirs = np.asarray(npz[f"out/{name}"])
            value = ops.convert_to_numpy(value)
            result[f"out/{name}"] = (value if theirs.ndim == 4 else value[0], theirs)
    return result
