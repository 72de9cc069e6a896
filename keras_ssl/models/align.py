"""ALIGN: a convolutional and a text encoder from keras-hub, many noisy captions."""

import keras
import numpy as np

from keras_ssl.losses import CLIPLoss
from keras_ssl.models.image_text import ImageTextTask
from keras_ssl.training.schedules import WarmupLinear


@keras.saving.register_keras_serializable(package="keras_ssl")
class ALIGN(ImageTextTask):
    """ALIGN: a large-scale image and noisy-text embedding.

    CLIP's loss with other encoders: an EfficientNet whose pooled map is the image's embedding, and
    a BERT whose class token goes through a linear layer to the same width. The targets are
    smoothed by 0.1, so that no single noisy caption is learned with certainty. The temperature
    `exp(-s)` is learned from 1.

    Args:
        backbone: image encoder, an EfficientNet in the paper: `keras_ssl.backbones.EfficientNet`,
            as released weights have it, or `keras_hub.models.EfficientNetBackbone`.
        text_backbone: text encoder, a BERT in the paper: `keras_ssl.backbones.BertEncoder`, as
            released weights have it, or `keras_hub.models.BertBackbone`.
        projection_dim: width of the common space; the image encoder's when `None`. Another one adds
            a linear layer to the image side as well.
        tokenizer: what belongs to the text encoder, e.g. a
            `keras_hub.models.BertTextClassifierPreprocessor`; see `ImageTextTask`.
        text_pooling: `"token"`: the class token; see `ImageTextTask`.
        lock_image: train the text side only (LiT).
        match_duplicates: count equal captions in a batch as fitting; `False` is the paper's way.
        label_smoothing: of the targets, in [0, 1).
        temperature: start value of `exp(-s)`.
        pooling: `"token"` or `"mean"`, where the image encoder gives tokens.
        augmenter: one view of images in `[0, 255]`; `"auto"` is the paper's: a random crop of a
            fixed size and a flip.
        preprocessor: for `predict` and `evaluate`; `"auto"` resizes and normalises as the views.
        seed: int, of the views.
        name: name of the model.

    Example:

    ```python
    image_encoder = keras_ssl.backbones.small_resnet((32, 32, 3))
    text_encoder = keras_hub.models.BertBackbone(
        vocabulary_size=100, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32
    )
    model = keras_ssl.models.ALIGN(image_encoder, text_encoder, tokenizer=None)
    images = np.random.randint(0, 256, (8, 32, 32, 3), "uint8")
    token_ids = np.random.randint(1, 100, (8, 6))
    model.fit(images, token_ids, batch_size=8, verbose=0)
    ```

    Reference:
        Jia et al., Scaling Up Visual and Vision-Language Representation Learning With Noisy Text
        Supervision, 2021, sections 4 and 5.
    """

    def __init__(
        self,
        backbone,
        text_backbone,
        projection_dim: int | None = None,
        tokenizer="auto",
        text_pooling: str = "token",
        lock_image: bool = False,
        match_duplicates: bool = True,
        label_smoothing: float = 0.1,
        temperature: float = 1.0,
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
            image_head=None if projection_dim is None else "projection",
            text_pooling=text_pooling,
            text_projection_bias=True,
            lock_image=lock_image,
            match_duplicates=match_duplicates,
            logit_scale=-np.log(temperature),
            pooling=pooling,
            augmenter=augmenter,
            preprocessor=preprocessor,
            seed=seed,
            name=name,
            recipe="align",
        )
        # As given: a width of its own asks for a layer on the image side, `None` for none.
        self.projection_option = projection_dim
        self.label_smoothing = label_smoothing
        self.temperature = temperature

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """LAMB, weight decay 1e-5, learning rate 1e-3 with warm-up, then linear to zero.

        10,000 steps of warm-up as in section 5, or a tenth of a short run; no decay of gains,
        biases and the temperature.
        """
        schedule = WarmupLinear(
            self._auto_compile["learning_rate"] or 1e-3,
            total_steps=total_steps,
            warmup_steps=min(10_000, total_steps // 10),
        )
        optimizer = keras.optimizers.Lamb(schedule, weight_decay=1e-5)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "logit_scale"])
        return optimizer

    def get_config(self):
        config = super().get_config()
        config.pop("image_head")  # follows from the width
        return {
            **config,
            "projection_dim": self.projection_option,
            "label_smoothing": self.label_smoothing,
            "temperature": self.temperature,
        }
