"""CLIP's loss: symmetric cross entropy over the pairs of a batch; and what pairs are positive."""

import keras
from keras import ops

from keras_ssl.losses.nt_xent import MASKED, l2_normalize
from keras_ssl.training.cross_device import all_gather, all_reduce_sum, replica_count, replica_id


@keras.saving.register_keras_serializable(package="keras_ssl")
class CLIPLoss:
    """Symmetric cross entropy of finding the text of an image, and the image of a text.

    With unit vectors `x[i]` of `N` images and `y[j]` of their texts, and a learned log scale `s`:

    ```
    l[i, j] = exp(s) x[i] . y[j] + b
    loss    = (mean of -log softmax(l[i, :])[i]  +  mean of -log softmax(l[:, j])[j]) / 2
    ```

    A bias `b` cancels in the softmax; open_clip offers it. Where more than one text fits an image
    (several captions of one picture, the same caption on two), the target is uniform over all that
    fit: `-sum_j t[i, j] log softmax(l[i, :])[j]`, `t[i, j] = P[i, j] / sum_j P[i, j]` (UniCL).
    With label smoothing `e` a target becomes `(1 - e) t + e / M` (ALIGN). Computed in float32 at
    least.

    Args:
        normalize: make the features unit vectors first.
        label_smoothing: `e`, in [0, 1): how far a target is moved towards all others.
        name: name of the loss.

    Call arguments:
        image_features: `(N, D)`.
        text_features: `(M, D)`; `M = N` unless `positives` are given.
        logit_scale: `s`, a scalar: the natural logarithm of the factor.
        logit_bias: `b`, a scalar, or `None` for 0.
        positives: which pairs fit. `None`: image `i` and text `i`. A bool or 0/1 `(N, M)`; or a
            tuple of integer labels `(N,)` and `(M,)` (or `(N, K)` and `(M, K)`: pairs fit where any
            of the K labels agree).
        sample_mask: bool or 0/1 `(N,)`, or a tuple of `(N,)` and `(M,)`: rows that are 0 take no
            part, as if the batch did not hold them (a missing text).
        return_logits: also return `l`, `(N, M)`.

    Returns:
        The loss, a scalar; or `(loss, logits)`.

    Raises:
        ValueError: for features that are no matrices, or unequal numbers without `positives`.

    Example:

    >>> images, texts = keras.random.normal((4, 8), seed=0), keras.random.normal((4, 8), seed=1)
    >>> loss = CLIPLoss()(images, texts, logit_scale=np.log(1 / 0.07))

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        2021, figure 3; Jia et al., Scaling Up Visual and Vision-Language Representation Learning
        With Noisy Text Supervision, 2021, equations 1 and 2 (ALIGN); Yang et al., Unified
        Contrastive Learning in Image-Text-Label Space, 2022, equations 2 and 3 (several positives).
    """

    def __init__(
        self, normalize: bool = True, label_smoothing: float = 0.0, name: str = "clip_loss"
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"`label_smoothing` must lie in [0, 1). Received: label_smoothing={label_smoothing}"
            )
        self.normalize = bool(normalize)
        self.label_smoothing = float(label_smoothing)
        self.name = name

    def __call__(
        self,
        image_features,
        text_features,
        logit_scale,
        logit_bias=None,
        positives=None,
        sample_mask=None,
        return_logits: bool = False,
    ):
        logits, *directions = self._directions(
            image_features, text_features, logit_scale, logit_bias, positives, sample_mask
        )
        # A mean over the rows that count; there may be none.
        from_images, from_texts = (
            replica_count() * ops.sum(losses) / ops.maximum(all_reduce_sum(ops.sum(kept)), 1.0)
            for losses, kept in directions
        )
        loss = (from_images + from_texts) / 2
        return (loss, logits) if return_logits else loss

    def row_losses(
        self,
        image_features,
        text_features,
        logit_scale,
        logit_bias=None,
        positives=None,
        sample_mask=None,
    ):
        """The cross entropy of every image, `(N,)`, and of every text, `(M,)`.

        Rows that take no part have 0. Arguments as in a call. Where several replicas share the
        batch, the rows are a replica's own, against the columns of all.
        """
        _, (images, _), (texts, _) = self._directions(
            image_features, text_features, logit_scale, logit_bias, positives, sample_mask
        )
        return images, texts

    def _directions(self, images, texts, logit_scale, logit_bias, positives, sample_mask):
        x, y = pair_features(images, texts, self.normalize, positives)
        logits, transposed = pair_logits_both_ways(x, y, logit_scale, logit_bias)  # N x M, M x N
        fits, fits_transposed = fits_both_ways(positives, ops.shape(x)[0])
        image_mask, text_mask = row_masks(sample_mask)
        all_images, all_texts = (m if m is None else all_gather(m) for m in (image_mask, text_mask))
        return (
            logits,
            self._cross_entropy(logits, fits, image_mask, all_texts),
            self._cross_entropy(transposed, fits_transposed, text_mask, all_images),
        )

    def _cross_entropy(self, logits, fits, row_mask, column_mask):
        """Cross entropy of each row to the columns that fit, and 1 for the rows that count."""
        columns = ops.cast(ops.shape(logits)[1], logits.dtype)
        if column_mask is not None:
            logits = ops.where(column_mask[None, :], logits, MASKED)
            columns = ops.maximum(ops.sum(ops.cast(column_mask, logits.dtype)), 1.0)
        if fits is None:
            target = ops.diagonal(logits)
        else:
            if column_mask is not None:
                fits = ops.logical_and(fits, column_mask[None, :])
            count = ops.sum(ops.cast(fits, logits.dtype), axis=1)
            target = ops.sum(ops.where(fits, logits, 0.0), axis=1) / ops.maximum(count, 1.0)
            # A row without a column that fits has no target.
            row_mask = count > 0 if row_mask is None else ops.logical_and(row_mask, count > 0)
        if self.label_smoothing:
            seen = logits if column_mask is None else ops.where(column_mask[None, :], logits, 0.0)
            every = ops.sum(seen, axis=1) / columns
            target = (1 - self.label_smoothing) * target + self.label_smoothing * every
        losses = ops.logsumexp(logits, axis=1) - target
        if row_mask is None:
            return losses, ops.ones_like(losses)
        # The losses of masked rows are as large as MASKED: chosen away, not multiplied away.
        return ops.where(row_mask, losses, 0.0), ops.cast(row_mask, logits.dtype)

    def get_config(self):
        return {
            "normalize": self.normalize,
            "label_smoothing": self.label_smoothing,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_ssl")
class CLIPDistillationLoss:
    """Cross entropy to a teacher's soft matches, beside or instead of CLIP's own loss.

    With the logits `l` of the student and `l'` of the teacher over the same pairs:

    `loss = -(mean_i softmax(l'[i, :]) . log softmax(l[i, :]) + mean_j (the same of columns)) / 2`

    Args:
        normalize: make the features unit vectors first.
        name: name of the loss.

    Call arguments:
        image_features, text_features: the student's, `(N, D)`.
        logit_scale: the student's, a logarithm.
        teacher_image_features, teacher_text_features: `(N, D')`; no gradient goes to them.
        teacher_logit_scale: the teacher's, a logarithm.

    Returns:
        The loss, a scalar.

    Example:

    >>> x, y = keras.random.normal((4, 8), seed=0), keras.random.normal((4, 8), seed=1)
    >>> loss = CLIPDistillationLoss()(x, y, 2.6, y, x, 3.0)

    Reference:
        Yang et al., CLIP-KD: An Empirical Study of CLIP Model Distillation, 2024, equation 4
        (contrastive relational distillation); open_clip's DistillClipLoss.
    """

    def __init__(self, normalize: bool = True, name: str = "clip_distillation_loss"):
        self.normalize = bool(normalize)
        self.name = name

    def __call__(
        self,
        image_features,
        text_features,
        logit_scale,
        teacher_image_features,
        teacher_text_features,
        teacher_logit_scale,
    ):
        x, y = pair_features(image_features, text_features, self.normalize, None)
        teacher = pair_features(teacher_image_features, teacher_text_features, self.normalize, None)
        logits = pair_logits_both_ways(x, y, logit_scale)
        teacher = pair_logits_both_ways(*teacher, teacher_logit_scale)
        from_images, from_texts = (
            ops.softmax(ops.stop_gradient(target), axis=1) * ops.log_softmax(own, axis=1)
            for target, own in zip(teacher, logits, strict=True)
        )
        both = ops.mean(ops.sum(from_images, axis=1)) + ops.mean(ops.sum(from_texts, axis=1))
        return -both / 2

    def get_config(self):
        return {"normalize": self.normalize, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def pair_features(image_features, text_features, normalize: bool, positives):
    """Both features as float32 matrices at least, checked, and of length 1 where asked for."""
    features = [ops.convert_to_tensor(f) for f in (image_features, text_features)]
    (n, *d), (m, *e) = shapes = [tuple(f.shape) for f in features]
    equal = n == m or None in (n, m) or positives is not None
    if len(d) != 1 or d != e or not equal:
        raise ValueError(
            "Features must be matrices of one width, (N, D) of images and (N, D) of texts; other "
            "numbers of texts need `positives`. "
            f"Received: image_features.shape={shapes[0]}, text_features.shape={shapes[1]}"
        )
    features = [
        f if keras.backend.standardize_dtype(f.dtype) == "float64" else ops.cast(f, "float32")
        for f in features
    ]
    return [l2_normalize(f) for f in features] if normalize else features


def pair_logits(x, y, logit_scale, logit_bias=None):
    """`exp(logit_scale) x y^T + logit_bias`, `(N, M)`."""
    scale = ops.exp(ops.cast(ops.convert_to_tensor(logit_scale), x.dtype))
    logits = scale * ops.matmul(x, ops.transpose(y))
    if logit_bias is not None:
        logits = logits + ops.cast(ops.convert_to_tensor(logit_bias), x.dtype)
    return logits


def pair_logits_both_ways(x, y, logit_scale, logit_bias=None):
    """Images against the texts of all devices, and texts against the images of all devices."""
    logits = pair_logits(x, all_gather(y), logit_scale, logit_bias)
    if replica_count() == 1:
        return logits, ops.transpose(logits)
    return logits, pair_logits(y, all_gather(x), logit_scale, logit_bias)


def own_labels(positives, rows):
    """Where several replicas share the batch: labels, as no replica knows the others' mask."""
    if replica_count() == 1 or isinstance(positives, (tuple, list)):
        return positives
    if positives is None:
        labels = replica_id() * rows + ops.arange(rows, dtype="int32")
        return labels, labels
    raise ValueError(
        "On several replicas `positives` must be labels, a tuple of (N,) and (M,), or None. "
        f"Received: a mask of shape {tuple(positives.shape)}"
    )


def fits_both_ways(positives, rows):
    """`positive_mask` of the logits both ways; `(None, None)`: the diagonals."""
    positives = own_labels(positives, rows)
    if positives is None:
        return None, None
    if replica_count() == 1:
        fits = positive_mask(positives)
        return fits, ops.transpose(fits)
    images, texts = (label_columns(labels) for labels in positives)
    return labels_agree(images, all_gather(texts)), labels_agree(texts, all_gather(images))


def positive_mask(positives):
    """Bool `(N, M)` from what a caller gives as `positives`; `None` stays: the diagonal."""
    if positives is None:
        return None
    if not isinstance(positives, (tuple, list)):
        return ops.cast(ops.convert_to_tensor(positives), "bool")
    return labels_agree(*[label_columns(labels) for labels in positives])


def label_columns(labels):
    """Labels `(N,)` or `(N, K)` as `(N, K)`."""
    labels = ops.convert_to_tensor(labels)
    return labels[:, None] if len(labels.shape) == 1 else labels


def labels_agree(first, second):
    """Bool `(N, M)`: whether any of the K labels of two rows are equal."""
    agree = ops.equal(first[:, None, 0], second[None, :, 0])
    for k in range(1, first.shape[1]):  # one matrix at a time, not an N x M x K array
        agree = ops.logical_or(agree, ops.equal(first[:, None, k], second[None, :, k]))
    return agree


def row_masks(sample_mask):
    """`(image_mask, text_mask)`, bool, or `(None, None)`."""
    if sample_mask is None:
        return None, None
    if not isinstance(sample_mask, (tuple, list)):
        sample_mask = (sample_mask, sample_mask)
    return tuple(ops.cast(ops.convert_to_tensor(mask), "bool") for mask in sample_mask)
