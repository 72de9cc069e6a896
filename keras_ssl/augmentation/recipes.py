"""The views of each method, as data.

A recipe has a `source`, the constants its images are normalised with, and a list of views in the
order in which they come out. A view is a dict: `count` (how many of it, default 1), `local` (true
for views of `local_size`), and the operations in the order in which they run, each with its
arguments (see `operations.py`). Sizes are not part of an operation: a view has one size, `size`
or, for local views, `local_size`.
"""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
# The methods that feed values in [0, 1].
_PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

# How `tf.image.resize` makes the crops of SimCLR and BYOL.
_TF_BICUBIC = {"interpolation": "bicubic", "antialias": False, "definition": "tensorflow"}

_SIMCLR_VIEW = {
    "count": 2,
    "crop": {"scale": (0.08, 1.0), **_TF_BICUBIC},
    "flip": {},
    "jitter": {
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
        "probability": 0.8,
        "definition": "simclr_v2",
    },
    "grayscale": {"probability": 0.2},
    "blur": {"probability": 0.5, "kernel_size": 0.1, "padding": "zero"},
}

_SIMCLR_CIFAR_VIEW = {
    "count": 2,
    "crop": {"scale": (0.08, 1.0), **_TF_BICUBIC},
    "flip": {},
    "jitter": {
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "probability": 0.8,
        "definition": "simclr_v2",
    },
    "grayscale": {"probability": 0.2},
}

_MOCO_V1_VIEW = {
    "count": 2,
    "crop": {"scale": (0.2, 1.0)},
    "grayscale": {"probability": 0.2},
    "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4},
    "flip": {},
}


def _mild_jitter(saturation: float, hue: float = 0.1, **options) -> dict:
    return {
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": saturation,
        "hue": hue,
        "probability": 0.8,
        **options,
    }


_MOCO_V2_VIEW = {
    "count": 2,
    "crop": {"scale": (0.2, 1.0)},
    "jitter": _mild_jitter(0.4),
    "grayscale": {"probability": 0.2},
    "blur": {"probability": 0.5},
    "flip": {},
}


def _asymmetric(crop: dict, blur: dict, jitter: dict, plain_blur: float = 1.0) -> list:
    """Two views that differ: one blurred, the other rarely blurred and sometimes solarized."""
    base = {
        "crop": crop,
        "flip": {},
        "jitter": _mild_jitter(0.2, **jitter),
        "grayscale": {"probability": 0.2},
    }
    return [
        {**base, "blur": {"probability": plain_blur, **blur}},
        {**base, "blur": {"probability": 0.1, **blur}, "solarize": {"probability": 0.2}},
    ]


_BICUBIC = {"interpolation": "bicubic"}
_DINO_GLOBAL = _asymmetric({"scale": (0.4, 1.0), **_BICUBIC}, {}, {})
_DINO_LOCAL = {
    "count": 8,
    "local": True,
    "crop": {"scale": (0.05, 0.4), **_BICUBIC},
    "flip": {},
    "jitter": _mild_jitter(0.2),
    "grayscale": {"probability": 0.2},
    "blur": {"probability": 0.5},
}

_DINOV2 = [
    *_asymmetric({"scale": (0.32, 1.0), **_BICUBIC}, {}, {}),
    {**_DINO_LOCAL, "crop": {"scale": (0.05, 0.32), **_BICUBIC}},
]

# For pictures of 32 to 96 pixels: blur would leave little of them, and a twentieth of 32 x 32 is
# 7 x 7 pixels.
_DINO_SMALL = [
    {name: options for name, options in view.items() if name != "blur"}
    for view in (*_DINO_GLOBAL, {**_DINO_LOCAL, "crop": {"scale": (0.1, 0.4), **_BICUBIC}})
]

RECIPES = {
    "simclr": {
        "source": "Chen et al. 2020, appendix A; google-research/simclr, color strength 1",
        **_PLAIN,
        "views": [_SIMCLR_VIEW],
    },
    "simclr_cifar": {
        "source": "Chen et al. 2020, appendix B.9: color strength 0.5 and no blur",
        **_PLAIN,
        "views": [_SIMCLR_CIFAR_VIEW],
    },
    "mocov1": {
        "source": "He et al. 2020, section 3.3; facebookresearch/moco main_moco.py",
        **_IMAGENET,
        "views": [_MOCO_V1_VIEW],
    },
    "mocov2": {
        "source": "Chen et al. 2020 (MoCo v2); facebookresearch/moco main_moco.py --aug-plus",
        **_IMAGENET,
        "views": [_MOCO_V2_VIEW],
    },
    "simsiam": {
        "source": "Chen & He 2021, section 3 and appendix A: MoCo v2's views",
        **_IMAGENET,
        "views": [_MOCO_V2_VIEW],
    },
    "byol": {
        "source": "Grill et al. 2020, appendix B, table 6; deepmind-research byol/utils",
        **_IMAGENET,
        "views": _asymmetric(
            {"scale": (0.08, 1.0), **_TF_BICUBIC},
            {"kernel_size": 0.1, "padding": "zero"},
            {"definition": "simclr_v1"},
        ),
    },
    "mocov3": {
        "source": "Chen et al. 2021 (MoCo v3), section 3; facebookresearch/moco-v3 main_moco.py",
        **_IMAGENET,
        "views": _asymmetric({"scale": (0.08, 1.0)}, {}, {}),
    },
    "barlow_twins": {
        "source": "Zbontar et al. 2021, section 2.2; facebookresearch/barlowtwins main.py",
        **_IMAGENET,
        "views": _asymmetric({"scale": (0.08, 1.0), **_BICUBIC}, {}, {}),
    },
    "vicreg": {
        "source": "Bardes et al. 2022, appendix C.1; facebookresearch/vicreg augmentations.py",
        **_IMAGENET,
        "views": _asymmetric({"scale": (0.08, 1.0), **_BICUBIC}, {}, {}),
    },
    "dino": {
        "source": "Caron et al. 2021, section 3.1; facebookresearch/dino main_dino.py",
        **_IMAGENET,
        "views": [*_DINO_GLOBAL, _DINO_LOCAL],
    },
    "dinov2": {
        "source": "Oquab et al. 2023, appendix B; facebookresearch/dinov2 ssl_default_config.yaml",
        **_IMAGENET,
        "views": _DINOV2,
    },
    "dino_small": {
        "source": "ours: DINO's views for small pictures, without blur, local crops from 10 %",
        **_IMAGENET,
        "views": _DINO_SMALL,
    },
    "clip": {
        "source": "Radford et al. 2021, section 2.3: a random crop only; open_clip's scale of it",
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
        "views": [{"crop": {"scale": (0.9, 1.0), **_BICUBIC}}],
    },
    "siglip": {
        "source": "big_vision, configs/proj/image_text: resized, values to [-1, 1]; crop as CLIP's",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "views": [{"crop": {"scale": (0.9, 1.0), **_BICUBIC}}],
    },
    "align": {
        "source": "Jia et al. 2021, section 5: random crop of 289 from 346, random flip",
        **_IMAGENET,
        "views": [{"crop": {"scale": (0.6976, 0.6976), "ratio": (1.0, 1.0)}, "flip": {}}],
    },
    "mae": {
        "source": "He et al. 2022, section 4 and table 8; facebookresearch/mae main_pretrain.py",
        **_IMAGENET,
        "views": [{"crop": {"scale": (0.2, 1.0), **_BICUBIC}, "flip": {}}],
    },
}
