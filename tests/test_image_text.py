"""CLIP, SigLIP and ALIGN: pairs in every form, training, zero-shot use, saving, going on."""

import sys
import types

import keras
import keras_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradients import compiled
from keras import ops
from toy import images, to_numpy, vit

from keras_ssl.backbones import ModifiedResNet, TextTransformer, small_resnet
from keras_ssl.converters import load_official, to_official
from keras_ssl.evaluation import retrieval, retrieval_recall, zero_shot_classifier
from keras_ssl.evaluation.templates import IMAGENET_7, IMAGENET_80
from keras_ssl.models import ALIGN, CLIP, SigLIP

PICTURES = images(16)
NAMES = [f"picture number {i}" for i in range(16)]


def text(**kwargs) -> TextTransformer:
    return TextTransformer(
        **{**dict(hidden_dim=8, num_heads=2, num_layers=1, context_length=8), **kwargs}
    )


def clip(**kwargs) -> CLIP:
    return CLIP(vit(num_layers=1), text(), 8, seed=1, **kwargs)


def siglip() -> SigLIP:
    backbone = vit(num_layers=1, use_class_token=False, activation="gelu_tanh")
    return SigLIP(backbone, text(causal=False), block_size=3, seed=1)


def align() -> ALIGN:
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=99, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, dropout=0.0
    )
    return ALIGN(small_resnet((16, 16, 3), 4), bert, tokenizer=words, seed=1)


@keras.saving.register_keras_serializable(package="test")
def words(texts):
    """A tokenizer as short as can be: a word is its hash."""
    ids = np.zeros((len(texts), 6), "int32")
    for row, caption in zip(ids, texts, strict=True):
        found = [1 + sum(map(ord, word)) % 98 for word in caption.split()][:6]
        row[: len(found)] = found
    return ids


@pytest.fixture(scope="module", params=[clip, siglip, align])
def trained(request, tmp_path_factory):
    """A model after the first of two epochs, and where it was saved then."""
    keras.utils.set_random_seed(0)
    model = request.param()
    model.compile(epochs=2)
    history = model.fit(PICTURES, NAMES, batch_size=8, validation_data=(PICTURES, NAMES), verbose=0)
    folder = tmp_path_factory.mktemp("model")
    model.save(folder / "model.keras")
    model.save_to_preset(str(folder / "preset"))
    return model, history, folder


def state(model):
    return [to_numpy(v).copy() for v in model.variables]


def test_fit_logs_and_evaluate_touches_nothing(trained):
    model, history, _ = trained
    assert {"loss", "val_loss"} <= set(history.history)
    assert int(model.seen_batches) == 2
    before = state(model)
    first = model.evaluate(PICTURES, NAMES, batch_size=8, verbose=0, return_dict=True)
    second = model.evaluate(PICTURES, NAMES, batch_size=8, verbose=0, return_dict=True)
    assert first == second and np.isfinite(first["loss"])
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_both_sides_give_unit_vectors_of_one_space(trained):
    model, _, _ = trained
    x, y = model.predict(PICTURES, batch_size=8, verbose=0), model.encode_text(NAMES[:5], 8)
    assert x.shape == (16, model.projection_dim) and y.shape == (5, model.projection_dim)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.encode_image(PICTURES, 8), x, atol=1e-6)
    p = model.classify(PICTURES, ["cat", "dog", "bird"], "name", batch_size=8)
    assert p.shape == (16, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)


