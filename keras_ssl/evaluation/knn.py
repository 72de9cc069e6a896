"""Weighted k-nearest-neighbour classification of frozen features."""

import numpy as np
from keras import ops

from keras_ssl.evaluation.protocol import Protocol, chunks
from keras_ssl.training.compilation import compile_function


def _votes(queries, bank, labels, temperature, k, classes):
    """Votes `(Q, classes)` of the k nearest rows of the bank for each query."""
    similarity, index = ops.top_k(ops.matmul(queries, ops.transpose(bank)), k)
    # Relative to the nearest neighbour: the same votes up to a factor, without overflow. The
    # maximum and not the first column: XLA's top-k becomes a full sort when its result is sliced.
    nearest = ops.max(similarity, axis=1, keepdims=True)
    weights = ops.exp((similarity - nearest) / temperature)
    rows = ops.arange(queries.shape[0], dtype="int32")[:, None]
    segments = rows * classes + ops.take(labels, ops.cast(index, "int32"), axis=0)
    votes = ops.segment_sum(
        ops.reshape(weights, (-1,)),
        ops.reshape(segments, (-1,)),
        num_segments=queries.shape[0] * classes,
    )
    return ops.reshape(votes, (queries.shape[0], classes))


_compiled_votes = compile_function(_votes, static=("k", "classes"))


class KNNProtocol(Protocol):
    """Weighted k-NN on frozen features: no training, no choices but `k` and the temperature.

    For a query `q`, the `k` rows `b[i]` of the train set with the greatest similarity
    `s[i] = q . b[i]` (of unit vectors) vote for their labels with the weights
    `exp(s[i] / temperature)`. Top-1 is the class with most votes; top-5 counts a hit when the true
    class has votes and is among the five classes with most. Equal votes go to the smaller label.

    Args:
        k: number of neighbours; at most the size of the train set. 200 in the paper; DINO reports
            10, 20, 100 and 200 and finds 20 best.
        temperature: float > 0.
        normalize: divide features by their norms, so that the similarity is the cosine.
        chunk_size: queries handled at a time; the similarities of a chunk to the whole train set
            exist at once (`4 * chunk_size * train` bytes). Does not change the figures.
        version: of this definition. None: the newest.

    Raises:
        ValueError: for options out of range, or a `k` greater than the train set.

    Example:

    ```python
    result = KNNProtocol(k=20).evaluate(model, train=(x_train, y_train), test=(x_test, y_test))
    print(result)
    baseline = KNNProtocol(k=20).evaluate("pixels", train=..., test=...)
    ```

    Reference:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        2018, section 3.4; Caron et al. (DINO), 2021, `eval_knn`.
    """

    name = "knn"
    options = ("k", "temperature", "normalize")

    def __init__(
        self,
        k: int = 200,
        temperature: float = 0.07,
        normalize: bool = True,
        chunk_size: int = 256,
        version: str | None = None,
    ):
        for argument, value in (("k", k), ("chunk_size", chunk_size)):
            if not (isinstance(value, (int, np.integer)) and value >= 1):
                raise ValueError(f"`{argument}` must be an int >= 1. Received: {argument}={value}")
        if not temperature > 0:
            raise ValueError(
                f"`temperature` must be greater than 0. Received: temperature={temperature}"
            )
        self._set(version, k=int(k), temperature=float(temperature), normalize=bool(normalize))
        self.chunk_size = int(chunk_size)

    def _run(self, x_train, y_train, x_test, y_test, classes):
        if self.k > len(x_train):
            raise ValueError(
                "`k` must not be greater than the number of train samples. "
                f"Received: k={self.k} for {len(x_train)} samples"
            )
        if self.normalize:
            x_train, x_test = (
                x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
                for x in (x_train, x_test)
            )
        bank, labels = ops.convert_to_tensor(x_train), ops.convert_to_tensor(y_train)
        size = min(self.chunk_size, len(x_test))
        hits = {1: 0, 5: 0}
        targets = iter(np.split(y_test, range(size, len(y_test), size)))
        for queries, length in chunks(x_test, size):
            votes = _compiled_votes(
                ops.convert_to_tensor(queries),
                bank,
                labels,
                ops.convert_to_tensor(np.float32(self.temperature)),
                k=self.k,
                classes=classes,
            )
            votes = np.asarray(ops.convert_to_numpy(votes))[:length]
            target = next(targets)[:, None]
            ranking = np.argsort(-votes, axis=1, kind="stable")
            voted = np.take_along_axis(votes, target, axis=1)[:, 0] > 0
            for n in hits:
                hits[n] += int((voted & (ranking[:, :n] == target).any(axis=1)).sum())
        return {f"top{n}": hit / len(y_test) for n, hit in hits.items()}, {}
