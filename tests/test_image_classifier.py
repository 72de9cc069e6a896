"""Fine-tuning."""

import keras
import keras_hub
import numpy as np
import pytest
from gradients import compiled
from toy import fill, images, to_numpy, vit

from keras_ssl.layers.image_converter import default_preprocessor
from keras_ssl.models import ImageClassifier
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
        ImageClassifier(vit(use_class_token=False), 2)


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
