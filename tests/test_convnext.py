"""DINOv3's ConvNeXt: beside transformers, as a preset, and trained."""

import re

import keras
import keras_hub
import numpy as np
import peers  # noqa: F401  (declares what torchvision needs)
import pytest
import torch
import transformers
from gradients import compiled
from keras import ops
from toy import crops, fill, images, to_numpy

from keras_ssl.backbones import ConvNeXtBackbone
from keras_ssl.converters import from_transformers, to_transformers
from keras_ssl.evaluation import attention_maps, patch_features
from keras_ssl.models import ConvNeXtImageClassifier, ImageClassifier, SimCLR

SIZES = dict(num_blocks=(1, 1, 2, 1), hidden_dims=(4, 8, 12, 16))


def convnext(**kwargs) -> ConvNeXtBackbone:
    return ConvNeXtBackbone(**{**dict(image_shape=(64, 64, 3)), **SIZES, **kwargs})


def official(folder):
    """A random model of transformers, saved; every parameter matters."""
    torch.manual_seed(0)
    config = transformers.DINOv3ConvNextConfig(
        depths=list(SIZES["num_blocks"]), hidden_sizes=list(SIZES["hidden_dims"]), image_size=64
    )
    model = transformers.DINOv3ConvNextModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 64, "width": 64}, image_mean=[0.4] * 3, image_std=[0.2] * 3
    ).save_pretrained(folder)
    return model


def run(model, pictures):
    with torch.no_grad():
        outputs = model(torch.tensor(pictures.transpose(0, 3, 1, 2).copy()))
    return outputs.last_hidden_state.numpy()


# The last is no multiple of 32, nor are its maps of 2.
@pytest.mark.parametrize("height, width", [(64, 64), (32, 96), (77, 58)])
def test_in_and_out_again(height, width, tmp_path):
    reference = official(tmp_path / "theirs")
    backbone, preprocessor, report = from_transformers(tmp_path / "theirs")
    assert not (report.missing or report.unexpected or report.ignored or report.left)
    assert preprocessor.image_converter.image_size == (64, 64)
    pictures = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype("float32")
    expected = run(reference, pictures)
    tokens = to_numpy(compiled(lambda x: backbone(x))(ops.convert_to_tensor(pictures)))
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    rows, columns = backbone.grid_of(height, width)
    assert tokens.shape == (2, 1 + rows * columns, 16)
    to_transformers(backbone, tmp_path / "ours", preprocessor)
    cls = transformers.DINOv3ConvNextModel
    again, info = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_array_equal(run(again.eval(), pictures), expected)


def test_from_a_folder_to_a_classifier(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    official(tmp_path / "theirs")
    path = str(tmp_path / "theirs")
    backbone = ConvNeXtBackbone.from_preset(path)
    expected = [to_numpy(v) for v in backbone.weights]
    classifier = ImageClassifier.from_preset(path, num_classes=3)
    assert type(classifier) is ConvNeXtImageClassifier
    for variable, value in zip(classifier.backbone.weights, expected, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)
    pictures = images(8, size=40)
    labels = np.arange(8) % 3
    classifier.fit(pictures, labels, batch_size=4, epochs=1, verbose=0)
    classifier.save_to_preset(tmp_path / "tuned")
    again = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "tuned"))
    np.testing.assert_allclose(
        again.predict(pictures, verbose=0), classifier.predict(pictures, verbose=0), atol=1e-5
    )
    with pytest.raises(ValueError, match="is the mean of its map already"):
        ConvNeXtImageClassifier(backbone, 3, pooling="mean")


def test_pretraining_with_stochastic_depth(tmp_path):
    """A method trains it, and what is loaded goes on as if it had never stopped."""
    keras.utils.set_random_seed(0)
    backbone = convnext(drop_path_rate=0.5, layer_scale_init=1.0, image_shape=(32, 32, 3))
    fill(backbone, scale=0.3)
    model = SimCLR(backbone, projection_dim=4, augmenter=crops(32), seed=1)
    model.compile(keras.optimizers.SGD(0.01))
    pictures = images(8, size=32)
    model.fit(pictures, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    losses = [m.fit(pictures, batch_size=4, verbose=0).history["loss"][0] for m in (model, loaded)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    # In inference nothing is dropped: the branches of all blocks count, whatever was drawn.
    embeddings = model.predict(pictures, verbose=0)
    assert embeddings.shape == (8, 16)
    np.testing.assert_array_equal(embeddings, model.predict(pictures, verbose=0))


def test_maps_of_its_stages():
    backbone = convnext()
    pictures = np.random.default_rng(0).random((2, 64, 96, 3)).astype("float32")
    assert patch_features(backbone, pictures).shape == (2, 2, 3, 16)
    assert patch_features(backbone, pictures, layer=1).shape == (2, 8, 12, 8)
    with pytest.raises(ValueError, match="has 4 layers. Received: layer=4"):
        patch_features(backbone, pictures, layer=4)
    with pytest.raises(ValueError, match="Attention maps need"):
        attention_maps(backbone, pictures)


@pytest.mark.parametrize("blocks", [(3, 3, 9, 3), (3, 3, 27, 3), (1, 2, 4, 1)])
def test_layers_of_the_decay(blocks):
    """Those of the paper's code for 27 blocks; elsewhere its layers without a gap."""
    backbone = convnext(num_blocks=blocks)
    multipliers = backbone.layer_decay_multipliers(0.5)
    last = 4 + -(-blocks[2] // 3)

    def layer(path):
        found = [value for pattern, value in multipliers.items() if re.search(pattern, path)]
        assert len(found) <= 1
        return last - round(-np.log2(found[0])) if found else last

    for variable in backbone.trainable_variables:
        path = variable.path
        if match := re.search(r"stage_(\d)_block_(\d+)/", path):
            stage, block = map(int, match.groups())
            expected = {0: 1, 1: 2, 2: 3 + block // 3, 3: last - 1}[stage]
        elif match := re.search(r"downsampling(?:_norm)?_(\d)/", path):
            expected = {0: 0, 1: 2, 2: 3, 3: last - 1}[int(match[1])]
        else:
            expected = last
        assert layer(path) == expected, path


def test_what_it_refuses():
    with pytest.raises(ValueError, match="four stages"):
        ConvNeXtBackbone(num_blocks=(1, 2), hidden_dims=(4, 8))
    with pytest.raises(ValueError, match="at least 32.*Received: height=24"):
        convnext()(np.zeros((1, 24, 64, 3), "float32"))
    with pytest.raises(ValueError, match="Expected images of shape"):
        convnext()(np.zeros((1, 64, 64, 4), "float32"))
    with pytest.raises(ValueError, match="`size` must be one of"):
        ConvNeXtBackbone.from_size("convnext_huge")
