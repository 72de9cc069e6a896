"""Models small enough that a test takes seconds, and their pictures."""

import keras
import numpy as np

from keras_ssl.augmentation import Views
from keras_ssl.backbones import ViTBackbone
from keras_ssl.models import (
    BYOL,
    DINO,
    MAE,
    BarlowTwins,
    DINOv2,
    MoCo,
    MoCoV3,
    SimCLR,
    SimSiam,
    VICReg,
)


def vit(**kwargs) -> ViTBackbone:
    defaults = dict(image_shape=(16, 16, 3), patch_size=4, hidden_dim=16, num_layers=2, num_heads=2)
    return ViTBackbone(**{**defaults, **kwargs})


def mae(backbone=None, **kwargs) -> MAE:
    defaults = dict(decoder_hidden_dim=8, decoder_num_layers=1, decoder_num_heads=2, seed=1)
    backbone = backbone or vit(position_embedding="sincos", initializer="mae")
    return MAE(backbone, **{**defaults, **kwargs})


def simclr(backbone=None, **kwargs) -> SimCLR:
    return SimCLR(backbone or vit(), **{**dict(projection_dim=8, seed=1), **kwargs})


def crops(size: int = 16) -> Views:
    """Two crops of a picture: what compiles fast. The papers' own recipes are `"auto"`."""
    return Views([{"count": 2, "crop": {"scale": (0.2, 1.0)}, "flip": {}}], size=size, seed=1)


def moco(backbone=None, **kwargs) -> MoCo:
    defaults = dict(projection_dim=8, queue_size=20, seed=1, augmenter=crops())
    return MoCo(backbone or vit(num_layers=1), **{**defaults, **kwargs})


def byol(backbone=None, **kwargs) -> BYOL:
    defaults = dict(projection_dim=8, projection_hidden_dim=12, seed=1, augmenter=crops())
    return BYOL(backbone or vit(num_layers=1), **{**defaults, **kwargs})


def moco_v3(backbone=None, **kwargs) -> MoCoV3:
    if backbone is None:
        backbone = vit(
            num_layers=1,
            position_embedding="sincos_moco_v3",
            initializer="moco_v3",
            freeze_patch_projection=True,
        )
    defaults = dict(projection_dim=8, projection_hidden_dim=12, seed=1, augmenter=crops())
    return MoCoV3(backbone, **{**defaults, **kwargs})


def simsiam(backbone=None, **kwargs) -> SimSiam:
    defaults = dict(projection_dim=8, projection_hidden_dim=12, seed=1, augmenter=crops())
    return SimSiam(backbone or vit(num_layers=1), **{**defaults, **kwargs})


def barlow_twins(backbone=None, **kwargs) -> BarlowTwins:
    defaults = dict(projection_dim=8, seed=1, augmenter=crops())
    return BarlowTwins(backbone or vit(num_layers=1), **{**defaults, **kwargs})


def vicreg(backbone=None, **kwargs) -> VICReg:
    defaults = dict(projection_dim=8, seed=1, augmenter=crops())
    return VICReg(backbone or vit(num_layers=1), **{**defaults, **kwargs})


def dino(backbone=None, **kwargs) -> DINO:
    defaults = dict(output_dim=24, hidden_dim=12, bottleneck_dim=8, seed=1)
    views = [
        {"count": 2, "crop": {"scale": (0.4, 1.0)}, "flip": {}},
        {"count": 2, "local": True, "crop": {"scale": (0.1, 0.4)}},
    ]
    defaults["augmenter"] = Views(views, size=16, local_size=8, seed=1)
    return DINO(backbone or vit(num_layers=1), **{**defaults, **kwargs})


def dinov2(backbone=None, **kwargs) -> DINOv2:
    defaults = dict(output_dim=24, hidden_dim=12, bottleneck_dim=8, seed=1)
    defaults["augmenter"] = dino().augmenter
    return DINOv2(backbone or vit(num_layers=1, use_mask_token=True), **{**defaults, **kwargs})


METHODS = {
    "barlow_twins": barlow_twins,
    "byol": byol,
    "dino": dino,
    "dinov2": dinov2,
    "mae": mae,
    "moco": moco,
    "moco_v3": moco_v3,
    "simclr": simclr,
    "simsiam": simsiam,
    "vicreg": vicreg,
}


def images(count: int = 24, size: int = 20, seed: int = 0) -> np.ndarray:
    """Coloured ramps with noise, uint8: pictures that differ and have something to learn."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, size)
    colours = rng.random((count, 1, 1, 3))
    slopes = rng.normal(size=(count, 2, 1, 1, 3))
    pictures = colours + slopes[:, 0] * ramp[:, None, None] + slopes[:, 1] * ramp[None, :, None]
    pictures += 0.05 * rng.normal(size=pictures.shape)
    return (np.clip(pictures, 0, 1) * 255).astype("uint8")


def to_numpy(x) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(x))


def fill(model, seed: int = 0, scale: float = 0.1) -> None:
    """The same weights on every backend: trainable variables from NumPy's generator, by order."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        start = 1.0 if variable.path.endswith("gamma") else 0.0
        variable.assign((start + scale * rng.normal(size=variable.shape)).astype("float32"))
