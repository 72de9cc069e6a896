"""Search among vectors, near duplicates, re-identification: against NumPy and scikit-learn."""

import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from keras_ssl.evaluation import (
    SimilarityIndex,
    Whitening,
    mean_average_precision,
    nearest_neighbours,
    threshold_for_precision,
)


def vectors(count=60, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 6)).astype("float32")


def cosines(a, b):
    a, b = (x.astype("float64") for x in (a, b))
    return (a @ b.T) / (np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1))


@pytest.mark.parametrize("block_size", [7, 1024])
def test_search_finds_what_a_full_sort_finds(block_size):
    bank, queries = vectors(), vectors(20, seed=1)
    rows, similarity = SimilarityIndex(bank, block_size=block_size).search(queries, 9)
    expected = cosines(queries, bank)
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(similarity, np.sort(expected, axis=1)[:, ::-1][:, :9], atol=1e-6)
    one, _ = SimilarityIndex(bank).search(queries[0], 3)
    np.testing.assert_array_equal(one, rows[:1, :3])
    np.testing.assert_array_equal(nearest_neighbours(None, queries, bank, 9)[0], rows)
    assert SimilarityIndex(bank).search(queries, 999)[0].shape == (20, 60)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 5))
def test_equally_similar_rows_come_in_their_order(count, seed):
    kinds = np.random.default_rng(seed).integers(0, 3, 12)
    bank = np.eye(3)[kinds] * 2  # at most three different vectors
    rows, _ = SimilarityIndex(bank).search([[3.0, 2.0, 1.0]], count)
    np.testing.assert_array_equal(rows[0], np.argsort(kinds, kind="stable")[:count])


@pytest.mark.parametrize("block_size", [8, 1024])
def test_pairs_are_all_that_are_alike(block_size):
    bank = vectors()
    first, second, similarity = SimilarityIndex(bank, block_size=block_size).pairs(0.6)
    expected = np.triu(cosines(bank, bank), k=1)
    assert set(zip(first, second, strict=True)) == set(
        zip(*np.nonzero(expected >= 0.6), strict=True)
    )
    np.testing.assert_allclose(similarity, expected[first, second], atol=1e-6)
    assert len(first) and (np.diff(similarity) <= 0).all()
    assert len(SimilarityIndex(bank).pairs(1.1)[0]) == 0
    twice = SimilarityIndex(np.concatenate([bank, 7 * bank])).pairs(1.0)
    assert sorted(zip(twice[0], twice[1], strict=True)) == [(i, i + 60) for i in range(60)]


def test_faiss_is_asked_in_its_own_words(monkeypatch):
    """A stand-in with faiss' interface: the index adds unit vectors and asks for inner products."""

    class IndexFlatIP:
        def __init__(self, width):
            self.rows = np.empty((0, width), "float32")

        def add(self, rows):
            assert rows.dtype == np.float32
            self.rows = np.concatenate([self.rows, rows])

        def search(self, queries, count):
            products = queries @ self.rows.T
            order = np.argsort(-products, axis=1)[:, :count]
            return np.take_along_axis(products, order, axis=1), order

    monkeypatch.setitem(sys.modules, "faiss", types.SimpleNamespace(IndexFlatIP=IndexFlatIP))
    bank, queries = 3 * vectors(), vectors(5, seed=2)
    found, expected = (
        SimilarityIndex(bank, engine).search(queries) for engine in ("faiss", "numpy")
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        SimilarityIndex(bank, "faiss")
    assert SimilarityIndex(bank).engine == "numpy"


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="shape"):
        SimilarityIndex(np.zeros(3))
    with pytest.raises(ValueError, match="row 1"):
        SimilarityIndex([[1.0, 2.0], [np.nan, 1.0]])
    with pytest.raises(ValueError, match="engine"):
        SimilarityIndex(vectors(), "annoy")
    with pytest.raises(ValueError, match="take the model that made them"):
        SimilarityIndex(vectors()).search(np.ones((1, 5)))
    with pytest.raises(ValueError, match="count"):
        SimilarityIndex(vectors()).search(np.ones((1, 6)), 0)


