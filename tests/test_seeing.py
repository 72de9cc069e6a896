"""Attention, its masks, components of features, neighbours and scenes, against other libraries."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import scipy.ndimage
import toy
from sklearn.decomposition import PCA
from sklearn.metrics import jaccard_score
from sklearn.neighbors import NearestNeighbors

from keras_ssl import datasets, evaluation, visualization
from keras_ssl.evaluation import (
    AttentionSegmentationProtocol,
    EvaluationResult,
    Protocol,
    attention_mask,
    attention_segmentation,
    centred_box,
    jaccard_index,
    nearest_neighbours,
    otsu_threshold,
    patch_features,
    threshold_masks,
)
from keras_ssl.visualization import attention_maps, feature_pca
from keras_ssl.visualization.features import principal_components


@pytest.fixture(scope="module")
def backbone():
    model = toy.vit(num_register_tokens=2)
    toy.fill(model, scale=0.3)
    return model


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype("float32")


def enlarged(maps, size, order):
    """scipy's enlargement of `(h, w)`, pixel centres aligned as areas."""
    zoom = [new / old for new, old in zip(size, maps.shape, strict=True)]
    return scipy.ndimage.zoom(
        maps.astype("float64"), zoom, order=order, grid_mode=True, mode="nearest"
    )


