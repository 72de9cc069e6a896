"""Choosing a few labelled samples, the same ones every time."""

import numpy as np


def label_fraction(labels, fraction: float, seed: int = 0) -> np.ndarray:
    """Rows of a share of the labels, drawn in every class alike.

    Class `c` with `n_c` samples keeps `max(1, round(fraction * n_c))` of them. A smaller share is
    a subset of a larger one with the same seed, so 1 % and 10 % can be compared.

    Args:
        labels: integers `(N,)` or `(N, 1)`.
        fraction: in (0, 1].
        seed: int, which samples are taken.

    Returns:
        Row numbers in increasing order, int64.

    Raises:
        ValueError: for a fraction out of range, or labels that are not one integer a sample.

    Example:

    >>> label_fraction([0] * 100 + [1] * 50, 0.01).shape
    (2,)

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
        section 6 (1 % and 10 % of the labels, class-balanced).
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:  # keras.datasets' form
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "Labels must be integers of shape (N,) or (N, 1). "
            f"Received: shape {labels.shape}, dtype {labels.dtype}"
        )
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must lie in (0, 1]. Received: fraction={fraction}")
    kept = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, int(label) & 0xFFFFFFFF)).permutation(len(rows))
        kept.append(rows[order[: max(1, round(fraction * len(rows)))]])
    return np.sort(np.concatenate(kept))
