"""What every method must do: train, evaluate, embed, save, load and continue, on any data."""

import json
import os
import shutil

import h5py
import keras
import keras_hub
import numpy as np
import pytest
import torch
from toy import METHODS, images, mae, simclr, to_numpy, vit

from keras_ssl.models import MAE, ImageClassifier, SimCLR

PICTURES = images()
FIT = dict(batch_size=8, verbose=0)


@pytest.fixture(scope="module", params=sorted(METHODS))
def trained(request, tmp_path_factory):
    """A model after the first of two epochs, and where it was saved then."""
    model = METHODS[request.param]()
    model.compile(epochs=2)
    history = model.fit(PICTURES, validation_data=PICTURES[:8], **FIT)
    folder = tmp_path_factory.mktemp(request.param)
    model.save(folder / "model.keras")
    model.save_to_preset(str(folder / "preset"))
    return model, history, folder


def state(model):
    return [to_numpy(v).copy() for v in model.variables]


def test_fit_counts_and_logs(trained):
    model, history, _ = trained
    assert {"loss", "val_loss"} <= set(history.history)
    assert int(model.seen_batches) == 3 == int(model.optimizer.iterations)
    assert np.isfinite(history.history["loss"]).all()


def test_evaluate_touches_no_state_and_repeats(trained):
    model, _, _ = trained
    before = state(model)
    first = model.evaluate(PICTURES, batch_size=8, verbose=0, return_dict=True)
    second = model.evaluate(PICTURES, batch_size=8, verbose=0, return_dict=True)
    assert first == second
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_predict_embeds_every_image(trained):
    model, _, _ = trained
    embeddings = model.predict(PICTURES[:13], batch_size=8, verbose=0)
    assert embeddings.shape == (13, 16) and embeddings.dtype == np.float32
    # The same picture has the same embedding, whatever stands beside it in the batch.
    alone = model.predict(PICTURES[3:11], batch_size=8, verbose=0)
    np.testing.assert_allclose(embeddings[3:11], alone, atol=1e-5)


def test_prediction_is_scaled_as_training(trained):
    """The mean of a grey picture's views is what `predict` makes of the picture."""
    model, _, _ = trained
    grey = np.full((2, 20, 20, 3), 127, "uint8")
    prepared = to_numpy(model.preprocess(grey))
    mean, std = np.asarray(model.augmenter.mean), np.asarray(model.augmenter.std)
    np.testing.assert_allclose(prepared[0, 3, 3], (127 / 255 - mean) / std, atol=1e-4)


def test_preset_holds_the_full_state(trained):
    model, _, folder = trained
    path = str(folder / "preset")
    loaded = type(model).from_preset(path)
    with h5py.File(os.path.join(path, "task.weights.h5")) as file:
        assert "optimizer" not in file  # a run's, not a preset's
    assert model.optimizer is not None
    fresh = keras.saving.load_model(folder / "model.keras")
    for old, new in zip(state(fresh), state(loaded), strict=True):
        np.testing.assert_array_equal(old, new)
    same_seed = type(model).from_preset(path, load_weights=False)
    assert any((a != b).any() for a, b in zip(state(fresh), state(same_seed), strict=True))


def test_continuing_is_never_having_stopped(trained):
    """The second epoch after loading equals the second epoch without saving: views, masks, order,
    learning rate and optimizer state go on where they were."""
    model, _, folder = trained
    loaded = keras.saving.load_model(folder / "model.keras")
    for run in (model, loaded):
        run.fit(PICTURES, initial_epoch=1, epochs=2, **FIT)
    assert int(loaded.optimizer.iterations) == 6
    for straight, resumed in zip(state(model), state(loaded), strict=True):
        np.testing.assert_allclose(straight, resumed, atol=1e-6)


def test_weights_file(trained, tmp_path):
    model, _, _ = trained
    path = tmp_path / "all.weights.h5"
    model.save_weights(path)
    other = type(model).from_config(model.get_config())
    other.load_weights(path)
    for old, new in zip(state(model), state(other), strict=True):
        np.testing.assert_array_equal(old, new)


def test_classifier_on_any_preset(trained):
    _, _, folder = trained
    classifier = ImageClassifier.from_preset(str(folder / "preset"), num_classes=3)
    hub = keras_hub.models.ImageClassifier.from_preset(str(folder / "preset"), num_classes=3)
    assert type(hub) is ImageClassifier
    kernel = classifier.backbone.blocks[0].attention.qkv.kernel
    np.testing.assert_array_equal(
        to_numpy(kernel), to_numpy(hub.backbone.blocks[0].attention.qkv.kernel)
    )
    assert classifier.predict(PICTURES[:4], verbose=0).shape == (4, 3)