def numpy_attention(backbone, images, query):
    """Attention of the first block from its weights, in float64: (N, heads, tokens)."""
    x = toy.to_numpy(backbone.embed(images)).astype("float64")
    block = backbone.blocks[0]
    weights = {v.path.split("block_0/")[1]: toy.to_numpy(v) for v in block.weights}
    norm = next(k.rsplit("/", 1)[0] for k in weights if k.endswith("gamma"))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * weights[f"{norm}/gamma"] + weights[f"{norm}/beta"]
    kernel, bias = (
        next(v for k, v in weights.items() if k.endswith(f"qkv/{n}")) for n in ("kernel", "bias")
    )
    q, k, _ = np.split(x @ kernel + bias, 3, axis=-1)
    n, t, d = q.shape
    q, k = (a.reshape(n, t, 2, d // 2).transpose(0, 2, 1, 3) for a in (q, k))
    logits = q[:, :, query] @ k.transpose(0, 1, 3, 2) / np.sqrt(d // 2)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


# ---- attention maps


def test_attention_maps_equal_numpy(backbone, pictures):
    maps = attention_maps(backbone, pictures, batch_size=2)
    assert maps.shape == (5, 2, 2, 4, 4) and maps.dtype == np.float32
    expected = numpy_attention(backbone, pictures, [0])[:, :, 0, 3:]
    np.testing.assert_allclose(maps[:, 0], expected.reshape(5, 2, 4, 4), atol=1e-6)
    assert (maps.sum((-2, -1)) < 1).all()
    np.testing.assert_allclose(attention_maps(backbone, pictures, -1), maps[:, 1], atol=1e-6)


def test_attention_of_patches_and_of_their_mean(backbone, pictures):
    queries = numpy_attention(backbone, pictures, np.arange(3, 19))[..., 3:]  # (N, heads, 16, 16)
    one = attention_maps(backbone, pictures, 0, query=(1, 2))
    np.testing.assert_allclose(one.reshape(5, 2, 16), queries[:, :, 6], atol=1e-6)
    mean = attention_maps(backbone, pictures, 0, query="mean")
    np.testing.assert_allclose(mean.reshape(5, 2, 16), queries.mean(2), atol=1e-6)


def test_a_task_prepares_its_images_and_may_see_them_larger():
    model = toy.simclr()
    images = toy.images(3, size=20)
    ready = toy.to_numpy(model.preprocess(images))
    np.testing.assert_allclose(
        attention_maps(model, images), attention_maps(model.backbone, ready), atol=1e-6
    )
    assert attention_maps(model, images, -1, image_size=(24, 32)).shape == (3, 2, 6, 8)
    assert model.preprocessor.image_converter.image_size == (16, 16)
    np.testing.assert_allclose(
        patch_features(model, images),
        toy.to_numpy(model.backbone(ready))[:, 1:].reshape(3, 4, 4, 16),
        atol=1e-5,
    )


def test_patch_features_of_layers_and_of_convolutions(backbone, pictures):
    outputs = backbone(pictures, return_intermediate=True)
    for layer in (None, 0):
        tokens = outputs["tokens"] if layer is None else outputs["intermediate"][layer]
        np.testing.assert_allclose(
            patch_features(backbone, pictures, layer),
            toy.to_numpy(tokens)[:, 3:].reshape(5, 4, 4, 16),
            atol=1e-5,
        )
    network = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.AveragePooling2D(4)])
    expected = pictures.reshape(5, 4, 4, 4, 4, 3).mean((2, 4))
    np.testing.assert_allclose(patch_features(network, pictures), expected, atol=1e-5)


# ---- masks and Jaccard index


@pytest.mark.parametrize("mass", [0.3, 0.6, 0.95])
def test_attention_mask(mass):
    attention = np.random.default_rng(1).random((3, 2, 5, 4)).astype("float32") ** 3
    masks = attention_mask(attention, mass)
    for row, mask in zip(attention.reshape(-1, 20), masks.reshape(-1, 20), strict=True):
        # the official steps: sort, cumulate, cut, put back
        order = np.argsort(row)
        keep = np.cumsum(row[order].astype("float64")) / row.sum(dtype="float64") > 1 - mass
        np.testing.assert_array_equal(mask, keep[np.argsort(order)])
        kept = row[mask].sum() / row.sum()
        assert kept >= mass - 1e-6 and kept - row[mask].min() / row.sum() <= mass + 1e-6


def test_jaccard_index_equals_scikit_learn():
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 6, 7, 5)) > 0.6
    expected = [jaccard_score(x.ravel(), y.ravel()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(jaccard_index(a, b), expected)
    assert jaccard_index(a[0], ~a[0]) == 0 and jaccard_index(a * False, a * False).min() == 1


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_attention_segmentation(backbone, pictures, interpolation):
    masks = np.zeros((5, 12, 12), "bool")
    masks[:, 3:9, 2:8] = True
    protocol = AttentionSegmentationProtocol(0.5, interpolation=interpolation)
    result = protocol.evaluate(backbone, test=(pictures, masks))
    scores = []
    for picture, mask in zip(attention_maps(backbone, pictures, -1), masks, strict=True):
        for head in picture:
            if interpolation == "nearest":
                keep = enlarged(attention_mask(head, 0.5), (12, 12), 0) > 0.5
            else:
                keep = attention_mask(enlarged(head, (12, 12), 1), 0.5)
            scores.append(jaccard_score(mask.ravel(), keep.ravel()))
    scores = np.reshape(scores, (5, 2))
    assert result.metrics == pytest.approx(
        {
            "jaccard_best_head": scores.max(1).mean(),
            "jaccard_fixed_head": scores.mean(0).max(),
            "jaccard_mean_head": scores.mean(),
        },
        abs=0.01,  # ties of equal attention
    )
    assert result.details["best_head"] == scores.mean(0).argmax()
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert "jaccard_best_head" in str(result)


def test_attention_that_is_the_mask_scores_one():
    masks = np.zeros((3, 8, 8), "int64")
    masks[:, 2:6, 4:8] = 1
    maps = np.stack([masks[:, ::2, ::2], np.ones((3, 4, 4))], axis=1)
    result = AttentionSegmentationProtocol(1.0).evaluate(test=(maps, masks))
    assert result.metrics["jaccard_fixed_head"] == result.metrics["jaccard_best_head"] == 1.0
    assert result.details["jaccard_by_head"] == [1.0, 0.25]


# ---- what needs no network


def test_otsu_splits_where_the_variance_between_is_greatest():
    rng = np.random.default_rng(7)
    values = np.concatenate([rng.normal(0, 1, 300), rng.normal(6, 1, 200)])
    threshold = otsu_threshold(values)

    # Value by value instead of by a histogram.
    def between(t):
        low, high = values[values <= t], values[values > t]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(t) for t in np.sort(values)[:-1])
    assert between(threshold) > 0.999 * best and 2 < threshold < 4
    assert otsu_threshold(np.full(5, 3.0)) == 3.0


def test_baselines_of_segmentation():
    rng = np.random.default_rng(8)
    masks = np.zeros((6, 32, 32), "bool")
    masks[:, 8:24, 8:24] = True
    flat = np.full((6, 32, 32, 3), 60, "uint8")
    bright, dark = (np.where(masks[..., None], value, flat) for value in (200, 10))
    for pictures in (bright, dark):
        np.testing.assert_array_equal(threshold_masks(pictures), masks)
    # Noise of the same mean brightness: only its contrast shows it.
    noisy = np.where(masks[..., None], rng.integers(0, 121, flat.shape), flat)
    np.testing.assert_array_equal(threshold_masks(noisy, "contrast"), masks)
    assert jaccard_index(threshold_masks(noisy), masks).mean() < 0.6
    np.testing.assert_array_equal(centred_box(masks), masks[0])
    figures = evaluation.segmentation_baselines(bright, masks, np.roll(masks, 1, axis=1))
    assert figures["whole picture"] == 0.25 and figures["threshold on luminance"] == 1
    assert 0.75 < figures["box in the middle"] <= 1


# ---- pictures


def test_principal_components_equal_scikit_learn():
    x = np.random.default_rng(3).normal(size=(50, 6)) * [5, 3, 2, 1, 1, 1]
    mean, components = principal_components(x, 3)
    reference = PCA(3).fit(x)
    np.testing.assert_allclose(mean, reference.mean_)
    np.testing.assert_allclose(
        np.abs(np.sum(components * reference.components_, axis=1)), 1, atol=1e-9
    )
    assert (components[[0, 1, 2], np.abs(components).argmax(1)] > 0).all()


def test_feature_pca():
    rng = np.random.default_rng(4)
    features = 0.1 * rng.normal(size=(3, 6, 6, 8))
    features[:, 2:5, 2:5] += rng.normal(size=8) * 3  # a thing, and the background around it
    thing = np.zeros((6, 6), "bool")
    thing[2:5, 2:5] = True
    colours = feature_pca(None, features, foreground=True)
    assert colours.shape == (3, 6, 6, 3)
    assert (colours[:, ~thing] == 0).all() and (colours[:, thing] > 0).any(-1).all()
    everything = feature_pca(None, features)
    projected = PCA(3).fit_transform(features.reshape(-1, 8).astype("float32"))
    for channel in range(3):
        correlation = np.corrcoef(everything[..., channel].ravel(), projected[:, channel])[0, 1]
        assert abs(correlation) > 0.97  # stretched and cut at the percentiles
    assert everything.min() == 0 and everything.max() == 1


def test_nearest_neighbours_equal_scikit_learn():
    rng = np.random.default_rng(5)
    queries, bank = rng.normal(size=(7, 4)), rng.normal(size=(30, 4))
    index, similarity = nearest_neighbours(None, queries, bank, 5, batch_size=3)
    reference = NearestNeighbors(n_neighbors=5, metric="cosine").fit(bank)
    distance, expected = reference.kneighbors(queries)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-6)


