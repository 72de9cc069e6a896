"""Zero-shot classification: classes given by their names."""

from collections.abc import Sequence

import numpy as np

from keras_ssl.evaluation.templates import TEMPLATES


class ZeroShotClassifier:
    """A linear classifier whose weights are embeddings of class names.

    Attributes:
        weights: float32 `(K, D)`, a unit vector for each class.
        class_names: the K names.
        model: whose `encode_image` makes the embeddings.

    Call arguments:
        images: `(N, height, width, channels)` in `[0, 255]`.
        batch_size: images in a batch.

    Returns:
        Probabilities `(N, K)`, `softmax(exp(s) x . w)` with the model's temperature.
    """

    def __init__(self, model, weights: np.ndarray, class_names: Sequence[str]):
        self.model = model
        self.weights = weights
        self.class_names = list(class_names)

    def __call__(self, images, batch_size: int = 32) -> np.ndarray:
        return self.from_embeddings(self.model.encode_image(images, batch_size=batch_size))

    def from_embeddings(self, embeddings) -> np.ndarray:
        """Probabilities from unit vectors `(N, D)` of images, made before."""
        logits = np.exp(float(self.model.logit_scale.numpy())) * (embeddings @ self.weights.T)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)


def zero_shot_classifier(
    model, class_names: Sequence[str], templates="simple", batch_size: int = 32
) -> ZeroShotClassifier:
    """A classifier for classes that are given by name only.

    Every name is put into every template, and the unit vectors of these prompts are averaged and
    made a unit vector again (prompt ensembling).

    Args:
        model: a `keras_ssl.models.CLIP`, `SigLIP` or `ALIGN`.
        class_names: K names.
        templates: `"name"` (the bare name), `"simple"` ("a photo of a {}."), `"imagenet_7"`,
            `"imagenet_80"` (the published ones), or strings with one `{}` each.
        batch_size: prompts in a batch.

    Returns:
        A `ZeroShotClassifier`: call it on images.

    Raises:
        ValueError: unknown templates, one without `{}`, or no names.

    Example:

    ```python
    model = keras_ssl.models.CLIP(
        keras_ssl.backbones.ViTBackbone.from_size(
            "vit_nano", image_shape=(32, 32, 3), patch_size=8
        ),
        keras_ssl.backbones.TextTransformer.from_size("text_nano"),
        projection_dim=64,
    )
    classify = keras_ssl.evaluation.zero_shot_classifier(model, ["cat", "dog"], "imagenet_7")
    classify(np.zeros((3, 32, 32, 3), "uint8")).shape  # (3, 2)
    ```

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        2021, section 3.1.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise ValueError(
                f"`templates` must be one of {sorted(TEMPLATES)}, or a list of strings. "
                f"Received: templates={templates!r}"
            )
        templates = TEMPLATES[templates]
    class_names, templates = list(class_names), list(templates)
    if not class_names or not templates or not all("{}" in t for t in templates):
        raise ValueError(
            "There must be class names, and templates with a {} for the name. "
            f"Received: {len(class_names)} names, templates={templates}"
        )
    prompts = [t.replace("{}", name) for name in class_names for t in templates]
    embeddings = model.encode_text(prompts, batch_size=batch_size)
    weights = embeddings.reshape(len(class_names), len(templates), -1).mean(axis=1)
    weights /= np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12)
    return ZeroShotClassifier(model, weights, class_names)
