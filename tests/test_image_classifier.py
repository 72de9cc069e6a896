"""Fine-tuning."""

import keras
import keras_hub
import numpy as np
import pytest
from gradients import compiled
from toy import dino, fill, images, simclr, to_numpy, vit

import keras_ssl
from keras_ssl.backbones import ViTBackbone, resnet, small_resnet
from keras_ssl.layers.image_converter import default_preprocessor
from keras_ssl.models import DINO, ImageClassifier
from keras_ssl.training.labelled_batches import LabelledBatches

PICTURES = images(24, size=16)
LABELS = (PICTURES.mean(axis=(1, 2))[:, 0] > PICTURES.mean()).astype("int32")


def test_mean_pooling_is_before_the_final_normalisation():
    backbone = vit()
    fill(backbone, scale=0.3)
    model = ImageClassifier(backbone, 3, pooling="mean")
    x = np.random.default_rng(0).random((2, 16, 16, 3)).astype("float32")
    tokens = compiled(lambda: backbone(x, return_intermediate=True)["intermediate"][-1])()
    mean = to_numpy(tokens).astype("float64")[:, 1:].mean(axis=1)
    centered = mean - mean.mean(axis=1, keepdims=True)
    expected = centered / np.sqrt(mean.var(axis=1, keepdims=True) + 1e-6)
    features = to_numpy(compiled(lambda: model.features(x))())
    np.testing.assert_allclose(features, expected, atol=1e-4)
    # What takes no part is not trained.
    assert not any(v is backbone.norm.gamma for v in model.trainable_variables)


def test_it_learns_saves_and_continues(tmp_path):
    keras.utils.set_random_seed(0)
    backbone = vit()
    fill(backbone)
    model = ImageClassifier(backbone, 2, preprocessor=default_preprocessor(backbone))
    model.compile(learning_rate=1e-2, layer_decay=0.9, total_steps=50)
    history = model.fit(PICTURES, LABELS, batch_size=24, epochs=40, verbose=0).history
    assert history["sparse_categorical_accuracy"][-1] >= 0.9
    model.save(tmp_path / "classifier.keras")
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_allclose(
        loaded.predict(PICTURES, verbose=0), model.predict(PICTURES, verbose=0), atol=1e-6
    )
    groups = [m.optimizer.get_config()["learning_rate_multipliers"] for m in (model, loaded)]
    assert groups[0] == groups[1] == model.backbone.layer_decay_multipliers(0.9)
    runs = [m.fit(PICTURES, LABELS, batch_size=24, epochs=3, verbose=0) for m in (model, loaded)]
    np.testing.assert_allclose(*(run.history["loss"] for run in runs), rtol=1e-4)

    model.save_to_preset(str(tmp_path / "preset"))
    hub = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(
        hub.predict(PICTURES, verbose=0), model.predict(PICTURES, verbose=0), atol=1e-6
    )


def test_preprocessing_in_keras_hub_and_in_the_graph_agree():
    """The classifier prepares images on the host (keras-hub), the methods in the compiled step."""
    from keras_ssl.layers.image_converter import convert_images

    preprocessor = default_preprocessor(vit())
    for size in [(16, 16), (40, 40), (24, 36)]:
        smooth = np.linspace(0, 255, size[0] * size[1] * 3).reshape(1, *size, 3)
        on_host = to_numpy(preprocessor(smooth.astype("float32")))
        in_graph = to_numpy(convert_images(smooth.astype("float32"), preprocessor.image_converter))
        assert in_graph.shape == (1, 16, 16, 3)
        np.testing.assert_allclose(in_graph, on_host, atol=0.03)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="pooling"):
        ImageClassifier(vit(), 2, pooling="max")
    with pytest.raises(ValueError, match="no class token"):
        ImageClassifier(vit(use_class_token=False), 2, pooling="token")


def test_arrays_sorted_by_class_are_shuffled(monkeypatch):
    """As folders give them. keras-hub's own `fit` would take them in this order."""
    keras.utils.set_random_seed(0)
    order = np.argsort(LABELS, kind="stable")
    seen = LabelledBatches(np.arange(24).reshape(24, 1, 1, 1), LABELS[order], 6, seed=1)
    rows = []
    for _ in range(2):
        batches = [seen[i] for i in range(len(seen))]
        rows.append(np.concatenate([x.ravel() for x, _ in batches]))
        np.testing.assert_array_equal(
            np.concatenate([y for _, y in batches]), LABELS[order][rows[-1]]
        )
        seen.on_epoch_end()
    assert all(sorted(r) == list(range(24)) and (r != np.arange(24)).any() for r in rows)
    assert (rows[0] != rows[1]).any()

    # `fit` takes these, and does not let Keras shuffle whole batches in place of pictures.
    given = {}
    monkeypatch.setattr(keras.Model, "fit", lambda self, x, **kwargs: given.update(x=x, **kwargs))
    model = ImageClassifier(vit(num_layers=1), 2)
    x = (PICTURES[order] / 255.0).astype("float32")
    model.fit(x, LABELS[order], batch_size=6, validation_data=(x, LABELS[order]))
    assert isinstance(given["x"], LabelledBatches) and not given["shuffle"]
    labels = [set(given["x"][i][1]) for i in range(4)]
    assert any(len(batch) == 2 for batch in labels)
    held_out = given["validation_data"]
    np.testing.assert_array_equal(np.concatenate([held_out[i][0] for i in range(4)]), x)
    with pytest.raises(ValueError, match="validation_data"):
        model.fit(x, LABELS, validation_data=iter([x]))


