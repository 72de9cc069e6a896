"""CLIP's and SigLIP's losses against float64 NumPy, and what they promise. The official codes' own
numbers are compared in the conformance vectors."""

import numpy as np
import pytest
from gradients import input_gradients

from keras_ssl.losses import CLIPDistillationLoss, CLIPLoss, SigLIPLoss

RNG = np.random.default_rng(0)
IMAGES, TEXTS = RNG.normal(size=(6, 5)).astype("float32"), RNG.normal(size=(8, 5)).astype("float32")
SCALE, BIAS = np.float32(1.3), np.float32(-2.0)
# Two captions of the first and of the third image, and one that fits two images.
IMAGE_LABELS = np.array([[0, 10], [1, 11], [2, 12], [3, 13], [4, 11], [5, 15]], "int32")
TEXT_LABELS = np.array(
    [[0, 20], [0, 21], [1, 11], [2, 22], [2, 23], [3, 13], [4, 11], [5, 15]], "int32"
)
FITS = (IMAGE_LABELS[:, None] == TEXT_LABELS[None]).any(-1)


def similarities():
    x, y = (v.astype("float64") for v in (IMAGES, TEXTS))
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    return np.exp(float(SCALE)) * x @ y.T


def cross_entropy(logits, fits, smoothing):
    losses = []
    for row, target in zip(logits, fits, strict=True):
        log_p = row - np.log(np.exp(row).sum())
        target = (1 - smoothing) * target / target.sum() + smoothing / len(row)
        losses.append(-(target * log_p).sum())
    return np.mean(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clip_with_several_positives(smoothing):
    logits = similarities()
    expected = cross_entropy(logits, FITS, smoothing) + cross_entropy(logits.T, FITS.T, smoothing)
    loss = CLIPLoss(label_smoothing=smoothing)
    by_labels = loss(IMAGES, TEXTS, SCALE, positives=(IMAGE_LABELS, TEXT_LABELS))
    by_mask = loss(IMAGES, TEXTS, SCALE, positives=FITS)
    np.testing.assert_allclose(by_labels, expected / 2, rtol=1e-5)
    np.testing.assert_allclose(by_mask, expected / 2, rtol=1e-5)


@pytest.mark.parametrize("block_size", [None, 4])
def test_siglip_whole_and_in_blocks(block_size):
    logits = similarities() + float(BIAS)
    sign = np.where(FITS, 1.0, -1.0)
    expected = np.log1p(np.exp(-sign * logits)).sum() / len(IMAGES)
    gradient = -sign / (1 + np.exp(sign * logits)) / len(IMAGES)
    for positives in (FITS, (IMAGE_LABELS, TEXT_LABELS)):
        loss = SigLIPLoss(block_size=block_size)
        value, gradients = input_gradients(
            lambda *v, loss=loss, positives=positives: loss(*v, positives=positives),
            IMAGES, TEXTS, SCALE, BIAS,
        )  # fmt: skip
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(gradients[3], gradient.sum(), rtol=1e-4)
        np.testing.assert_allclose(gradients[2], (gradient * similarities()).sum(), rtol=1e-4)
        whole = input_gradients(
            lambda *v: SigLIPLoss(block_size=None)(*v, positives=FITS), IMAGES, TEXTS, SCALE, BIAS
        )[1]
        for ours, theirs in zip(gradients, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [CLIPLoss(label_smoothing=0.2), SigLIPLoss(), SigLIPLoss(True, 4)])
def test_masked_pairs_are_as_if_not_there(loss):
    keep = np.array([True, True, False, True, True, False])
    arguments = (SCALE,) if isinstance(loss, CLIPLoss) else (SCALE, BIAS)
    masked = loss(IMAGES, TEXTS[:6], *arguments, sample_mask=keep)
    without = loss(IMAGES[keep], TEXTS[:6][keep], *arguments)
    np.testing.assert_allclose(masked, without, rtol=1e-5)


def test_order_of_the_batch_does_not_matter():
    order = RNG.permutation(6)
    for loss, arguments in ((CLIPLoss(), (SCALE,)), (SigLIPLoss(), (SCALE, BIAS))):
        one = loss(IMAGES, TEXTS[:6], *arguments)
        other = loss(IMAGES[order], TEXTS[:6][order], *arguments)
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_distillation_is_least_for_the_teacher_itself():
    def loss(*student):
        return float(CLIPDistillationLoss()(*student, IMAGES, TEXTS[:6], SCALE))

    own = loss(IMAGES, TEXTS[:6], SCALE)
    assert own < loss(IMAGES + 0.3, TEXTS[:6], SCALE) and own < loss(IMAGES, TEXTS[:6], SCALE + 1)


def test_refusals():
    with pytest.raises(ValueError, match="need `positives`.*text_features.shape=\\(8, 5\\)"):
        CLIPLoss()(IMAGES, TEXTS, SCALE)
    with pytest.raises(ValueError, match="Received: block_size=0"):
        SigLIPLoss(block_size=0)
    with pytest.raises(ValueError, match="Received: label_smoothing=1"):
        CLIPLoss(label_smoothing=1)