# === Kinds of data ===


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return PICTURES[index * 8 : index * 8 + 8], np.zeros(8)


def _tf_data():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((PICTURES[:16], np.zeros(16))).batch(8)


def _grain():
    import grain

    return grain.MapDataset.source(list(PICTURES[:16])).batch(8)


def _torch_loader():
    dataset = torch.utils.data.TensorDataset(torch.tensor(PICTURES[:16]), torch.zeros(16))
    return torch.utils.data.DataLoader(dataset, batch_size=8)


DATA = {
    "tf.data": _tf_data,
    "grain": _grain,
    "PyDataset": Batches,
    "torch DataLoader": _torch_loader,
    "generator": lambda: (PICTURES[i : i + 8] for i in (0, 8, 0, 8)),
}


@pytest.fixture(scope="module")
def small():
    return mae(vit(num_layers=1, position_embedding="sincos", initializer="mae"))


@pytest.mark.parametrize("kind", sorted(DATA))
def test_every_kind_of_data(small, kind):
    small.compile(epochs=100)
    start = int(small.seen_batches)
    steps = 2 if kind in ("generator", "grain") else None
    small.fit(DATA[kind](), steps_per_epoch=steps, verbose=0)
    assert int(small.seen_batches) - start == 2


def test_labels_are_ignored(small):
    small.compile(epochs=100)
    small.fit(PICTURES, np.array(["label"] * len(PICTURES)), **FIT)


def test_validation_split(small):
    small.compile(epochs=100)
    history = small.fit(PICTURES, validation_split=1 / 3, **FIT)
    assert "val_loss" in history.history


# === Compiling ===


def test_the_schedule_spans_the_first_fit(small):
    small.compile()
    small.fit(PICTURES, epochs=2, **FIT)
    assert small._planned_steps == 6
    peak = 1.5e-4 * 8 / 256
    rates = [float(small.optimizer._learning_rate(step)) for step in range(7)]
    assert rates[0] == pytest.approx(peak) and rates[6] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(rates, rates[1:], strict=False))


def test_a_finished_schedule_is_said_to_begin_again(small, capsys):
    small.compile()
    small.fit(PICTURES[:8], **FIT)
    small.fit(PICTURES[:8], **FIT)
    assert "a new one begins" in capsys.readouterr().out


def test_compiled_and_eager_steps_are_the_same():
    prepared = PICTURES[:8, :16, :16].astype("float32") / 255
    losses = []
    for kwargs in ({}, {"run_eagerly": True}):
        keras.utils.set_random_seed(3)
        model = mae(vit(num_layers=1), augmenter=None, preprocessor=None)
        model.compile(keras.optimizers.SGD(0.1), **kwargs)
        losses.append(model.fit(prepared, batch_size=8, epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_mixed_precision_trains():
    model = mae(vit(num_layers=1, dtype="mixed_float16"))
    history = model.fit(PICTURES, **FIT)
    assert np.isfinite(history.history["loss"]).all()
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert all(v.dtype == "float32" for v in model.trainable_variables)


def test_loss_and_metrics_are_the_models_own(small):
    with pytest.raises(ValueError, match="computes its own loss"):
        small.compile(loss="mse")
    with pytest.raises(ValueError, match='belong to optimizer="auto"'):
        small.compile("sgd", epochs=3)


# === Wrong input ===


@pytest.mark.parametrize(
    "pictures, message",
    [
        (PICTURES[0], "add a batch axis"),
        (PICTURES.transpose(0, 3, 1, 2), r"\(batch, height, width, 3\)"),
        (PICTURES[..., :1], "Repeat the grey channel"),
        (np.zeros((4, 20, 20, 4), "uint8"), "alpha"),
        (PICTURES[:0], "no images"),
        (PICTURES[:, :0], "no pixels"),
        (None, "needs images. Received: x=None"),
        ("photos", "not a path: read them with .*image_folder.*'photos'"),
        ([["a"]], "np.stack. Received: a list of 1"),
        (list(PICTURES), "np.stack. Received: a list of 24"),
        (PICTURES / 255.0, "multiply by 255"),
        (PICTURES.astype("float32") - 128, "Undo a normalisation"),
        (np.where(np.arange(24)[:, None, None, None] == 5, np.nan, PICTURES), "image 5"),
        (np.array([["a"]] * 4).reshape(4, 1, 1, 1).repeat(3, axis=3), "numbers"),
    ],
)
def test_wrong_images_are_refused(small, pictures, message):
    for method in (small.fit, small.predict, small.evaluate):
        with pytest.raises(ValueError, match=message):
            method(pictures, verbose=0)


@pytest.mark.parametrize("dtype", [">f4", ">u2", "uint64", "longdouble"])
def test_numbers_of_any_kind_are_pictures(small, dtype):
    small.compile()
    expected = small.predict(PICTURES[:8], verbose=0)
    given = PICTURES[:8].astype(dtype)
    np.testing.assert_allclose(small.predict(given, verbose=0), expected, atol=1e-5)
    for method in (small.fit, small.evaluate):
        method(given, verbose=0)


def test_wrong_images_in_a_dataset_are_refused(small):
    small.compile()
    with pytest.raises(ValueError, match="multiply by 255"):
        small.fit(iter([PICTURES / 255.0]), verbose=0)
    with pytest.raises(ValueError, match="empty"):
        small.fit(iter([]), verbose=0)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        small.fit(iter([PICTURES]), verbose=0)
    with pytest.raises(ValueError, match='key "images"'):
        small.fit({"pictures": PICTURES}, verbose=0)


def test_prepared_images_must_fit_the_patches():
    model = mae(vit(num_layers=1), augmenter=None, preprocessor=None)
    with pytest.raises(ValueError, match="multiples of patch_size"):
        model.fit(np.zeros((4, 18, 16, 3), "float32"), verbose=0)


def test_backbone_must_be_a_model():
    with pytest.raises(ValueError, match="must be a keras.Model"):
        SimCLR(backbone="resnet")
    with pytest.raises(ValueError, match="ViTBackbone"):
        MAE(keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten()]))