def weights(model):
    return [to_numpy(w) for w in model.weights]


def assert_same(a, b):
    for x, y in zip(weights(a), weights(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", sorted(keras_ssl.list_presets()))
def test_over_every_shipped_preset(name):
    """A classifier gets the encoder that the method's `predict` uses, and its preprocessing."""
    method = getattr(keras_ssl.models, keras_ssl.list_presets()[name]["method"])
    model = method.from_preset(name)
    folder = keras_ssl.resolve_preset(name)
    classifier = ImageClassifier.from_preset(name, num_classes=3)
    hub = keras_hub.models.ImageClassifier.from_preset(folder, num_classes=3)
    backbone = keras_hub.models.Backbone.from_preset(folder)
    assert type(hub) is type(classifier) and isinstance(hub, keras_hub.models.ImageClassifier)
    for encoder in (classifier.backbone, hub.backbone, backbone):
        assert_same(encoder, model.embedding_backbone)
    expected = model.preprocessor.image_converter
    found = classifier.preprocessor.image_converter
    assert tuple(found.image_size) == tuple(expected.image_size)
    np.testing.assert_allclose(found.scale, expected.scale)
    np.testing.assert_allclose(found.offset, expected.offset)


def test_over_a_network_that_gives_maps(tmp_path):
    """`logits = W mean(map) + b`; pretrained, tuned, saved, and found again by keras-hub."""
    keras.utils.set_random_seed(0)
    model = simclr(resnet(num_blocks=(1, 1), filters=4, image_shape=(16, 16, 3)))
    model.save_to_preset(tmp_path / "pretrained")
    classifier = ImageClassifier.from_preset(str(tmp_path / "pretrained"), num_classes=2)
    assert_same(classifier.backbone, model.backbone)
    classifier.compile(learning_rate=1e-2)
    classifier.fit(PICTURES, LABELS, batch_size=8, epochs=1, verbose=0)
    x = np.random.default_rng(0).random((2, 16, 16, 3)).astype("float32")
    maps, logits = compiled(lambda: (classifier.backbone(x), classifier(x)))()
    mean = to_numpy(maps).astype("float64").mean(axis=(1, 2))
    dense = classifier.output_dense
    expected = mean @ to_numpy(dense.kernel) + to_numpy(dense.bias)
    np.testing.assert_allclose(to_numpy(logits), expected, atol=1e-5)
    classifier.save_to_preset(tmp_path / "tuned")
    again = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "tuned"))
    assert_same(again, classifier)
    with pytest.raises(ValueError, match="no class token"):
        ImageClassifier(model.backbone, 2, pooling="token")


@pytest.mark.parametrize("predict_with", ["teacher", "student"])
def test_the_encoder_of_a_preset_is_the_one_that_predicts(predict_with, tmp_path):
    model = dino(predict_with=predict_with)
    fill(model.backbone, seed=1)
    fill(model.head, seed=2)
    model.save_to_preset(tmp_path / "dino")
    path = str(tmp_path / "dino")
    encoder = model.teacher_backbone if predict_with == "teacher" else model.backbone
    other = model.backbone if predict_with == "teacher" else model.teacher_backbone
    assert np.abs(weights(encoder)[0] - weights(other)[0]).max() > 0
    assert_same(ViTBackbone.from_preset(path), encoder)
    assert_same(ImageClassifier.from_preset(path, num_classes=2).backbone, encoder)
    # The whole state is there, whichever network is asked from now on.
    assert_same(DINO.from_preset(path), model)
    for asked in ("teacher", "student"):
        loaded = DINO.from_preset(path, predict_with=asked)
        assert loaded.predict_with == asked
        assert_same(loaded, model)


def test_small_residual_network_in_another_dtype(tmp_path):
    backbone = small_resnet((16, 16, 3), 4)
    backbone.save_to_preset(tmp_path)
    half = keras_hub.models.Backbone.from_preset(str(tmp_path), dtype="mixed_bfloat16")
    assert_same(half, backbone)
    assert {layer.compute_dtype for layer in half.layers[1:]} == {"bfloat16"}
