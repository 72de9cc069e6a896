"""Numbers that tell whether features have collapsed. NumPy, float64."""

import numpy as np


def _features(features) -> np.ndarray:
    features = np.asarray(features, "float64")
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"Features must be (N, D) with two rows or more. Received: shape {np.shape(features)}"
        )
    return features


def _unit(features) -> np.ndarray:
    features = _features(features)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def rankme(features, epsilon: float = 1e-7) -> float:
    """Effective rank: `exp(-sum_k p_k log p_k)`, `p_k = s_k / sum_j s_j + epsilon`.

    `s_k` are the singular values of the `(N, D)` features as they are. From 1, where all lie on one
    line, to `min(N, D)`. Take `N` well above `D` to compare models.

    Args:
        features: `(N, D)`.
        epsilon: added to every share.

    Example:

    >>> round(rankme(np.eye(4)), 3)
    4.0

    Reference:
        Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
        Representations by Their Rank, 2023, equation 1.
    """
    values = np.linalg.svd(_features(features), compute_uv=False)
    shares = values / max(values.sum(), 1e-30) + epsilon
    return float(np.exp(-np.sum(shares * np.log(shares))))


def feature_std(features) -> float:
    """Mean over the dimensions of the standard deviation of unit features, times `sqrt(D)`.

    Near 1 where features fill the sphere evenly, 0 where all are the same.

    Args:
        features: `(N, D)`.

    Reference:
        Chen and He, Exploring Simple Siamese Representation Learning, 2021, section 4.1.
    """
    unit = _unit(features)
    return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))


def mean_cosine(features) -> float:
    """Mean cosine between the features of different images; 1 where all are the same.

    Args:
        features: `(N, D)`.
    """
    unit = _unit(features)
    n = len(unit)
    return float((np.sum(unit.sum(axis=0) ** 2) - np.sum(unit**2)) / (n * (n - 1)))


def alignment(first, second, power: float = 2.0) -> float:
    """Mean distance `|x - y|^power` between unit features of two views; 0 where they agree.

    Args:
        first: `(N, D)`, features of the first views.
        second: `(N, D)`, of the second views.
        power: of the distance.

    Reference:
        Wang and Isola, Understanding Contrastive Representation Learning through Alignment and
        Uniformity on the Hypersphere, 2020, section 4.1.1.
    """
    distances = np.linalg.norm(_unit(first) - _unit(second), axis=1)
    return float(np.mean(distances**power))


def uniformity(features, t: float = 2.0) -> float:
    """`log mean exp(-t |x - y|^2)` over pairs of different images; 0 where all are the same.

    The more negative, the more evenly unit features are spread.

    Args:
        features: `(N, D)`.
        t: scale of the Gaussian.

    Reference:
        Wang and Isola, 2020, section 4.1.2.
    """
    unit = _unit(features)
    squared = np.maximum(2.0 - 2.0 * unit @ unit.T, 0.0)
    pairs = squared[np.triu_indices(len(unit), k=1)]
    return float(np.log(np.mean(np.exp(-t * pairs))))