def test_grids():
    model = toy.simclr()
    images = toy.images(5, size=16)
    grid = visualization.attention_grid(model, images, zoom=1)
    assert grid.size == (3 * 18 + 2, 5 * 18 + 2)
    np.testing.assert_array_equal(np.asarray(grid)[2:18, 2:18], images[0])
    for interpolation in ("nearest", "bilinear"):
        masked = visualization.attention_grid(
            model, images, mass=0.6, interpolation=interpolation, zoom=1
        )
        cell = np.asarray(masked)[2:18, 20:36]
        untouched = (cell == images[0]).all(-1)
        assert 0.2 < untouched.mean() < 0.95
    assert visualization.feature_pca_grid(model, images, columns=3, zoom=1).size == (56, 74)
    nearest = np.asarray(visualization.neighbour_grid("pixels", images, images, count=2, zoom=1))
    assert nearest.shape == (5 * 18 + 2, 3 * 18 + 2, 3)
    np.testing.assert_array_equal(nearest[2:18, 20:36], images[0])  # itself
    heat = visualization.heat_map(np.arange(12.0).reshape(3, 4)).astype("int64")
    assert (np.diff(heat.sum(-1).ravel()) > 0).all()  # lighter and lighter
    assert (visualization.heat_map(np.ones((2, 2))) == [0, 0, 4]).all()


# ---- scenes


