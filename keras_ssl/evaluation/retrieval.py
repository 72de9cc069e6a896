"""Retrieval: is what belongs to a query among its nearest?"""

from collections.abc import Sequence

import numpy as np


def retrieval_recall(
    queries,
    index,
    query_labels=None,
    index_labels=None,
    ks: Sequence[int] = (1, 5, 10),
    block_size: int = 1024,
) -> dict[str, float]:
    """Recall@k: share of queries with something that belongs to them among their k nearest.

    Neighbours are ranked by cosine similarity. Where others are exactly as near as what belongs to
    a query, they count as nearer, so that equal embeddings find nothing. Images may ask for texts,
    texts for images, and images for images.

    Args:
        queries: `(N, D)` embeddings.
        index: `(M, D)` embeddings to search.
        query_labels: `(N,)`; row `j` of the index belongs to query `i` where their labels are
            equal. Without labels, row `i` belongs to query `i`.
        index_labels: `(M,)`.
        ks: the k.
        block_size: queries that are compared at a time; bounds the memory.

    Returns:
        A dict of shares in [0, 1]: `{"R@1": ..., "R@5": ..., "median_rank": ...}`; ranks begin
        with 1.

    Raises:
        ValueError: shapes that do not fit, or a query to which nothing in the index belongs.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> images = rng.normal(size=(50, 8))
    >>> texts = images + 0.1 * rng.normal(size=(50, 8))
    >>> retrieval_recall(images, texts, ks=(1,))["R@1"]
    1.0

    Reference:
        Karpathy & Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, 2015,
        section 4.1 (Recall@k).
    """
    queries, index = _unit(queries), _unit(index)
    if query_labels is None and index_labels is None:
        query_labels, index_labels = np.arange(len(queries)), np.arange(len(index))
    query_labels, index_labels = np.asarray(query_labels), np.asarray(index_labels)
    if query_labels.shape != (len(queries),) or index_labels.shape != (len(index),):
        raise ValueError(
            "Give labels for both sides, one for each row, or for neither. Received: "
            f"query_labels of shape {query_labels.shape} for {len(queries)} queries, index_labels "
            f"of shape {index_labels.shape} for {len(index)} rows"
        )
    if not np.isin(query_labels, index_labels).all():
        lost = query_labels[~np.isin(query_labels, index_labels)][0]
        raise ValueError(
            "To every query something in the index must belong. "
            f"Received: a query label {lost} that the index does not have"
        )
    ranks = []
    for start in range(0, len(queries), block_size):
        rows = slice(start, start + block_size)
        similarity = queries[rows] @ index.T
        belongs = query_labels[rows, None] == index_labels[None, :]
        best = np.where(belongs, similarity, -np.inf).max(axis=1, keepdims=True)
        ranks.append(1 + ((similarity >= best) & ~belongs).sum(axis=1))
    ranks = np.concatenate(ranks)
    shares = {f"R@{k}": float(np.mean(ranks <= k)) for k in ks}
    return {**shares, "median_rank": float(np.median(ranks))}


def _unit(x) -> np.ndarray:
    x = np.asarray(x, "float32")
    if x.ndim != 2 or not len(x):
        raise ValueError(f"Embeddings must have the shape (N, D). Received: shape {x.shape}")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
