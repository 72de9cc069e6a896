"""SigLIP's loss: every image-text pair is a yes-or-no question of its own."""

import keras
from keras import ops

from keras_ssl.losses.blocks import check_block_size, in_blocks, rows_in_a_block
from keras_ssl.losses.clip import (
    label_columns,
    labels_agree,
    own_labels,
    pair_features,
    pair_logits,
    row_masks,
)
from keras_ssl.training.cross_device import all_gather, all_reduce_sum, replica_count


@keras.saving.register_keras_serializable(package="keras_ssl")
class SigLIPLoss:
    """Pairwise sigmoid loss: does this text belong to this image?

    With unit vectors `x[i]` of images and `y[j]` of texts, a learned log scale `s` and bias `b`:

    ```
    l[i, j] = exp(s) x[i] . y[j] + b
    loss    = -(1 / N) sum_ij log sigmoid(z[i, j] l[i, j])
    ```

    with `z = 1` where text `j` fits image `i` and -1 elsewhere. No pair needs the others, so the
    matrix can be computed in blocks. Computed in float32 at least.

    Args:
        normalize: make the features unit vectors first.
        block_size: how many rows of the matrix exist at a time. An int computes blocks of so many
            rows one after the other, with exact gradients: memory grows with the batch instead of
            its square. `None`: the whole matrix. "auto" (default): the whole up to 1024 rows,
            blocks of 512 above and where the batch size is not known when tracing.
        name: name of the loss.

    Call arguments:
        image_features: `(N, D)`.
        text_features: `(M, D)`; `M = N` unless `positives` are given.
        logit_scale: `s`, a scalar: the natural logarithm of the factor; starts at log 10.
        logit_bias: `b`, a scalar; starts at -10.
        positives: as in `CLIPLoss`. With labels in place of a mask, memory stays linear.
        sample_mask: as in `CLIPLoss`.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: for options out of range, or features that do not fit.

    Example:

    >>> images, texts = keras.random.normal((4, 8), seed=0), keras.random.normal((4, 8), seed=1)
    >>> loss = SigLIPLoss()(images, texts, logit_scale=np.log(10.0), logit_bias=-10.0)

    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, equation 1 and algorithm
        1; section 3.3 (the chunked form).
    """

    def __init__(
        self, normalize: bool = True, block_size: int | str | None = "auto", name="siglip_loss"
    ):
        check_block_size(block_size)
        self.normalize = bool(normalize)
        self.block_size = block_size
        self.name = name

    def __call__(
        self,
        image_features,
        text_features,
        logit_scale,
        logit_bias,
        positives=None,
        sample_mask=None,
        return_logits: bool = False,
    ):
        x, y = pair_features(image_features, text_features, self.normalize, positives)
        positives = own_labels(positives, ops.shape(x)[0])
        y = all_gather(y)  # a replica's own images, the texts of all
        n, m = (f.shape[0] if f.shape[0] is not None else ops.shape(f)[0] for f in (x, y))
        if isinstance(positives, (tuple, list)):
            keys = tuple(label_columns(labels) for labels in positives)
            keys = keys[0], all_gather(keys[1])
        elif positives is None:
            keys = ops.arange(n)[:, None], ops.arange(m)[:, None]
        else:
            # A mask: its rows for blocks of images, its columns for blocks of texts.
            mask = ops.cast(ops.convert_to_tensor(positives), "int8")
            keys = mask, None
        image_mask, text_mask = row_masks(sample_mask)
        masks = image_mask, text_mask if text_mask is None else all_gather(text_mask)
        counts = [
            ops.ones((size,), x.dtype) if mask is None else ops.cast(mask, x.dtype)
            for size, mask in zip((n, m), masks, strict=True)
        ]
        bias = ops.cast(ops.convert_to_tensor(logit_bias), x.dtype)
        x = x * ops.exp(ops.cast(ops.convert_to_tensor(logit_scale), x.dtype))
        block = rows_in_a_block(self.block_size, n)
        if block is None or return_logits:
            total, _, _ = _rows(x, y, bias, *keys, *counts)
            total = ops.sum(total)
        else:
            total = _blocked_total(x, y, bias, keys, counts, (n, m), self.block_size)
        count = all_reduce_sum(ops.sum(counts[0]))
        loss = replica_count() * total / ops.maximum(count, 1.0)
        return (loss, pair_logits(x, y, 0.0, bias)) if return_logits else loss

    def get_config(self):
        return {"normalize": self.normalize, "block_size": self.block_size, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _rows(x, y, bias, x_keys, y_keys, x_counts, y_counts):
    """Losses of the rows, `(N,)`, with the gradients of their sum by `x` and, row-wise, `bias`.

    Where `y_keys` is None, `x_keys` holds these rows of the mask.
    """
    logits = ops.matmul(x, ops.transpose(y)) + bias
    fits = ops.cast(x_keys, "bool") if y_keys is None else labels_agree(x_keys, y_keys)
    sign = ops.where(fits, -1.0, 1.0)
    counts = x_counts[:, None] * y_counts[None, :]
    losses = ops.sum(counts * ops.softplus(sign * logits), axis=1)
    gradient = counts * sign * ops.sigmoid(sign * logits)
    return losses, ops.matmul(gradient, y), ops.sum(gradient, axis=1)


def _blocked_total(x, y, bias, keys, counts, sizes, block_size):
    """The sum over all pairs, one block of rows at a time, with its own gradient.

    Rows of images give the gradient by `x` and `bias`, rows of texts that by `y`: the logits are
    computed once forward and twice backward, and no more than one block of them exists.
    """
    if keys[1] is None:
        keys = (keys[0], ops.transpose(keys[0]))
        other_keys = (None, None)
    else:
        other_keys = (keys[1], keys[0])

    def sweep(side, rows, columns, bias, pick):
        size, block = sizes[side], rows_in_a_block(block_size, sizes[side])
        block = size if block is None else block  # "auto" and few texts: all of them

        def one(inputs):
            row_block, key_block, count_block = inputs
            return pick(
                _rows(
                    row_block,
                    columns,
                    bias,
                    key_block,
                    other_keys[side],
                    count_block,
                    counts[1 - side],
                )
            )

        inputs = tuple(in_blocks(t, size, block) for t in (rows, keys[side], counts[side]))
        return ops.map(one, inputs)

    @ops.custom_gradient
    def total(x, y, bias):
        losses = sweep(0, x, y, bias, lambda out: out[0])

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args  # JAX and TensorFlow pass it by position
            by_x, by_bias = sweep(0, x, y, bias, lambda out: out[1:])
            by_y = sweep(1, y, x, bias, lambda out: out[1])
            width = x.shape[-1]
            by_x = ops.reshape(by_x, (-1, width))[: sizes[0]]
            by_y = ops.reshape(by_y, (-1, width))[: sizes[1]]
            return upstream * by_x, upstream * by_y, upstream * ops.sum(by_bias)

        return ops.sum(losses), gradient

    return total(x, y, bias)
