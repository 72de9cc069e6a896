"""Going on at another image size: the last stage of DINOv2's training, and of others."""

import keras
from keras import ops

from keras_ssl.augmentation import Views
from keras_ssl.layers.image_converter import default_preprocessor
from keras_ssl.training.momentum_teacher import weights_of


def at_image_size(model, size: int | tuple[int, int]):
    """The same model for images of another size, with all its weights.

    The position embeddings are interpolated as for any image of that size, once, and train on
    from there; every other variable of the networks is taken over. Views made by a
    `keras_ssl.augmentation.Views` are scaled with the size (local ones in whole patches), and a
    preprocessor is made anew. Counters and schedules begin at the start: it is a stage of its own.

    Args:
        model: a task whose networks are `ViTBackbone`s: the student, and the teacher if there is.
        size: height and width in pixels, or one integer; multiples of the patch size.

    Returns:
        A new model of the same class, not compiled.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=4, use_mask_token=True
    )
    model = keras_ssl.models.DINOv2.small(backbone)
    images = np.random.randint(0, 256, (32, 64, 64, 3), "uint8")
    finer = model.at_image_size(48)
    finer.fit(images, batch_size=16)
    ```

    Reference:
        Oquab et al., DINOv2, 2023, section 4: adapting the resolution.
    """
    height, width = (size, size) if isinstance(size, int) else size
    backbone = model.backbone
    backbone.grid_of(height, width)  # refuses what does not divide
    config = model.get_config()
    config["backbone"] = type(backbone).from_config(
        {**backbone.get_config(), "image_shape": (height, width, backbone.image_shape[-1])}
    )
    if isinstance(model.augmenter, Views):
        config["augmenter"] = _resized_views(model.augmenter, backbone, (height, width))
    if model.preprocessor is not None:
        config["preprocessor"] = default_preprocessor(config["backbone"], config["augmenter"])
    new = type(model).from_config(config)
    tables = {
        id(network.position_embedding): network
        for network in (backbone, getattr(model, "teacher_backbone", None))
        if network is not None
    }
    for target, source in zip(weights_of(new), weights_of(model), strict=True):
        if not keras.backend.is_float_dtype(source.dtype):
            continue  # counters
        if id(source) in tables:
            source = tables[id(source)].interpolate_position_embedding(height, width)
        target.assign(ops.convert_to_numpy(source).copy())
    return new


def _resized_views(views, backbone, size):
    config, patch = views.get_config(), backbone.patch_size
    local = (
        patch * max(1, round(side * new / old / patch))
        for side, new, old in zip(views.local_size, size, views.size, strict=True)
    )
    return type(views).from_config({**config, "size": size, "local_size": tuple(local)})