def test_scenes_hold_what_was_pasted():
    emoji = datasets.load_emoji(styles="twemoji").select(slice(0, 12))
    photos = np.random.default_rng(6).integers(0, 256, (4, 20, 30, 3), "uint8")
    scenes = datasets.paste_on_photos(emoji, photos, image_size=48, scale=(0.5, 0.8), seed=3)
    assert scenes.images.shape == (12, 48, 48, 3) and scenes.alphas.shape == (12, 48, 48)
    assert scenes.images.dtype == scenes.alphas.dtype == np.uint8
    np.testing.assert_array_equal(scenes.captions, emoji.captions)
    again = datasets.paste_on_photos(emoji, photos, image_size=48, scale=(0.5, 0.8), seed=3)
    np.testing.assert_array_equal(scenes.images, again.images)
    other = datasets.paste_on_photos(emoji, photos, image_size=48, scale=(0.5, 0.8), seed=4)
    assert (other.alphas != scenes.alphas).any()
    black = datasets.paste_on_photos(emoji, photos * 0, 48, (0.5, 0.8), seed=3)
    np.testing.assert_array_equal(black.alphas, scenes.alphas)
    inside, outside = scenes.alphas == 255, scenes.alphas == 0
    np.testing.assert_array_equal(scenes.images[inside], black.images[inside])
    assert (black.images[outside] == 0).all() and (scenes.images[outside] > 0).mean() > 0.9
    # the drawing's area shrinks with the square of its scale
    share = (scenes.alphas > 127).mean((1, 2)) / (emoji.alphas > 127).mean((1, 2))
    assert (share > 0.5**2 * 0.85).all() and (share < 0.8**2 * 1.15).all()
    # a part of a picture whose left is red and whose right is blue: mostly one of them
    halves = np.zeros((1, 32, 32, 3), "uint8")
    halves[:, :, :16, 0] = halves[:, :, 16:, 2] = 255
    blank = emoji.select(np.zeros(40, "int64"))
    blank = dataclasses.replace(blank, images=blank.images * 0)
    part = datasets.paste_on_photos(blank, halves, 16, photo_scale=(0.25, 0.25))
    red = (part.images[..., 0] > part.images[..., 2]).mean((1, 2))
    assert 0.5 < ((red < 0.1) | (red > 0.9)).mean() < 1 and 0.2 < red.mean() < 0.8
    columns = scenes.alphas.any(1)
    assert (columns.sum(1) <= 0.8 * 48 + 1).all()


def few(**changes):
    emoji = datasets.load_emoji(styles="noto").select(slice(0, 2))
    photos = np.zeros((1, 8, 8, 3), "uint8")
    return datasets.paste_on_photos(**{"data": emoji, "photos": photos, **changes})


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: attention_maps(toy.vit(use_class_token=False), np.ones((1, 16, 16, 3))), "mean"),
        (lambda: attention_maps(toy.vit(), np.ones((1, 16, 16, 3)), 2), "2 layers.*layer=2"),
        (lambda: attention_maps(toy.vit(), np.ones((1, 16, 16, 3)), query="cls"), "query='cls'"),
        (lambda: attention_maps(toy.vit(), np.ones((1, 16, 16, 3)), query=(4, 0)), "4 x 4"),
        (lambda: attention_maps(toy.vit(), np.ones((16, 16, 3))), r"shape \(16, 16, 3\)"),
        (lambda: attention_maps(toy.vit(), np.ones((1, 16, 16, 3)), image_size=8), "image_size=8"),
        (lambda: attention_maps(keras.Sequential(), np.ones((1, 4, 4, 3))), "ViTBackbone"),
        (lambda: patch_features(toy.vit(), np.ones((1, 16, 16, 3)), 5), "layer=5"),
        (lambda: AttentionSegmentationProtocol(0), "mass=0"),
        (lambda: AttentionSegmentationProtocol(layer=None), "layer=None"),
        (lambda: AttentionSegmentationProtocol(interpolation="cubic"), "cubic"),
        (
            lambda: attention_segmentation(toy.vit(), np.ones((2, 16, 16, 3)), np.ones((1, 4, 4))),
            r"\(1, 4, 4\) for 2 images",
        ),
        (
            lambda: attention_segmentation(
                toy.vit(), np.ones((1, 16, 16, 3)), np.full((1, 4, 4), 255)
            ),
            "alpha > 127",
        ),
        (
            lambda: AttentionSegmentationProtocol().evaluate(
                test=(np.ones((1, 4, 4)), np.ones((1, 4, 4)))
            ),
            r"shape \(1, 4, 4\)",
        ),
        (lambda: threshold_masks(np.ones((1, 4, 4, 3)), "hue"), "of='hue'"),
        (lambda: threshold_masks(np.ones((1, 4, 4, 3)), "contrast"), "cells=8"),
        (lambda: principal_components(np.ones((2, 5)), 3), r"shape \(2, 5\)"),
        (lambda: feature_pca(None, np.ones((1, 4, 4, 2))), r"shape \(1, 4, 4, 2\)"),
        (lambda: nearest_neighbours(None, np.ones((1, 2)), np.ones((3, 2)), 4), "count=4"),
        (lambda: few(photos=np.zeros((1, 8, 8, 3))), "dtype float64"),
        (lambda: few(scale=(0.5, 1.5)), "scale="),
        (lambda: few(photo_scale=(0.0, 1.0)), "photo_scale="),
        (lambda: few(data=datasets.load_emoji("noto", background=(0, 0, 0))), "RGBA"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_names_are_where_a_reader_looks_for_them():
    assert evaluation.attention_maps is visualization.attention_maps
