"""The base of CLIP, ALIGN and SigLIP: two encoders, one space, pairs as data."""

import keras
import numpy as np
from keras import ops

from keras_ssl.backbones.text_transformer import TEXT_POOLINGS, pool_text
from keras_ssl.layers.attention_pooling import AttentionPooling
from keras_ssl.losses import CLIPLoss
from keras_ssl.losses.clip import positive_mask
from keras_ssl.models.features import feature_dim, pool_features
from keras_ssl.models.pair_training import PairTraining
from keras_ssl.models.ssl_task import SSLTask
from keras_ssl.tokenizers import CLIPTokenizer
from keras_ssl.training.cached_gradients import in_micro_batches
from keras_ssl.training.cross_device import all_gather, replica_id
from keras_ssl.training.device import predict_arrays

IMAGE_HEADS = ("projection", "attention", None)


@keras.saving.register_keras_serializable(package="keras_ssl")
class AtMost(keras.constraints.Constraint):
    """Keeps a variable at or below a value."""

    def __init__(self, value: float):
        self.value = value

    def __call__(self, w):
        return ops.minimum(w, self.value)

    def get_config(self):
        return {"value": self.value}


class ImageTextTask(PairTraining, SSLTask):
    """Base class of the methods that bring images and their captions into one space.

    `fit(images, texts)` trains on pairs, `predict(images)` and `encode_text(texts)` give unit
    vectors of the same space, `classify(images, class_names)` gives probabilities without any
    training on the classes.

    Texts are strings, or ids `(N, L)` with 0 as filling. `(N, C)` strings, or ids `(N, C, L)`, are
    C captions of each image, and all of them fit it. Empty captions are missing ones and left out
    of the loss. Equal captions in a batch, and rows with equal `image_ids`, count as fitting pairs,
    not as negatives. Datasets yield `(images, texts)` or dicts with the keys `"images"`, `"texts"`
    (or `"token_ids"`) and maybe `"image_ids"` `(N,)`.

    A method gives `contrastive_loss` and defines `default_optimizer`.

    Args:
        backbone: the image encoder, as in `SSLTask`.
        text_backbone: a `keras_ssl.backbones.TextTransformer` or a text backbone of keras-hub.
        contrastive_loss: a `CLIPLoss` or `SigLIPLoss`.
        projection_dim: width of the common space; that of the image features when `None`.
        tokenizer: callable from a list of strings to ids `(N, L)`, or to a dict with `"token_ids"`
            (keras-hub's preprocessors); `"auto"` is CLIP's, which cuts captions that are too long,
            where the text encoder has room for its ids; or `None`: then texts are ids.
        image_head: `"projection"` (a linear layer without bias), `"attention"` (attention pooling
            over the tokens, and a projection where its width is not `projection_dim`) or `None`:
            the pooled features are the embedding.
        text_pooling: `"end"`, `"last"`, `"token"` or `"mean"`; see `backbones.pool_text`.
        text_projection_bias: bias on the texts' linear layer.
        lock_image: locked-image tuning: the image encoder keeps its weights and statistics, and
            only the text side (and the image head) learns to match it.
        match_duplicates: count equal captions in a batch as fitting. The papers' codes do not.
        logit_scale: start value of the log factor of the similarities.
        max_logit_scale: what the factor itself never exceeds; `None` for no limit.
        logit_bias: start value of the bias, or `None` for none.
        pooling, augmenter, preprocessor, seed, name, recipe: as in `SSLTask`. In `evaluate` the
            images go through the preprocessor, not the augmenter.
    """

    def __init__(
        self,
        backbone,
        text_backbone,
        contrastive_loss,
        projection_dim,
        tokenizer="auto",
        image_head="projection",
        text_pooling="end",
        text_projection_bias=False,
        lock_image=False,
        match_duplicates=True,
        logit_scale=0.0,
        max_logit_scale=None,
        logit_bias=None,
        pooling=None,
        augmenter="auto",
        preprocessor="auto",
        seed=None,
        name=None,
        recipe="clip",
    ):
        if image_head not in IMAGE_HEADS or text_pooling not in TEXT_POOLINGS:
            raise ValueError(
                f"`image_head` must be one of {IMAGE_HEADS} and `text_pooling` one of "
                f"{TEXT_POOLINGS}. Received: image_head={image_head!r}, "
                f"text_pooling={text_pooling!r}"
            )
        super().__init__(
            backbone,
            pooling=pooling,
            augmenter=augmenter,
            preprocessor=preprocessor,
            seed=seed,
            name=name,
            recipe=recipe,
        )
        self.text_backbone = text_backbone
        self.contrastive_loss = contrastive_loss
        if tokenizer == "auto":
            tokenizer = _default_tokenizer(text_backbone)
        self.tokenizer = tokenizer
        self.image_head = image_head
        self.text_pooling = text_pooling
        self.lock_image = lock_image
        self.match_duplicates = match_duplicates

        policy = self.dtype_policy
        width = feature_dim(backbone, self.pooling)
        projection_dim = projection_dim or width
        self.projection_dim = projection_dim
        self.attention_pooling = self.image_projection = None
        if image_head == "attention":
            self.attention_pooling = AttentionPooling(
                backbone.num_heads,
                mlp_dim=getattr(backbone, "mlp_dim", None),
                activation=getattr(backbone, "activation", "gelu_tanh"),
                layer_norm_epsilon=getattr(backbone, "layer_norm_epsilon", 1e-6),
                dtype=policy,
                name="attention_pooling",
            )
            self.attention_pooling.build((None, None, width))
        if image_head == "projection" or (image_head and width != projection_dim):
            self.image_projection = _projection(projection_dim, width, policy, "image_projection")
        elif width != projection_dim:
            raise ValueError(
                "Without an image head the image encoder's width must be `projection_dim`. "
                f"Received: width {width}, projection_dim={projection_dim}"
            )
        text_width = text_backbone.hidden_dim
        self.text_projection = _projection(
            projection_dim, text_width, policy, "text_projection", use_bias=text_projection_bias
        )
        self.logit_scale = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(logit_scale),
            constraint=None if max_logit_scale is None else AtMost(float(np.log(max_logit_scale))),
            name="logit_scale",
        )
        self.logit_bias = None
        if logit_bias is not None:
            self.logit_bias = self.add_weight(
                shape=(), initializer=keras.initializers.Constant(logit_bias), name="logit_bias"
            )
        if lock_image:
            for variable in backbone.variables:
                variable.trainable = False
        if isinstance(contrastive_loss, CLIPLoss):
            self.accuracy = keras.metrics.Mean(name="image_to_text_accuracy")

    # === Features, in the graph ===

    def encode(self, images, training=False, backbone=None):
        """Image features `(N, projection_dim)` of prepared images, not normalised."""
        backbone = self.backbone if backbone is None else backbone

        def features(images):
            # A locked encoder's batch normalisation keeps its statistics.
            x = _call(backbone, images, "images", training and not self.lock_image)
            if self.attention_pooling is not None:
                return self.attention_pooling(x)
            return pool_features(backbone, x, self.pooling)

        x = in_micro_batches(self, backbone, features, images, training)
        return x if self.image_projection is None else self.image_projection(x)

    def encode_ids(self, token_ids, training=False):
        """Text features `(N, projection_dim)` of ids `(N, L)`, not normalised."""

        def features(token_ids):
            tokens = _call(self.text_backbone, token_ids, "token_ids", training)
            if isinstance(tokens, dict):
                tokens = tokens["sequence_output"]
            return pool_text(tokens, token_ids, self.text_pooling)

        x = in_micro_batches(self, self.text_backbone, features, token_ids, training)
        return self.text_projection(x)

    def call(self, inputs, training=False):
        if not self._loss_only and isinstance(inputs, dict) and "images" not in inputs:
            return self.encode_ids(inputs["token_ids"], training=training)
        return super().call(inputs, training=training)

    # === The loss ===

    def pairs(self, token_ids, image_ids=None):
        """Which of a batch's texts fit which images, and which take part.

        Args:
            token_ids: int `(N, L)` or `(N, C, L)`.
            image_ids: int `(N,)`: rows of one picture have the same; `None` if all differ.

        Returns:
            `positives` and `sample_mask` of `CLIPLoss`; `None` for what is not needed.
        """
        rows = ops.cast(ops.arange(ops.shape(token_ids)[0]), "int32")
        several = len(token_ids.shape) == 3
        ids = ops.cast(token_ids, "int32")
        if image_ids is None:
            image_ids = rows + replica_id() * ops.shape(token_ids)[0]
        image_ids = ops.reshape(ops.cast(image_ids, "int32"), (-1, 1))
        captions = ids.shape[1] if several else 1
        ids = ops.reshape(ids, (-1, captions, ids.shape[-1]))
        present = ops.any(ids != 0, axis=-1)  # N x C
        mask = (ops.any(present, axis=1), ops.reshape(present, (-1,)))
        owner = ops.reshape(ops.repeat(image_ids, captions, axis=1), (-1, 1))  # NC x 1
        if not self.match_duplicates:
            return (image_ids, owner), mask
        # Products and sums wrap around: a 32-bit hash of a caption, equal for two different ones
        # with a probability of 2e-10.
        factors = np.random.default_rng(0).integers(0, 2**31, ids.shape[-1], "int64") | 1
        hashes = ops.cast(ops.sum(ids * factors.astype("int32"), axis=-1), "int32")  # N x C
        own = ops.repeat(ops.reshape(hashes, (-1, 1)), captions, axis=1)  # NC x C
        image_labels = ops.concatenate([image_ids, hashes], axis=1)
        text_labels = ops.concatenate([owner, own], axis=1)
        return (image_labels, text_labels), mask

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        images, token_ids = x["images"], x["token_ids"]
        if training or self.augmenter is None or self.preprocessor is None:
            images = self.make_views(images, training)[0]
        else:
            images = self.preprocess(images)
        positives, mask = self.pairs(token_ids, x.get("image_ids"))
        token_ids = ops.reshape(token_ids, (-1, token_ids.shape[-1]))
        image_features = self.encode(images, training)  # N x D
        text_features = self.encode_ids(token_ids, training)  # N C x D
        arguments = (image_features, text_features, self.logit_scale, self.logit_bias)
        if not isinstance(self.contrastive_loss, CLIPLoss):
            return self.contrastive_loss(*arguments, positives=positives, sample_mask=mask)
        loss, logits = self.contrastive_loss(
            *arguments, positives=positives, sample_mask=mask, return_logits=True
        )
        best = ops.argmax(ops.stop_gradient(logits), axis=1)[:, None]
        fits = positive_mask((positives[0], all_gather(positives[1])))
        fits = ops.cast(fits, "int32")
        hit = ops.take_along_axis(fits, ops.cast(best, "int32"), axis=1)[:, 0]
        self.accuracy.update_state(hit, sample_weight=ops.cast(mask[0], "float32"))
        return loss

    # === Embeddings and what they are for ===

    def predict(self, x, batch_size=None, **kwargs):
        """Unit vectors `(N, projection_dim)` of images, float32; arguments as in `SSLTask`."""
        return _unit(super().predict(x, batch_size=batch_size, **kwargs))

    def encode_image(self, images, batch_size=32, normalize=True) -> np.ndarray:
        """Embeddings of images, `(N, projection_dim)`, as unit vectors unless told otherwise."""
        features = super().predict(images, batch_size=batch_size, verbose=0)
        return _unit(features) if normalize else features

    def encode_text(self, texts, batch_size=32, normalize=True) -> np.ndarray:
        """Embeddings of texts.

        Args:
            texts: a string, a list of strings, or ids `(N, L)`.
            batch_size: texts in a batch.
            normalize: make them unit vectors.

        Returns:
            float32 `(N, projection_dim)`.

        Raises:
            ValueError: ids are no whole numbers, or outside the text encoder's vocabulary.
        """
        ids = np.asarray(self.tokenize(texts), "int32")
        features = predict_arrays(self, {"token_ids": ids}, batch_size, verbose=0)
        features = np.asarray(features, "float32")
        return _unit(features) if normalize else features

    def classify(self, images, class_names, templates="simple", batch_size=32) -> np.ndarray:
        """Probabilities of classes that are given by name only (zero-shot).

        Args:
            images: `(N, height, width, channels)` in `[0, 255]`.
            class_names: K names.
            templates: as in `keras_ssl.evaluation.zero_shot_classifier`.
            batch_size: images in a batch.

        Returns:
            `(N, K)`, rows that sum to 1.
        """
        from keras_ssl.evaluation.zero_shot import zero_shot_classifier

        classifier = zero_shot_classifier(self, class_names, templates, batch_size=batch_size)
        return classifier(images, batch_size=batch_size)

    def interpolate_weights(self, start_weights, alpha: float) -> None:
        """Weights between those before fine-tuning and the present ones (WiSE-FT).

        `w = (1 - alpha) start + alpha w` for every weight. Between the zero-shot model and the
        fine-tuned one there are often weights that are better than both, on the new task and off
        it.

        Args:
            start_weights: what `get_weights()` gave before fine-tuning.
            alpha: in [0, 1]; 1 changes nothing.

        Reference:
            Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, 2022, equation 1.
        """
        weights = self.get_weights()
        if not 0 <= alpha <= 1 or [w.shape for w in weights] != [w.shape for w in start_weights]:
            raise ValueError(
                "`alpha` must lie in [0, 1] and `start_weights` be those of this architecture. "
                f"Received: alpha={alpha}, {len(start_weights)} arrays for {len(weights)}"
            )
        self.set_weights(
            [
                (1 - alpha) * a + alpha * b if np.issubdtype(b.dtype, np.floating) else b
                for a, b in zip(start_weights, weights, strict=True)
            ]
        )

    # === Saving ===

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for key in ("text_backbone", "tokenizer", "loss"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        return super().from_config(config)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "text_backbone": serialize(self.text_backbone),
            "projection_dim": self.projection_dim,
            "tokenizer": self.tokenizer and serialize(self.tokenizer),
            "image_head": self.image_head,
            "text_pooling": self.text_pooling,
            "lock_image": self.lock_image,
            "match_duplicates": self.match_duplicates,
        }


def _projection(units, width, policy, name, use_bias=False):
    layer = keras.layers.Dense(
        units,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
        dtype=policy,
        name=name,
    )
    layer.build((None, width))
    return layer


def _default_tokenizer(text_backbone):
    tokenizer = CLIPTokenizer(getattr(text_backbone, "context_length", 77), truncate=True)
    fits = getattr(text_backbone, "vocabulary_size", 0) >= tokenizer.vocabulary_size
    return tokenizer if fits else None


def _call(backbone, tensor, name, training):
    """A backbone on one tensor; where it takes a dict (keras-hub), on all that it asks for."""
    inputs = getattr(backbone, "input", None)
    if isinstance(inputs, dict):
        given = {name: tensor}
        if name == "token_ids":
            given["padding_mask"] = ops.cast(tensor != 0, "int32")
            given["segment_ids"] = ops.zeros_like(tensor)
        tensor = {key: given[key] for key in inputs}
    return backbone(tensor, training=training)


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
