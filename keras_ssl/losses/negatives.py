"""What the sum over negatives becomes when they may be of one's own class, or too easy."""

import math

from keras import ops


def check_negatives(temperature: float, class_prior: float, hardness: float) -> None:
    """Raises ValueError for options of a contrastive loss that are out of range."""
    if not temperature > 0:
        raise ValueError(
            f"`temperature` must be greater than 0. Received: temperature={temperature}"
        )
    if not 0.0 <= class_prior < 1.0:
        raise ValueError(f"`class_prior` must lie in [0, 1). Received: class_prior={class_prior}")
    if not 0.0 <= hardness < math.inf:
        raise ValueError(f"`hardness` must be a number >= 0. Received: hardness={hardness}")


def harden(log_sum_exp, positive, count, temperature, class_prior, hardness):
    """Logarithm of the negatives' sum, debiased and weighted towards hard ones.

    With similarities `s_j` (over the temperature `T`) to `N` negatives and `p` to the positive:

    ```
    G = N * sum_j exp((1 + hardness) s_j) / sum_j exp(hardness s_j)
    G = max((G - class_prior * N * exp(p)) / (1 - class_prior), N * exp(-1 / T))
    ```

    `hardness = 0` leaves the plain sum in the first line, `class_prior = 0` leaves the second out.
    All in logarithms, so that no exponential overflows.

    Args:
        log_sum_exp: from a factor `f` to `log(sum_j exp(f s_j))`, `(rows,)`.
        positive: `p`, `(rows,)`.
        count: `N`, a number or scalar tensor.
        temperature: `T`.
        class_prior: probability that a negative is of the class of its query.
        hardness: concentration on the negatives that are near.

    Reference:
        Chuang et al., Debiased Contrastive Learning, 2020, equation 8; Robinson et al.,
        Contrastive Learning with Hard Negative Samples, 2021, equation 4.
    """
    log_count = ops.log(ops.cast(count, positive.dtype))
    if hardness:
        total = log_count + log_sum_exp(1.0 + hardness) - log_sum_exp(hardness)
    else:
        total = log_sum_exp(1.0)
    if not class_prior:
        return total
    false = log_count + math.log(class_prior) + positive
    floor = log_count + math.log1p(-class_prior) - 1.0 / temperature
    # Over the greatest of the three: one of the exponentials is 1 and none overflows.
    top = ops.stop_gradient(ops.maximum(ops.maximum(total, false), floor))
    rest = ops.exp(total - top) - ops.exp(false - top)
    rest = ops.maximum(rest, ops.exp(floor - top))
    # Far below its parts the rest is rounding, and the floor may be smaller than any float32.
    return top + ops.log(ops.maximum(rest, 1e-30)) - math.log1p(-class_prior)
