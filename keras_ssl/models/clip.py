"""CLIP: images and texts find each other in a batch."""

import keras
import numpy as np

from keras_ssl.backbones import ModifiedResNet
from keras_ssl.losses import CLIPLoss
from keras_ssl.models.image_text import ImageTextTask
from keras_ssl.training.optimizers import AdamW
from keras_ssl.training.schedules import WarmupCosine


@keras.saving.register_keras_serializable(package="keras_ssl")
class CLIP(ImageTextTask):
    """CLIP: contrastive language-image pretraining.

    With `x[i] = W_x f(image i)` and `y[i] = W_y g(text i)`, made unit vectors, and a learned log
    temperature `s`:

    ```
    l[i, j] = exp(s) x[i] . y[j]
    loss    = (cross entropy of the rows of l + that of its columns) / 2, target i = j
    ```

    `exp(s)` starts at 1 / 0.07 and is kept at or below 100. `predict(images)` and
    `encode_text(texts)` give the unit vectors; `classify(images, class_names)` needs no training.

    Args:
        backbone: image encoder: a `ViTBackbone` (CLIP's own has `use_pre_norm=True`,
            `patch_bias=False`, `activation="quick_gelu"`, `layer_norm_epsilon=1e-5`,
            `initializer="clip"`), a `ModifiedResNet` (which ends with its projection), or any
            image backbone of keras-hub, `CLIPVisionEncoder` among them.
        text_backbone: a `TextTransformer`, or a text backbone of keras-hub.
        projection_dim: width of the common space; the output width of a `ModifiedResNet`.
        tokenizer: see `ImageTextTask`; `"auto"` is CLIP's.
        text_pooling: `"end"` is CLIP's: the feature at the end token.
        lock_image: train the text side only (LiT).
        match_duplicates: count equal captions in a batch as fitting; `False` is the paper's code.
        label_smoothing: of the targets, in [0, 1).
        temperature: start value of `exp(-s)`.
        pooling: `"token"` or `"mean"`: how tokens become a vector.
        augmenter: one view of images in `[0, 255]`; `"auto"` is a random crop of 90 to 100 % of the
            area at the encoder's size. With `None` the images are used as they are.
        preprocessor: for `predict` and `evaluate`; `"auto"` resizes and normalises as the views.
        seed: int, of the views.
        name: name of the model.

    Example:

    ```python
    image_encoder = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=8
    )
    text_encoder = keras_ssl.backbones.TextTransformer.from_size("text_nano")
    model = keras_ssl.models.CLIP(image_encoder, text_encoder, projection_dim=64)
    images = np.random.randint(0, 256, (8, 32, 32, 3), "uint8")
    model.fit(images, [f"picture number {i}" for i in range(8)], batch_size=8, verbose=0)
    model.classify(images, ["cat", "dog"]).shape  # (8, 2)
    ```

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
        LiT: Zhai et al., LiT: Zero-Shot Transfer with Locked-image Text Tuning, 2022.
    """

    def __init__(
        self,
        backbone,
        text_backbone,
        projection_dim: int = 512,
        tokenizer="auto",
        text_pooling: str = "end",
        lock_image: bool = False,
        match_duplicates: bool = True,
        label_smoothing: float = 0.0,
        temperature: float = 0.07,
        pooling: str | None = None,
        augmenter="auto",
        preprocessor="auto",
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            backbone,
            text_backbone,
            CLIPLoss(label_smoothing=label_smoothing),
            projection_dim,
            tokenizer=tokenizer,
            # CLIP's ResNets project in their attention pooling.
            image_head=None if isinstance(backbone, ModifiedResNet) else "projection",
            text_pooling=text_pooling,
            lock_image=lock_image,
            match_duplicates=match_duplicates,
            logit_scale=-np.log(temperature),
            max_logit_scale=100.0,
            pooling=pooling,
            augmenter=augmenter,
            preprocessor=preprocessor,
            seed=seed,
            name=name,
            recipe="clip",
        )
        self.label_smoothing = label_smoothing
        self.temperature = temperature

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """AdamW(0.9, 0.98, epsilon 1e-6), weight decay 0.2, warm-up and cosine to zero.

        Learning rate 5e-4 as for ViT-B (table 20), at any batch size; 2000 steps of warm-up, or a
        tenth of a short run. Gains, biases and the temperature are not decayed (section 2.5).
        """
        schedule = WarmupCosine(
            self._auto_compile["learning_rate"] or 5e-4,
            total_steps=total_steps,
            warmup_steps=min(2000, total_steps // 10),
        )
        return AdamW(
            schedule,
            weight_decay=0.2,
            beta_1=0.9,
            beta_2=0.98,
            epsilon=1e-6,
            exclude_from_weight_decay=["bias$", "gamma$", "beta$", "logit_scale$"],
        )

    def get_config(self):
        config = super().get_config()
        config.pop("image_head")  # follows from the backbone
        return {
            **config,
            "label_smoothing": self.label_smoothing,
            "temperature": self.temperature,
        }
