"""NT-Xent, the contrastive loss of SimCLR, with a variant whose memory is linear in the batch."""

import keras
from keras import ops

from keras_ssl.losses.blocks import check_block_size, in_blocks, rows_in_a_block
from keras_ssl.losses.negatives import check_negatives, harden
from keras_ssl.training.cross_device import all_gather

MASKED = -1e30  # a similarity that never counts; finite, so that no inf - inf can arise


def l2_normalize(x, epsilon: float = 1e-12):
    """`x / |x|` along the last axis, with `|x|**2` kept above `epsilon`."""
    squares = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, epsilon))


@keras.saving.register_keras_serializable(package="keras_ssl")
class NTXentLoss:
    """Normalised temperature-scaled cross entropy: each view must find its partner.

    Two views of `N` images give embeddings `z[0], ..., z[2N-1]`, where `p(i) = (i + N) mod 2N` is
    the other view of `i`. With `s[i, j] = z[i] . z[j] / temperature` (of unit vectors):

    ```
    l[i] = -s[i, p(i)] + log(sum over j != i of exp(s[i, j]))
    loss = mean of l over all 2N rows                    reduction="mean"
    loss = (sum of l over all 2N rows) / N               reduction="sum_over_views"
    ```

    The paper's equation and lightly take the mean; the code published with the paper adds the
    losses of the two directions, which is twice as much.

    Options for the negatives, `N' = 2N - 2` of them for each view, whose sum is
    `G[i] = sum over j != i, p(i) of exp(s[i, j])`, and
    `l[i] = log(1 + G[i] / exp(s[i, p(i)]))`:

    ```
    decoupled=True:    l[i] = -w[i] s[i, p(i)] + log G[i]          the positive repels no more
    positive_sigma:    w[i] = 2 - N exp(cos_i / sigma) / (sum over k of exp(cos_k / sigma))
                       (without it w = 1; cos is that of a pair, the sum over the N pairs)
    hardness=b:        G[i] = N' (sum of exp((1 + b) s)) / (sum of exp(b s))
    class_prior=t:     G[i] = max((G[i] - t N' exp(s[i, p(i)])) / (1 - t), N' exp(-1/temperature))
    ```

    Computed in float32 (float64 stays), whatever the inputs' precision, so that neither the
    exponentials nor the mask of `s[i, i]` can overflow in half precision.

    Args:
        temperature: float > 0.
        normalize: divide the embeddings by their norms first (`hidden_norm` in the paper's code).
        reduction: "mean" or "sum_over_views"; see above.
        block_size: how many rows of the `2N x 2N` similarities exist at a time. An int computes
            blocks of so many rows one after the other, once forward and once backward, with exact
            gradients: memory grows with `N` instead of `N**2`. `None`: the whole matrix and
            automatic differentiation. "auto" (default): the whole matrix up to `2N` = 1024, blocks
            of 512 rows above and where `N` is not known when tracing.

    Call arguments:
        z1: `(N, D)` embeddings of the first views, or `(2N, D)` of first and second views.
        z2: `(N, D)` embeddings of the second views.
        return_statistics: also return a dict with `"accuracy"` (how often a first view's nearest
            second view is its partner) and `"entropy"` (mean entropy in nats of a first view's
            softmax over the second views); both without gradient.

    Returns:
        The loss, a scalar; or `(loss, statistics)`.

    Raises:
        ValueError: for options out of range, or embeddings of unequal or unfit shapes.

    Example:

    >>> z = keras.random.normal((8, 16), seed=0)
    >>> loss = NTXentLoss(temperature=0.5)(z, z + 0.1)

    Reference:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
        2020, eq. 1 and algorithm 1; Yeh et al., "Decoupled Contrastive Learning", 2022, eq. 6
        and section 3; Chuang et al., "Debiased Contrastive Learning", 2020, eq. 8; Robinson et
        al., "Contrastive Learning with Hard Negative Samples", 2021, eq. 4.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        normalize: bool = True,
        reduction: str = "mean",
        block_size: int | str | None = "auto",
        decoupled: bool = False,
        positive_sigma: float | None = None,
        class_prior: float = 0.0,
        hardness: float = 0.0,
        name: str = "nt_xent",
    ):
        check_negatives(temperature, class_prior, hardness)
        if positive_sigma is not None and not (decoupled and positive_sigma > 0):
            raise ValueError(
                "`positive_sigma` must be greater than 0 and belongs to `decoupled=True`. "
                f"Received: positive_sigma={positive_sigma}, decoupled={decoupled}"
            )
        if reduction not in ("mean", "sum_over_views"):
            raise ValueError(
                f'`reduction` must be "mean" or "sum_over_views". Received: reduction={reduction!r}'
            )
        check_block_size(block_size)
        self.temperature = float(temperature)
        self.normalize = bool(normalize)
        self.reduction = reduction
        self.block_size = block_size
        self.decoupled = bool(decoupled)
        self.positive_sigma = positive_sigma
        self.class_prior = float(class_prior)
        self.hardness = float(hardness)
        self.name = name

    def __call__(self, z1, z2=None, return_statistics: bool = False):
        z = self._embeddings(z1, z2)
        rows = z.shape[0] if z.shape[0] is not None else ops.shape(z)[0]
        # Unit vectors over sqrt(temperature): their products are the similarities.
        z = (l2_normalize(z) if self.normalize else z) / self.temperature**0.5
        half = rows // 2
        block = rows_in_a_block(self.block_size, rows)
        pairs = ops.sum(z[:half] * z[half:], axis=-1)
        positive = ops.concatenate([pairs, pairs], axis=0)

        def log_sum_exp(factor):
            scaled = z if factor == 1.0 else z * factor**0.5
            if block is None:
                return _log_sum_exp(scaled, rows)
            return _blocked_log_sum_exp(scaled, rows, block)

        negative = harden(
            log_sum_exp, positive, rows - 2, self.temperature, self.class_prior, self.hardness
        )
        # log(e^p + sum e^n) - p = softplus(log(sum e^n) - p): keeps its digits when the loss is
        # small against the similarities.
        if not self.decoupled:
            loss = ops.mean(ops.softplus(negative - positive))
        elif self.positive_sigma is None:
            loss = ops.mean(negative - positive)
        else:
            agreement = ops.stop_gradient(pairs) * (self.temperature / self.positive_sigma)
            weight = 2.0 - ops.cast(half, z.dtype) * ops.softmax(agreement)
            loss = ops.mean(negative) - ops.mean(weight * pairs)
        if self.reduction == "sum_over_views":
            loss = 2.0 * loss
        if not return_statistics:
            return loss
        return loss, _statistics(ops.stop_gradient(z), rows, half, block)

    def _embeddings(self, z1, z2):
        z1 = ops.convert_to_tensor(z1)
        z2 = None if z2 is None else ops.convert_to_tensor(z2)
        shapes = [tuple(z.shape) for z in (z1, z2) if z is not None]
        if any(len(shape) != 2 for shape in shapes):
            raise ValueError(
                "Embeddings must have the shape (batch, dim); pool or flatten them first. "
                f"Received: shapes {shapes}"
            )
        if z2 is not None:
            (n1, d1), (n2, d2) = shapes
            if d1 != d2 or (None not in (n1, n2) and n1 != n2):
                raise ValueError(
                    "The embeddings of the two views must have the same shape. "
                    f"Received: z1.shape={shapes[0]}, z2.shape={shapes[1]}"
                )
        elif shapes[0][0] is not None and shapes[0][0] % 2:
            raise ValueError(
                "`z1` alone must hold the first views followed by as many second views. "
                f"Received: z1.shape={shapes[0]}"
            )
        if z2 is None:
            z = all_gather(z1, views=2)
        else:
            z = ops.concatenate([all_gather(z1), all_gather(z2)], axis=0)
        if keras.backend.standardize_dtype(z.dtype) != "float64":
            z = ops.cast(z, "float32")
        return z

    def get_config(self):
        return {
            "temperature": self.temperature,
            "normalize": self.normalize,
            "reduction": self.reduction,
            "block_size": self.block_size,
            "decoupled": self.decoupled,
            "positive_sigma": self.positive_sigma,
            "class_prior": self.class_prior,
            "hardness": self.hardness,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _log_sum_exp(z, rows):
    """log(sum of exp(z[i] . z[j]) over j != i, p(i)) for every row, by the whole matrix."""
    image = ops.arange(rows) % (rows // 2)
    similarity = ops.matmul(z, ops.transpose(z))
    similarity = ops.where(image[:, None] == image[None, :], MASKED, similarity)
    return ops.logsumexp(similarity, axis=-1)


def _blocked_log_sum_exp(z, rows, block):
    """As `_log_sum_exp`, one block of rows at a time, with its own gradient.

    With `P[i, j] = exp(z[i] . z[j] - lse[i])` (0 for views of one image) and `u` the gradient
    that arrives at `lse`:

        grad z[i] = sum over j of (u[i] P[i, j] + u[j] P[j, i]) z[j]

    The similarities are symmetric, so `P[j, i]` comes from the same product as `P[i, j]`: the
    backward pass costs two matrix products of the whole, as automatic differentiation does.
    """

    @ops.custom_gradient
    def log_sum_exp(z):
        image = ops.arange(rows) % (rows // 2)
        image_blocks = in_blocks(image, rows, block)
        z_blocks = in_blocks(z, rows, block)
        transposed = ops.transpose(z)

        def forward(inputs):
            image_block, z_block = inputs
            similarity = ops.matmul(z_block, transposed)
            similarity = ops.where(image_block[:, None] == image[None, :], MASKED, similarity)
            return ops.logsumexp(similarity, axis=-1)

        lse = ops.reshape(ops.map(forward, (image_blocks, z_blocks)), (-1,))[:rows]

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args  # JAX and TensorFlow pass it by position

            def backward(inputs):
                image_block, z_block, lse_block, upstream_block = inputs
                similarity = ops.matmul(z_block, transposed)
                similarity = ops.where(image_block[:, None] == image[None, :], MASKED, similarity)
                weights = ops.exp(similarity - lse_block[:, None]) * upstream_block[:, None]
                weights = weights + ops.exp(similarity - lse[None, :]) * upstream[None, :]
                return ops.matmul(weights, z)

            blocks = [in_blocks(x, rows, block) for x in (lse, upstream)]
            grad = ops.map(backward, (image_blocks, z_blocks, *blocks))
            return ops.reshape(grad, (-1, z.shape[-1]))[:rows]

        return lse, gradient

    return log_sum_exp(z)


def _statistics(z, rows, half, block):
    first, second = z[:half], ops.transpose(z[half:])

    def look(inputs):
        row, z_block = inputs
        similarity = ops.matmul(z_block, second)
        hit = ops.cast(ops.equal(ops.argmax(similarity, axis=-1), row), z.dtype)
        probability = ops.softmax(similarity, axis=-1)
        entropy = -ops.sum(probability * ops.log(probability + 1e-8), axis=-1)
        return hit, entropy

    row = ops.cast(ops.arange(half), "int32")
    if block is None:
        hit, entropy = look((row, first))
    else:
        block = min(block, half) if isinstance(block, int) else ops.minimum(block, half)
        hit, entropy = ops.map(look, tuple(in_blocks(x, half, block) for x in (row, first)))
        hit, entropy = (ops.reshape(x, (-1,))[:half] for x in (hit, entropy))
    return {"accuracy": ops.mean(hit), "entropy": ops.mean(entropy)}