def test_saved_whole_and_goes_on_as_if_never_stopped(trained):
    model, _, folder = trained
    preset = type(model).from_preset(str(folder / "preset"))
    loaded = keras.saving.load_model(folder / "model.keras")
    for other in (preset, loaded):
        np.testing.assert_allclose(
            other.encode_text(NAMES, 8), model.encode_text(NAMES, 8), atol=1e-6
        )
    results = []
    for other in (model, loaded):
        other.fit(PICTURES, NAMES, batch_size=8, epochs=2, initial_epoch=1, verbose=0)
        results.append(other.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


# === Pairs ===================================================================================


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return clip()


def test_pairs_in_every_form(model):
    ids = model.tokenize(NAMES)
    for data in (
        model._data(PICTURES, NAMES),
        model._data((PICTURES, NAMES)),
        model._data({"images": PICTURES, "texts": np.array(NAMES)}),
        model._data(PICTURES, ids),
        model._data(iter([(PICTURES, NAMES)])).__next__()[0],
        model._data([(PICTURES, NAMES)])[0][0],
        model._data([{"images": PICTURES, "token_ids": ids}])[0][0],
    ):
        np.testing.assert_array_equal(data["token_ids"], ids)
        assert data["images"] is PICTURES
    with pytest.raises(ValueError, match="as many texts as images. Received:.*15"):
        model.fit(PICTURES, NAMES[:15])
    with pytest.raises(ValueError, match='needs the keys "images" and "texts"'):
        model.fit({"images": PICTURES})
    with pytest.raises(ValueError, match="Training needs pairs"):
        model.fit(PICTURES)


@pytest.mark.parametrize("make", [clip, align])
def test_ids_that_are_none_are_refused(make):
    """Before any step, with the value and the size of the vocabulary, in any form."""
    model = make()
    count = model.text_backbone.vocabulary_size
    good = np.ones((16, 6), "int32")
    good[3, 2] = count - 1
    np.testing.assert_array_equal(model.tokenize(good.astype("float32")), good)
    weights = model.get_weights()
    for value, message in ((count, rf"\[0, {count - 1}\].*has {count}.*id {count}"), (-1, "id -1")):
        bad = good.copy()
        bad[3, 2] = value
        for data in (
            (PICTURES, bad),
            (PICTURES, ops.convert_to_tensor(bad)),
            ({"images": PICTURES, "token_ids": bad},),
            (iter([(PICTURES, bad)]),),
        ):
            with pytest.raises(ValueError, match=message):
                model.fit(*data, verbose=0)
        for call in (model.encode_text, lambda ids: model.evaluate(PICTURES, ids, verbose=0)):
            with pytest.raises(ValueError, match=message):
                call(bad)
    for bad, message in (
        (good * np.nan, "whole numbers. Received: nan"),
        (good + 0.5, "whole numbers. Received: 1.5"),
        (np.full((16, 6), "cat"), 'strings go under "texts"'),
        (good[0], r"shape \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit({"images": PICTURES, "token_ids": bad}, verbose=0)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    model.tokenizer = lambda texts: np.full((len(texts), 6), count)
    with pytest.raises(ValueError, match="Does the tokenizer belong to it"):
        model.encode_text("a cat")


def test_which_pairs_fit(model):
    """Captions of the own image, of other pictures of the same thing, and equal captions."""
    texts = [["a cat", "cat"], ["a dog", None], ["cat", "pet"], ["a cow", "cow"]]
    (image_labels, text_labels), (image_mask, text_mask) = model.pairs(
        model.tokenize(texts), np.array([5, 6, 7, 6])
    )
    image_labels, text_labels = to_numpy(image_labels), to_numpy(text_labels)
    fits = (image_labels[:, None] == text_labels[None]).any(-1)
    expected = np.zeros((4, 8), bool)
    expected[0, [0, 1, 4]] = True  # "cat" is the third image's caption as well
    expected[2, [1, 4, 5]] = True
    expected[1, [2, 6, 7]] = expected[3, [2, 6, 7]] = True  # pictures with one id
    present = to_numpy(text_mask)
    np.testing.assert_array_equal(present, [1, 1, 1, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(fits[:, present], expected[:, present])
    assert to_numpy(image_mask).all()
    _, (image_mask, _) = model.pairs(model.tokenize(["a cat", ""]))
    np.testing.assert_array_equal(to_numpy(image_mask), [True, False])


# === What a model may do =====================================================================


def test_temperature_is_kept_and_a_locked_encoder_stays():
    model = clip(lock_image=True, match_duplicates=False)
    model.logit_scale.assign(np.log(120.0))
    locked = [w.copy() for w in model.backbone.get_weights()]
    start = model.get_weights()
    model.compile(keras.optimizers.SGD(1e-6))
    model.fit(PICTURES, NAMES, batch_size=8, verbose=0)
    assert float(to_numpy(model.logit_scale)) == pytest.approx(np.log(100), rel=1e-4)
    for old, new in zip(locked, model.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    end = model.get_weights()
    model.interpolate_weights(start, 0.25)
    for a, b, c in zip(start, end, model.get_weights(), strict=True):
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(c, 0.75 * a + 0.25 * b, atol=1e-6)
    with pytest.raises(ValueError, match="alpha=2"):
        model.interpolate_weights(start, 2)


def test_prompts_are_averaged(model):
    assert len(set(IMAGENET_80)) == 80 and set(IMAGENET_7) <= set(IMAGENET_80)
    templates = ["a {}.", "the {}."]
    weights = zero_shot_classifier(model, ["cat", "dog"], templates).weights
    mean = (model.encode_text(["a dog."]) + model.encode_text(["the dog."])) / 2
    np.testing.assert_allclose(weights[1], mean[0] / np.linalg.norm(mean), atol=1e-5)
    with pytest.raises(ValueError, match="templates with a {}"):
        zero_shot_classifier(model, ["cat"], ["a cat"])


def test_recall():
    index = np.eye(4, dtype="float32")
    queries = index[[0, 1, 2]] + 0.6 * index[[1, 0, 3]]
    recall = retrieval_recall(queries, index, [0, 0, 3], [0, 1, 2, 3], ks=(1, 2))
    assert recall == {"R@1": 1 / 3, "R@2": 1.0, "median_rank": 2.0}
    collapsed = retrieval_recall(np.ones((4, 3)), np.ones((4, 3)), ks=(1, 3))
    assert collapsed["R@3"] == 0.0  # equal embeddings find nothing
    with pytest.raises(ValueError, match="query label 7"):
        retrieval_recall(queries, index, [0, 1, 7], [0, 1, 2, 3])


def brute_force(queries, index, query_labels, index_labels, ks):
    """Recall by sorting in float64; no two rows are equally near."""
    unit = lambda x: x / np.linalg.norm(x.astype("float64"), axis=1, keepdims=True)
    order = np.argsort(-(unit(queries) @ unit(index).T), axis=1)
    hits = query_labels[:, None] == index_labels[order]
    ranks = 1 + hits.argmax(axis=1)
    return {**{f"R@{k}": np.mean(ranks <= k) for k in ks}, "median_rank": np.median(ranks)}


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_recall_is_the_same_with_every_engine_and_block(noise, monkeypatch):
    """A stand-in for faiss, which is no requirement: its exact index, by its documentation."""

    class Flat:
        def __init__(self, width):
            self.rows = np.zeros((0, width), "float32")

        def add(self, rows):
            self.rows = np.concatenate([self.rows, rows])

        def search(self, queries, count):
            similarity = queries @ self.rows.T
            order = np.argsort(-similarity, axis=1)[:, :count]
            return np.take_along_axis(similarity, order, axis=1), order

    monkeypatch.setitem(sys.modules, "faiss", types.SimpleNamespace(IndexFlatIP=Flat))
    rng = np.random.default_rng(0)
    index, labels = rng.normal(size=(300, 6)), np.char.add("thing ", np.arange(300).astype(str))
    labels[200:] = labels[:100]  # of some there are two
    asked = rng.integers(0, 300, 90)
    queries = index[asked] + noise * rng.normal(size=(90, 6))
    arguments, ks = (queries, index, labels[asked], labels), (1, 4, 20)
    expected = brute_force(*arguments, ks)
    for engine in ("numpy", "faiss", "auto"):
        assert retrieval_recall(*arguments, ks, engine=engine) == pytest.approx(expected)
    # Little memory: blocks of queries, and of an index as if it were large.
    monkeypatch.setattr(retrieval, "_INDEX_BLOCK", 64)
    assert retrieval_recall(*arguments, ks, block_size=7) == pytest.approx(expected)
    for engine in ("numpy", "faiss"):
        collapsed = retrieval_recall(np.ones((40, 3)), np.ones((40, 3)), ks=(1, 3), engine=engine)
        assert collapsed == {"R@1": 0.0, "R@3": 0.0, "median_rank": 40.0}
    with pytest.raises(ValueError, match="engine='hnsw'"):
        retrieval_recall(*arguments, engine="hnsw")


def test_modified_resnet_equals_plain_pytorch():
    keras.utils.set_random_seed(0)
    backbone = ModifiedResNet((64, 64, 3), (1, 2, 1, 1), width=4, output_dim=6)
    rng = np.random.default_rng(0)
    for v in backbone.weights:
        if "gamma" in v.path or "variance" in v.path:
            v.assign(rng.uniform(0.5, 1.5, v.shape))
    x = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    w = {k: torch.tensor(v) for k, v in to_official(backbone, "clip").items()}

    def unit(h, conv, norm, padding=0, stride=1):
        h = F.conv2d(h, w[f"visual.{conv}.weight"], padding=padding, stride=stride)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(h, *(w[f"visual.{norm}.{n}"] for n in names))

    h = torch.tensor(x).permute(0, 3, 1, 2)
    for i in (1, 2, 3):
        h = F.relu(unit(h, f"conv{i}", f"bn{i}", 1, 2 if i == 1 else 1))
    h = F.avg_pool2d(h, 2)
    for stage, count in enumerate((1, 2, 1, 1), 1):
        for i in range(count):
            name, stride = f"layer{stage}.{i}.", 2 if stage > 1 and not i else 1
            out = F.relu(unit(h, name + "conv1", name + "bn1"))
            out = F.relu(unit(out, name + "conv2", name + "bn2", 1))
            out = unit(F.avg_pool2d(out, stride), name + "conv3", name + "bn3")
            if not i:
                h = unit(F.avg_pool2d(h, stride), name + "downsample.0", name + "downsample.1")
            h = F.relu(out + h)
    h = h.flatten(2).permute(2, 0, 1)
    h = torch.cat([h.mean(0, keepdim=True), h])
    pool = {k.removeprefix("visual.attnpool."): v for k, v in w.items() if "attnpool" in k}
    h = h + pool["positional_embedding"][:, None]
    h, _ = F.multi_head_attention_forward(
        h[:1], h, h, h.shape[-1], 2, None,
        torch.cat([pool[f"{p}_proj.bias"] for p in "qkv"]), None, None, False, 0.0,
        pool["c_proj.weight"], pool["c_proj.bias"], use_separate_proj_weight=True,
        **{f"{p}_proj_weight": pool[f"{p}_proj.weight"] for p in "qkv"},
    )  # fmt: skip
    ours = to_numpy(compiled(backbone)(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(ours, h[0].numpy(), rtol=1e-3, atol=1e-4 * np.abs(ours).max())
    report = load_official(backbone, {k: v.numpy() for k, v in w.items()}, layout="clip")
    assert not report.missing and not report.left
