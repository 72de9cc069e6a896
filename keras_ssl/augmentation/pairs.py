"""Views of pairs of pictures that show the same thing."""

import keras
from keras import ops

from keras_ssl.augmentation.recipes import RECIPES
from keras_ssl.augmentation.views import Views


@keras.saving.register_keras_serializable(package="keras_ssl")
class PairedViews(keras.layers.Layer):
    """One random view of each picture of a pair, for methods that learn from two views.

    Where a method takes two views of one picture, this takes one view of each of two pictures that
    belong together: neighbouring frames of a video, a thing seen by two cameras, drawn by two
    hands. Use it as a method's `augmenter`, and give `fit` batches of pairs, for example
    `keras_ssl.datasets.ImagePairs`.

    Args:
        recipe: name of a recipe of `keras_ssl.augmentation.RECIPES` with two views, or a list of
            one view (for both pictures) or two (one for each), written like those of the table.
        size: height and width of the views, or one integer.
        mean, std: per-channel constants for values in [0, 1]; default the recipe's.
        seed: int, or `None`.

    Call arguments:
        images: a pair of batches `(B, H, W, 3)`, uint8 or float in [0, 255]; or one batch, of which
            both views are then taken.
        training: as for `Views`.

    Returns:
        A tuple of two batches of views `(B, height, width, 3)`: `(of the first, of the second)`.

    Raises:
        ValueError: for a recipe that has not two views, or more than two pictures.

    Example:

    >>> frames = np.random.default_rng(0).integers(0, 256, (2, 4, 40, 40, 3), "uint8")
    >>> views = PairedViews("simclr_cifar", size=32, seed=0)((frames[0], frames[1]))
    >>> len(views), views[0].shape[1]
    (2, 32)
    """

    def __init__(
        self, recipe: str | list = "simclr", size=224, mean=None, std=None, seed=None, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        if isinstance(recipe, str):
            if recipe not in RECIPES:
                raise ValueError(
                    f"`recipe` must be one of {sorted(RECIPES)} or a list of views. "
                    f"Received: recipe={recipe!r}"
                )
            table = RECIPES[recipe]
            mean = table["mean"] if mean is None else mean
            std = table["std"] if std is None else std
        else:
            table = {"views": recipe}
        kinds = [dict(view) for view in table["views"]]
        counts = [view.pop("count", 1) for view in kinds]
        if counts not in ([1], [2], [1, 1]) or any(view.get("local") for view in kinds):
            raise ValueError(
                "A pair needs a recipe of two views (or a list of one, for both), none of them "
                f"local. Received: recipe={recipe!r}"
            )
        self.recipe = recipe
        self.seed = seed
        self.views = [
            Views([view], size, mean=mean, std=std, seed=None if seed is None else seed + i)
            for i, view in enumerate(kinds)
        ]
        # What `predict` must scale pictures by.
        self.size, self.mean, self.std = (
            getattr(self.views[0], k) for k in ("size", "mean", "std")
        )
        self.built = True

    def call(self, images, training=None):
        if not isinstance(images, (tuple, list)):
            images = (images, images)
        if len(images) != 2:
            raise ValueError(f"Expected a pair of batches. Received: {len(images)} of them")
        if len(self.views) == 2:
            pairs = zip(self.views, images, strict=True)
            return tuple(views(batch, training=training)[0] for views, batch in pairs)
        both = self.views[0](ops.concatenate(images, axis=0), training=training)[0]
        return tuple(ops.split(both, 2, axis=0))

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        own = {key: getattr(self, key) for key in ("recipe", "size", "mean", "std", "seed")}
        return {**config, **own}
