"""Exact search among vectors by cosine: the most alike, and all pairs that are alike."""

from importlib.util import find_spec

import numpy as np

ENGINES = ("auto", "numpy", "faiss")
# From here on `"auto"` takes faiss where it is installed.
_LARGE = 100_000
# Equal vectors have similarities so close to 1: float32 rounds.
_ROUNDING = 1e-6


class SimilarityIndex:
    """Vectors to search by cosine similarity, `q . v / (|q| |v|)`.

    The search is exact, in NumPy or in faiss (`IndexFlatIP`), which is faster where there are many
    vectors and cores.

    Args:
        vectors: `(N, D)`, of any length; a copy of them, made unit vectors, is kept as float32.
        engine: `"numpy"`; `"faiss"`, which must be installed; `"auto"`: faiss for 100,000 vectors
            and more, if it is there.
        block_size: rows that are compared at a time, which bounds the memory.

    Raises:
        ValueError: the vectors are not two-dimensional and finite, or the engine is unknown.
        ImportError: `engine="faiss"`, which is not installed.

    Example:

    >>> index = SimilarityIndex([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> rows, similarity = index.search([[3.0, 0.1]], count=2)
    >>> rows
    array([[0, 2]])
    >>> index.pairs(0.5)[0].tolist(), index.pairs(0.5)[1].tolist()
    ([0, 1], [2, 2])
    """

    def __init__(self, vectors, engine: str = "auto", block_size: int = 1024):
        if engine not in ENGINES:
            raise ValueError(f"`engine` must be one of {ENGINES}. Received: engine={engine!r}")
        self.vectors = unit_vectors(vectors)
        self.block_size = block_size
        if engine == "auto":
            large = len(self.vectors) >= _LARGE and find_spec("faiss") is not None
            engine = "faiss" if large else "numpy"
        self.engine = engine
        self._faiss = None
        if engine == "faiss":
            try:
                import faiss
            except ImportError as error:
                raise ImportError(
                    'engine="faiss" needs `pip install faiss-cpu`; "numpy" does not.'
                ) from error
            self._faiss = faiss.IndexFlatIP(self.vectors.shape[1])
            self._faiss.add(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The rows most like each query.

        Args:
            queries: `(Q, D)`, or one query `(D,)`.
            count: how many; at most all.

        Returns:
            `(rows, similarity)`, int64 and float32 `(Q, count)`, best first; of equally similar
            ones NumPy takes the smaller row first.

        Raises:
            ValueError: queries of another width, or `count` below 1.
        """
        queries = unit_vectors(np.atleast_2d(np.asarray(queries, "float32")))
        if queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"A query has {queries.shape[1]} numbers and the vectors have "
                f"{self.vectors.shape[1]}: take the model that made them. "
                f"Received: queries of shape {queries.shape}"
            )
        if count < 1:
            raise ValueError(f"`count` must be 1 or more. Received: count={count}")
        count = min(count, len(self))
        if self._faiss is not None:
            similarity, rows = self._faiss.search(queries, count)
            return rows.astype("int64"), similarity
        found = [_best(queries[i] @ self.vectors.T, count) for i in self._blocks(len(queries))]
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def pairs(self, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pairs of rows that are at least so similar: near duplicates.

        Args:
            threshold: least cosine similarity, in [-1, 1]; 1 finds vectors of one direction.

        Returns:
            `(first, second, similarity)`, with `first < second`, the most similar pair first.
        """
        found = []
        for rows in self._blocks(len(self)):
            similarity = self.vectors[rows] @ self.vectors[rows.start :].T
            first, second = np.nonzero(np.triu(similarity >= threshold - _ROUNDING, k=1))
            found.append((first + rows.start, second + rows.start, similarity[first, second]))
        first, second, similarity = (np.concatenate(p) for p in zip(*found, strict=True))
        order = np.argsort(-similarity, kind="stable")
        return first[order], second[order], similarity[order]

    def _blocks(self, count):
        size = self.block_size
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def threshold_for_precision(similarity, right, precision: float = 0.95) -> float:
    """The similarity from which on so many of the pairs found are right.

    Args:
        similarity: `(P,)`, in falling order, as `SimilarityIndex.pairs` gives them.
        right: `(P,)` bool, whether each pair belongs together.
        precision: wanted share of right ones, in (0, 1].

    Returns:
        The smallest such threshold, halfway to the next pair; 1 where there is none.

    Example:

    >>> threshold_for_precision([0.9, 0.8, 0.6, 0.5], [True, True, False, True], 0.75)
    0.5
    """
    similarity = np.asarray(similarity, "float64")
    shares = np.cumsum(right) / np.arange(1, len(similarity) + 1)
    enough = np.flatnonzero(shares >= precision)
    if not len(enough):
        return 1.0
    return float(similarity[enough[-1] : enough[-1] + 2].mean())


class Whitening:
    """Makes every direction of embeddings count alike: PCA whitening, fitted on some of them.

    `w = U^T (x - m) / sqrt(lambda + epsilon mean(lambda))`, with mean `m`, and eigenvectors `U` and
    eigenvalues `lambda` of the covariance. What all pictures have in common, which makes cosines of
    features without negative values close to 1, no longer drowns what tells them apart: better
    for near duplicates and for search.

    Args:
        vectors: `(N, D)` to fit on; several times `D` of them.
        epsilon: how much directions of little variance are held back, in shares of the mean.

    Call arguments:
        vectors: `(M, D)`.

    Returns:
        float32 `(M, D)`, for `SimilarityIndex`.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> vectors = rng.normal(5.0, [[9.0, 0.1]], size=(500, 2))
    >>> Whitening(vectors, epsilon=0.0)(vectors).std(axis=0).round(3)
    array([1., 1.], dtype=float32)

    Reference:
        Jégou and Chum, Negative Evidences and Co-occurrences in Image Retrieval: the Benefit of PCA
        and Whitening, 2012.
    """

    def __init__(self, vectors, epsilon: float = 0.1):
        vectors = np.asarray(vectors, "float64")
        if vectors.ndim != 2 or len(vectors) < 2 or epsilon < 0:
            raise ValueError(
                "Whitening needs two or more vectors (N, D) and epsilon >= 0. "
                f"Received: shape {vectors.shape}, epsilon={epsilon}"
            )
        self.mean = vectors.mean(axis=0)
        variances, directions = np.linalg.eigh(
            np.cov(vectors.T, bias=True).reshape(self.mean.size, -1)
        )
        variances = np.maximum(variances, 0) + epsilon * variances.mean()
        # What does not vary at all stays where it is: nowhere.
        keep = variances > 1e-12 * max(variances.max(), 1e-30)
        self.matrix = directions * np.where(keep, 1 / np.sqrt(np.where(keep, variances, 1)), 0)

    def __call__(self, vectors) -> np.ndarray:
        return ((np.asarray(vectors, "float64") - self.mean) @ self.matrix).astype("float32")


def unit_vectors(x) -> np.ndarray:
    """A float32 copy of vectors `(N, D)`, each divided by its length; zeros stay zeros.

    Raises:
        ValueError: they are not two-dimensional, none, or not finite.
    """
    x = np.asarray(x, "float32")
    if x.ndim != 2 or not len(x):
        raise ValueError(f"Embeddings must have the shape (N, D). Received: shape {x.shape}")
    if not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).all(axis=1)))
        raise ValueError(f"Embeddings must be finite. Received: NaN or infinity in row {row}")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _best(similarity, count):
    """The `count` greatest of every row, of equal ones those with the smaller index."""
    least = np.partition(similarity, -count, axis=1)[:, -count:][:, :1]
    above, equal = similarity > least, similarity == least
    room = count - above.sum(axis=1, keepdims=True)
    keep = above | (equal & (np.cumsum(equal, axis=1) <= room))
    rows = np.nonzero(keep)[1].reshape(-1, count)
    values = np.take_along_axis(similarity, rows, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)
