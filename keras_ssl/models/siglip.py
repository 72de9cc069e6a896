"""SigLIP: every image-text pair is asked on its own whether it fits."""

import keras
import numpy as np

from keras_ssl.backbones import ViTBackbone
from keras_ssl.losses import SigLIPLoss
from keras_ssl.models.image_text import ImageTextTask
from keras_ssl.training.optimizers import AdamW
from keras_ssl.training.schedules import WarmupCosine


@keras.saving.register_keras_serializable(package="keras_ssl")
class SigLIP(ImageTextTask):
    """SigLIP: sigmoid loss for language-image pretraining.

    With unit vectors `x[i]` of images, `y[j]` of texts, a learned log factor `s` and bias `b`:

    `loss = -(1 / N) sum_ij log sigmoid(z[i, j] (exp(s) x[i] . y[j] + b))`, `z = 1` where text `j`
    fits image `i`, else -1.

    `s` starts at log 10 and `b` at -10, so that the many pairs that do not fit start near zero
    loss. No softmax over the batch: small batches do well, and large ones are computed in blocks,
    with memory linear in the batch.

    Args:
        backbone: image encoder; SigLIP's own is a `ViTBackbone` with `use_class_token=False` and
            `activation="gelu_tanh"`.
        text_backbone: SigLIP's own is a `TextTransformer` with `causal=False`,
            `activation="gelu_tanh"`, `layer_norm_epsilon=1e-6`.
        projection_dim: width of the common space; the image encoder's when `None`.
        tokenizer: see `ImageTextTask`. The released models have a SentencePiece vocabulary of their
            own, which is not part of this package.
        image_head: `"attention"` pooling as in the paper's code (`"auto"` for a `ViTBackbone`), or
            `"projection"` (`"auto"` for others).
        text_pooling: `"last"` is SigLIP's.
        lock_image: train the text side only (LiT).
        match_duplicates: count equal captions in a batch as fitting; `False` is the paper's code.
        block_size: rows of the loss's matrix that exist at a time; see `SigLIPLoss`.
        pooling: `"token"` or `"mean"`, with `image_head="projection"`.
        augmenter: one view of images in `[0, 255]`; `"auto"` is a random crop of 90 to 100 % of the
            area. With `None` the images are used as they are.
        preprocessor: for `predict` and `evaluate`; `"auto"` resizes and normalises as the views.
        seed: int, of the views.
        name: name of the model.

    Example:

    ```python
    image_encoder = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=8, use_class_token=False
    )
    text_encoder = keras_ssl.backbones.TextTransformer.from_size("text_nano", causal=False)
    model = keras_ssl.models.SigLIP(image_encoder, text_encoder)
    images = np.random.randint(0, 256, (8, 32, 32, 3), "uint8")
    model.fit(images, [f"picture number {i}" for i in range(8)], batch_size=8, verbose=0)
    ```

    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023.
    """

    def __init__(
        self,
        backbone,
        text_backbone,
        projection_dim: int | None = None,
        tokenizer="auto",
        image_head: str = "auto",
        text_pooling: str = "last",
        lock_image: bool = False,
        match_duplicates: bool = True,
        block_size: int | str | None = "auto",
        pooling: str | None = None,
        augmenter="auto",
        preprocessor="auto",
        seed: int | None = None,
        name: str | None = None,
    ):
        if image_head == "auto":
            image_head = "attention" if isinstance(backbone, ViTBackbone) else "projection"
        super().__init__(
            backbone,
            text_backbone,
            SigLIPLoss(block_size=block_size),
            projection_dim,
            tokenizer=tokenizer,
            image_head=image_head,
            text_pooling=text_pooling,
            text_projection_bias=True,
            lock_image=lock_image,
            match_duplicates=match_duplicates,
            logit_scale=np.log(10.0),
            logit_bias=-10.0,
            pooling=pooling,
            augmenter=augmenter,
            preprocessor=preprocessor,
            seed=seed,
            name=name,
            recipe="siglip",
        )
        self.block_size = block_size

    def default_optimizer(self, total_steps, batch_size, steps_per_epoch):
        """AdamW(0.9, 0.95), weight decay 1e-4, warm-up and cosine to zero (section 4).

        Learning rate 1e-3 at any batch size; a tenth of the run is warm-up. Adam's second moment
        forgets faster than usual (0.95), which keeps large batches stable (section 4.6).
        """
        schedule = WarmupCosine(
            self._auto_compile["learning_rate"] or 1e-3,
            total_steps=total_steps,
            warmup_steps=total_steps // 10,
        )
        return AdamW(
            schedule,
            weight_decay=1e-4,
            beta_2=0.95,
            exclude_from_weight_decay=["bias$", "gamma$", "beta$", "logit_"],
        )

    def get_config(self):
        return {**super().get_config(), "block_size": self.block_size}
