"""Embeddings laid out in a plane."""

import numpy as np


def embedding_map(vectors, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Positions in the plane of unit vectors `v / |v|`, so that what is alike lies close.

    `"pca"` keeps the two directions of greatest variance: linear, the same every time, distances
    mean something. `"tsne"` (needs scikit-learn) keeps neighbourhoods and nothing else: clusters
    are seen better, their distances and sizes mean nothing.

    Args:
        vectors: `(N, D)`, two or more.
        method: `"pca"` or `"tsne"`.
        seed: of t-SNE.

    Returns:
        float32 `(N, 2)`, within `[-1, 1]`, the same scale in both directions.

    Raises:
        ValueError: for a wrong shape or an unknown method.

    Example:

    >>> embedding_map(np.random.default_rng(0).normal(size=(50, 8))).shape
    (50, 2)

    Reference:
        van der Maaten and Hinton, Visualizing Data using t-SNE, 2008.
    """
    vectors = np.asarray(vectors, "float64")
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(
            f"Vectors must be (N, D) with two rows or more. Received: shape {vectors.shape}"
        )
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if method == "pca":
        centred = vectors - vectors.mean(axis=0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        points = np.zeros((len(vectors), 2))
        points[:, : min(2, len(s))] = (u * s)[:, :2]
        # The sign of a direction is arbitrary: its greatest entry is made positive.
        extreme = points[np.abs(points).argmax(axis=0), [0, 1]]
        points *= np.where(extreme < 0, -1.0, 1.0)
    elif method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(vectors) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
        points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    else:
        raise ValueError(f'`method` must be "pca" or "tsne". Received: method={method!r}')
    return (points / max(np.abs(points).max(), 1e-12)).astype("float32")