def test_threshold_is_the_smallest_that_is_precise_enough():
    similarity = np.sort(np.random.default_rng(0).random(50))[::-1]
    right = np.random.default_rng(1).random(50) < np.linspace(1, 0.3, 50)
    threshold = threshold_for_precision(similarity, right, 0.8)
    assert right[similarity >= threshold].mean() >= 0.8
    for lower in similarity[similarity < threshold]:
        assert right[similarity >= lower].mean() < 0.8
    assert threshold_for_precision([0.9], [False]) == 1.0
    assert threshold_for_precision([0.9, 0.7], [True, False], 1.0) == pytest.approx(0.8)


def test_whitening_is_scikit_learns():
    x = np.random.default_rng(0).normal(size=(200, 5)) @ np.diag([9.0, 3, 1, 0.3, 0.1]) + 4
    found = Whitening(x, epsilon=0.0)(x)
    expected = PCA(whiten=True).fit_transform(x)
    # Axes may point the other way and come in another order: what counts is cosines.
    np.testing.assert_allclose(cosines(found, found), cosines(expected, expected), atol=1e-4)
    np.testing.assert_allclose(np.cov(found.T), np.eye(5), atol=0.01)
    # A direction without variance says nothing, and epsilon holds small ones back.
    flat = Whitening(np.pad(x, ((0, 0), (0, 1))), epsilon=0.0)(np.pad(x, ((0, 0), (0, 1))))
    np.testing.assert_allclose(cosines(flat, flat), cosines(found, found), atol=1e-4)
    assert np.linalg.eigvalsh(np.cov(Whitening(x, 0.1)(x).T))[0] < 0.01
    with pytest.raises(ValueError, match="epsilon"):
        Whitening(x, -1.0)


@pytest.mark.parametrize("block_size", [7, 1024])
def test_mean_average_precision_is_scikit_learns(block_size):
    queries, gallery = vectors(30, seed=1), vectors(80, seed=2)
    rng = np.random.default_rng(0)
    own, theirs = rng.integers(0, 8, 30), np.concatenate([np.arange(8), rng.integers(0, 12, 72)])
    result = mean_average_precision(
        queries, gallery, own, theirs, ranks=(1, 5), block_size=block_size
    )
    similarity = cosines(queries, gallery)
    precision = [
        average_precision_score(theirs == label, row)
        for label, row in zip(own, similarity, strict=True)
    ]
    assert result["mAP"] == pytest.approx(np.mean(precision))
    order = np.argsort(-similarity, axis=1)
    for k in (1, 5):
        hit = [(theirs[row[:k]] == label).any() for row, label in zip(order, own, strict=True)]
        assert result[f"Rank-{k}"] == pytest.approx(np.mean(hit))


def test_pictures_by_the_same_camera_do_not_count():
    # The query's own picture is its nearest, by its own camera: what is left is second of two.
    gallery = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    arguments = ([[1.0, 0.0]], gallery, ["a"], ["a", "b", "a"])
    assert mean_average_precision(*arguments)["Rank-1"] == 1.0
    result = mean_average_precision(*arguments, [0], [0, 1, 1])
    assert result["mAP"] == 0.5 and result["Rank-1"] == 0.0 and result["Rank-5"] == 1.0
    with pytest.raises(ValueError, match="none for query 0, identity a"):
        mean_average_precision(*arguments, [0], [0, 1, 0])
    with pytest.raises(ValueError, match="both sides"):
        mean_average_precision(*arguments, [0])
    with pytest.raises(ValueError, match="gallery_labels"):
        mean_average_precision([[1.0]], [[1.0]], ["a"], ["a", "b"])


def test_equal_embeddings_find_nothing():
    same = np.ones((6, 3))
    result = mean_average_precision(same[:2], same, [0, 1], [0, 1, 2, 2, 2, 2])
    assert result["mAP"] == pytest.approx(1 / 6) and result["Rank-1"] == 0.0
