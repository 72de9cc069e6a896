"""Sinkhorn-Knopp: soft assignments that use every prototype equally often."""

from keras import ops

from keras_ssl.losses.precision import at_least_float32
from keras_ssl.training.cross_device import all_reduce_max, all_reduce_sum

_TINY = 1e-30  # a sum below it would make its inverse infinite


def sinkhorn_knopp(logits, temperature=0.05, iterations: int = 3, mask=None):
    """Teacher probabilities by Sinkhorn-Knopp instead of centring and softmax.

    From `Q = exp(logits / temperature)`, every iteration makes the prototypes' totals equal, then
    each row's total one:

    `Q[:, k] /= sum_i Q[i, k]`,  `Q[i, :] /= sum_k Q[i, k]`

    The official codes divide by the number of prototypes and of rows as well; those factors cancel
    in the next normalisation. `Q` is never rewritten: an iteration is two products of the one
    exponential with a vector, and each prototype's exponents are shifted by their maximum, which
    the first normalisation takes out again, so that large logits neither overflow nor vanish.
    Computed in float32 at least; no gradient passes.

    Args:
        logits: `(N, K)`, of the teacher.
        temperature: `> 0`, a number or a scalar tensor. 0.05 in SwaV, 0.04 to 0.07 in DINOv2.
        iterations: `>= 1`. 3 in both papers.
        mask: bool or 0/1 `(N,)`: rows that are not set take no part and come out as zeros (where
            the number of masked patches varies but shapes may not).

    Returns:
        `(N, K)`, rows that sum to one.

    Raises:
        ValueError: for logits that are no matrix, or fewer than one iteration.

    Example:

    >>> q = sinkhorn_knopp(keras.random.normal((6, 4), seed=0), temperature=0.1)
    >>> [round(float(total), 4) for total in keras.ops.sum(q, axis=1)]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]

    Reference:
        Cuturi, Sinkhorn Distances, 2013; Caron et al., Unsupervised Learning of Visual Features by
        Contrasting Cluster Assignments, 2020, section 3.1; Oquab et al., DINOv2, 2023, section 4.
    """
    logits = at_least_float32(logits)
    if len(logits.shape) != 2:
        raise ValueError(f"`logits` must be (N, K). Received: shape {tuple(logits.shape)}")
    if not (isinstance(iterations, int) and iterations >= 1):
        raise ValueError(f"`iterations` must be an integer >= 1. Received: iterations={iterations}")
    x = ops.stop_gradient(logits) / ops.cast(temperature, logits.dtype)
    valid = None
    if mask is not None:
        valid = ops.cast(mask, "bool")[:, None]
        x = ops.where(valid, x, -1e30)
    # Whole columns: the rows of all devices.
    x = x - all_reduce_max(ops.max(x, axis=0, keepdims=True))  # N x K; also where no row is set
    q = ops.exp(x)
    if valid is not None:
        q = q * ops.cast(valid, q.dtype)
    rows = ops.ones_like(q[:, :1])  # N x 1
    for _ in range(iterations):
        columns = all_reduce_sum(ops.matmul(ops.transpose(q), rows))  # K x 1
        columns = 1.0 / ops.maximum(columns, _TINY)
        rows = 1.0 / ops.maximum(ops.matmul(q, columns), _TINY)
        if valid is not None:
            rows = rows * ops.cast(valid, rows.dtype)
    # The last normalisation of rows once more as a softmax: no row can have vanished.
    q = ops.softmax(x + ops.log(ops.transpose(columns)), axis=1)
    return q if valid is None else q * ops.cast(valid, q.dtype)
