"""Retrieval: is what belongs to a query among its nearest?"""

from collections.abc import Sequence

import numpy as np

from keras_ssl.evaluation.similarity_index import SimilarityIndex, unit_vectors

# Similarities closer than this are equal: float32 rounds differently in every product of matrices.
_TIE = 1e-6
# Rows of the index that queries are compared with at a time.
_INDEX_BLOCK = 65536
# faiss keeps the nearest rows of a query in a heap, which is slow for more than so many.
_LONGEST_LIST = 2048


def retrieval_recall(
    queries,
    index,
    query_labels=None,
    index_labels=None,
    ks: Sequence[int] = (1, 5, 10),
    block_size: int = 1024,
    engine: str = "auto",
) -> dict[str, float]:
    """Recall@k: share of queries with something that belongs to them among their k nearest.

    Neighbours are ranked by cosine similarity. Where others are exactly as near as what belongs to
    a query, they count as nearer, so that equal embeddings find nothing. Images may ask for texts,
    texts for images, and images for images. The search is exact with either engine.

    Args:
        queries: `(N, D)` embeddings.
        index: `(M, D)` embeddings to search.
        query_labels: `(N,)`; row `j` of the index belongs to query `i` where their labels are
            equal. Without labels, row `i` belongs to query `i`.
        index_labels: `(M,)`.
        ks: the k.
        block_size: queries that are compared at a time, with 65,536 rows of the index at most;
            bounds the memory.
        engine: `"numpy"`; `"faiss"`, which must be installed and is faster where `max(ks)` is far
            less than `M`; `"auto"`: faiss for an index of 100,000 rows and more, if it is there.

    Returns:
        A dict of shares in [0, 1]: `{"R@1": ..., "R@5": ..., "median_rank": ...}`; ranks begin
        with 1.

    Raises:
        ValueError: shapes that do not fit, an unknown engine, or a query to which nothing in the
            index belongs.
        ImportError: `engine="faiss"`, which is not installed.

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
    queries, index = unit_vectors(queries), SimilarityIndex(index, engine)
    query_labels, index_labels = _labels(queries, index, query_labels, index_labels)
    # As long a list holds `max(ks)` rows that do not belong, whatever belongs.
    length = min(len(index), max(ks) + int(np.bincount(index_labels).max()))
    if index.engine == "faiss" and length <= _LONGEST_LIST:
        ranks = _ranks_in_lists(queries, index, query_labels, index_labels, length)
        lost = np.isinf(ranks)
        if np.isinf(np.median(ranks)):  # it lies beyond the lists
            arguments = queries[lost], index.vectors, query_labels[lost], index_labels
            ranks[lost] = _ranks(*arguments, block_size)
    else:
        ranks = _ranks(queries, index.vectors, query_labels, index_labels, block_size)
    shares = {f"R@{k}": float(np.mean(ranks <= k)) for k in ks}
    return {**shares, "median_rank": float(np.median(ranks))}


def _ranks(queries, index, query_labels, index_labels, block_size):
    """Rank of the nearest row that belongs to a query, `(N,)`.

    Block after block, twice: what belongs may be in the last block, and holding all similarities
    until then is what a large index does not allow.
    """

    def blocks(rows):
        for start in range(0, len(index), _INDEX_BLOCK):
            columns = slice(start, start + _INDEX_BLOCK)
            belongs = query_labels[rows, None] == index_labels[None, columns]
            yield queries[rows] @ index[columns].T, belongs

    ranks = np.ones(len(queries))
    for start in range(0, len(queries), block_size):
        rows = slice(start, start + block_size)
        best = np.full((len(ranks[rows]), 1), -np.inf, "float32")
        for similarity, belongs in blocks(rows):
            own = np.where(belongs, similarity, -np.inf).max(axis=1, keepdims=True)
            best = np.maximum(best, own)
        for similarity, belongs in blocks(rows):
            ranks[rows] += ((similarity >= best - _TIE) & ~belongs).sum(axis=1)
    return ranks


def _ranks_in_lists(queries, index, query_labels, index_labels, length):
    """The same from lists of the nearest rows; infinite where a list does not tell."""
    neighbours, similarity = index.search(queries, length)
    belongs = query_labels[:, None] == index_labels[neighbours]
    best = np.where(belongs, similarity, -np.inf).max(axis=1, keepdims=True)
    ranks = 1.0 + ((similarity >= best - _TIE) & ~belongs).sum(axis=1)
    # Nothing that belongs, or rows beyond the list may be as near as that.
    ends = similarity[:, -1] < best[:, 0] - _TIE if length < len(index) else True
    return np.where(belongs.any(axis=1) & ends, ranks, np.inf)


def _labels(queries, index, query_labels, index_labels):
    """Labels as small integers, equal where the given ones are."""
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
    _, numbers = np.unique(np.concatenate([query_labels, index_labels]), return_inverse=True)
    return numbers[: len(queries)], numbers[len(queries) :]