# === Damaged presets ===


@pytest.fixture
def preset(small, tmp_path):
    path = str(tmp_path / "preset")
    small.save_to_preset(path)
    return path


def test_preset_of_another_method(preset):
    with pytest.raises(ValueError, match="holds a MAE, which is not a SimCLR"):
        SimCLR.from_preset(preset)


def test_unknown_preset():
    with pytest.raises(ValueError, match="Unknown preset"):
        MAE.from_preset("no_such_preset")


def test_folder_without_preset(tmp_path):
    with pytest.raises(ValueError, match="task.json is missing"):
        MAE.from_preset(str(tmp_path))


@pytest.mark.parametrize("name", ["model.weights.h5", "task.weights.h5"])
def test_truncated_weights(preset, name):
    path = os.path.join(preset, name)
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        MAE.from_preset(preset)
    os.remove(path)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        MAE.from_preset(preset)


def test_weights_of_another_architecture(preset):
    path = os.path.join(preset, "task.json")
    with open(path) as file:
        config = json.load(file)
    config["config"]["backbone"]["config"]["hidden_dim"] = 32
    with open(path, "w") as file:
        json.dump(config, file)
    with pytest.raises(ValueError, match="does not fit this architecture"):
        MAE.from_preset(preset)


def test_damaged_json(preset):
    with open(os.path.join(preset, "task.json"), "w") as file:
        file.write('{"registered_name": ')
    with pytest.raises(ValueError, match="not valid JSON"):
        MAE.from_preset(preset)


def test_a_failed_save_leaves_the_old_preset(small, preset, monkeypatch):
    with open(os.path.join(preset, "README.md"), "w") as file:
        file.write("model card")
    before = {name: os.path.getsize(os.path.join(preset, name)) for name in os.listdir(preset)}

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(small), "save_task_weights", full_disk)
        with pytest.raises(OSError, match="No space"):
            small.save_to_preset(preset)
    after = {name: os.path.getsize(os.path.join(preset, name)) for name in os.listdir(preset)}
    assert before == after
    assert os.listdir(os.path.dirname(preset)) == ["preset"]
    small.save_to_preset(preset)
    assert os.path.exists(os.path.join(preset, "README.md"))
    MAE.from_preset(preset)


def test_backbone_cannot_be_swapped_under_a_preset(preset):
    with pytest.raises(ValueError, match="cannot be replaced"):
        MAE.from_preset(preset, backbone=vit())


def test_constructor_arguments_replace_saved_ones(preset):
    model = MAE.from_preset(preset, mask_ratio=0.5, dtype="mixed_bfloat16")
    assert model.num_visible == 8 and model.backbone.compute_dtype == "bfloat16"


def test_keras_hub_backbone(tmp_path):
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    model = simclr(backbone)
    model.fit(PICTURES[:16], **FIT)
    embeddings = model.predict(PICTURES[:8], batch_size=8, verbose=0)
    assert embeddings.shape == (8, 64)
    model.save_to_preset(str(tmp_path / "resnet"))
    loaded = SimCLR.from_preset(str(tmp_path / "resnet"))
    again = loaded.predict(PICTURES[:8], batch_size=8, verbose=0)
    np.testing.assert_allclose(again, embeddings, atol=1e-6)
    shutil.rmtree(tmp_path)
