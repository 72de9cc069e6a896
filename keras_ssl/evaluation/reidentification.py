"""Re-identification: are all pictures of a thing found among those of others?"""

from collections.abc import Sequence

import numpy as np

from keras_ssl.evaluation.similarity_index import unit_vectors


def mean_average_precision(
    queries,
    gallery,
    query_labels,
    gallery_labels,
    query_cameras=None,
    gallery_cameras=None,
    ranks: Sequence[int] = (1, 5, 10),
    block_size: int = 1024,
) -> dict[str, float]:
    """Re-identification: how well all pictures of an identity are found among those of others.

    The gallery is ranked by cosine similarity to a query, and

    `AP = 1/R sum_k P(k) rel(k)`

    over the `R` pictures of the query's identity, with `P(k)` the share of them among the first
    `k`. mAP is the mean over queries; Rank-k is the share of queries with one among the first `k`.
    What is exactly as similar as a picture of the identity counts as nearer. With cameras, pictures
    of the query's identity by the query's own camera are left out, as is usual.

    Args:
        queries: `(N, D)` embeddings.
        gallery: `(M, D)` embeddings.
        query_labels: `(N,)` identities.
        gallery_labels: `(M,)` identities; others than the queries' are distractors.
        query_cameras: `(N,)` cameras (or videos, styles), or `None`.
        gallery_cameras: `(M,)`; given with `query_cameras` or not at all.
        ranks: the k of Rank-k.
        block_size: queries that are compared at a time; bounds the memory.

    Returns:
        A dict of shares in [0, 1]: `{"mAP": ..., "Rank-1": ..., ...}`.

    Raises:
        ValueError: shapes that do not fit, or a query that the gallery has no other picture of.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> people = rng.normal(size=(20, 8))
    >>> seen = people[:, None] + 0.1 * rng.normal(size=(20, 3, 8))  # by three cameras
    >>> labels = np.arange(20)
    >>> result = mean_average_precision(seen[:, 0], seen[:, 1], labels, labels)
    >>> result["mAP"]
    1.0

    Reference:
        Zheng et al., Scalable Person Re-identification: A Benchmark, 2015, section 3.4 (its code
        interpolates the average precision by trapezoids; this is the plain sum).
    """
    queries, gallery = unit_vectors(queries), unit_vectors(gallery)
    own, theirs = np.asarray(query_labels), np.asarray(gallery_labels)
    if (query_cameras is None) != (gallery_cameras is None):
        raise ValueError("Give cameras for both sides or for neither. Received: one of them")
    cameras = [np.asarray(c) for c in (query_cameras, gallery_cameras) if c is not None]
    cameras = cameras or [np.zeros(len(queries)), np.ones(len(gallery))]
    for name, values, rows in (
        ("query_labels", own, queries),
        ("gallery_labels", theirs, gallery),
        ("query_cameras", cameras[0], queries),
        ("gallery_cameras", cameras[1], gallery),
    ):
        if values.shape != (len(rows),):
            raise ValueError(
                f"`{name}` must have one value for each of {len(rows)} rows. "
                f"Received: shape {values.shape}"
            )
    precisions, firsts = [], []
    for start in range(0, len(queries), block_size):
        rows = slice(start, start + block_size)
        similarity = queries[rows] @ gallery.T
        belongs = own[rows, None] == theirs[None, :]
        counts = ~(belongs & (cameras[0][rows, None] == cameras[1][None, :]))
        order = np.lexsort((belongs, -similarity))  # of equally similar ones, others first
        belongs, counts = (np.take_along_axis(x, order, axis=1) for x in (belongs & counts, counts))
        found = belongs.sum(axis=1)
        if not found.all():
            row = start + int(np.argmin(found))
            raise ValueError(
                "The gallery must have another picture of every query's identity, by another "
                f"camera. Received: none for query {row}, identity {own[row]}"
            )
        precision = np.cumsum(belongs, axis=1) / np.maximum(np.cumsum(counts, axis=1), 1)
        precisions.append((precision * belongs).sum(axis=1) / found)
        best = belongs.argmax(axis=1)[:, None]
        firsts.append(np.take_along_axis(np.cumsum(counts, axis=1), best, axis=1)[:, 0])
    firsts = np.concatenate(firsts)
    result = {"mAP": float(np.concatenate(precisions).mean())}
    return result | {f"Rank-{k}": float((firsts <= k).mean()) for k in ranks}
