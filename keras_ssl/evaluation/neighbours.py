"""Nearest neighbours by cosine."""

import numpy as np

from keras_ssl.evaluation.protocol import extract_features
from keras_ssl.evaluation.similarity_index import SimilarityIndex


def nearest_neighbours(
    model, queries, bank, count: int = 8, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a bank whose features are most like each query's, by cosine.

    Args:
        model: anything with `predict`, a function of the images, `"pixels"`, or `None` when
            `queries` and `bank` are features `(N, D)` already.
        queries: images or features, `N` of them.
        bank: images or features, `M` of them.
        count: neighbours of each query, at most `M`.
        batch_size: images at a time.

    Returns:
        `(index, similarity)`, int64 and float32 `(N, count)`, best first; of equal ones the
        smaller index first.

    Raises:
        ValueError: for a count out of range.

    Example:

    ```python
    index, similarity = keras_ssl.evaluation.nearest_neighbours(model, x_test[:5], x_train)
    ```
    """
    if not 1 <= count <= len(bank):
        raise ValueError(
            f"`count` must be from 1 to the size of the bank, {len(bank)}. Received: count={count}"
        )
    queries, bank = (extract_features(model, x, batch_size) for x in (queries, bank))
    return SimilarityIndex(bank, "numpy", batch_size).search(queries, count)
