"""The masked autoencoder, beside NumPy in float64 and its own invariants."""

import json
import pathlib

import keras
import numpy as np
import pytest
from gradients import compiled
from toy import fill, images, mae, to_numpy, vit

from keras_ssl.layers import patchify
from keras_ssl.models import MAE

RNG = np.random.default_rng(0)
NOISE = RNG.random((3, 16)).astype("float32")


@pytest.fixture(scope="module")
def model():
    model = mae(augmenter=None, preprocessor=None)
    fill(model, scale=0.3)
    return model


def test_masking_keeps_the_least_noise(model):
    visible, mask, restore = (to_numpy(t) for t in model.mask_patches(NOISE))
    assert visible.shape == (3, 4) and mask.sum(axis=1).tolist() == [12, 12, 12]
    for row in range(3):
        assert set(visible[row]) == set(np.argsort(NOISE[row])[:4])
        assert mask[row, visible[row]].sum() == 0
        shuffled = np.argsort(NOISE[row])
        np.testing.assert_array_equal(shuffled[restore[row]], np.arange(16))


@pytest.mark.parametrize("normalize_targets", [False, True])
def test_loss_is_the_papers(normalize_targets):
    model = mae(augmenter=None, preprocessor=None, normalize_targets=normalize_targets)
    pictures = RNG.random((3, 16, 16, 3))
    prediction = RNG.normal(size=(3, 16, 48))
    mask = (RNG.random((3, 16)) < 0.6).astype("float32")
    target = to_numpy(patchify(pictures, 4)).astype("float64")
    if normalize_targets:
        mean = target.mean(axis=-1, keepdims=True)
        target = (target - mean) / np.sqrt(target.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
    expected = (((prediction - target) ** 2).mean(axis=-1) * mask).sum() / mask.sum()
    loss = model.reconstruction_loss(pictures.astype("float32"), prediction.astype("float32"), mask)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_hidden_pixels_do_not_reach_the_encoder(model):
    pictures = RNG.random((3, 16, 16, 3)).astype("float32")
    visible, mask, restore = model.mask_patches(NOISE)

    def predict(x):
        return to_numpy(compiled(lambda: model.decode(model.encode_visible(x, visible), restore))())

    patches = to_numpy(patchify(pictures, 4)).copy()
    patches[to_numpy(mask) == 1] = 9.0
    np.testing.assert_array_equal(predict(pictures), predict(to_numpy(model.unpatchify(patches))))


def test_given_noise_decides_the_mask(model):
    pictures = RNG.random((8, 16, 16, 3)).astype("float32")
    noise = RNG.random((8, 16)).astype("float32")
    model.compile(keras.optimizers.SGD(0.0))
    given = {"images": pictures, "noise": noise}
    first = model.test_on_batch(given)
    assert float(first) == float(model.test_on_batch(given))
    other = model.test_on_batch({"images": pictures, "noise": 1 - noise})
    assert float(first) != float(other)


def test_mask_ratio_counts_as_in_the_official_code():
    for ratio, kept in [(0.0, 16), (0.75, 4), (0.9, 1), (0.8, 3)]:
        assert mae(vit(num_layers=1), mask_ratio=ratio).num_visible == kept
    with pytest.raises(ValueError, match="leaves none of 16"):
        mae(vit(num_layers=1), mask_ratio=0.95)
    with pytest.raises(ValueError, match="mask_ratio"):
        mae(vit(num_layers=1), mask_ratio=1.0)


@pytest.mark.parametrize("normalize_targets", [False, True])
def test_reconstruct_returns_pictures(normalize_targets):
    model = mae(normalize_targets=normalize_targets)
    pictures = images(5, size=16)
    whole, masked, painted = model.reconstruct(pictures, batch_size=4)
    assert whole.shape == masked.shape == painted.shape == (5, 16, 16, 3)
    np.testing.assert_allclose(whole, pictures / 255.0, atol=1e-4)
    # The visible patches stand in the reconstruction as they were.
    patches = [to_numpy(patchify(p, 4)) for p in (whole, masked, painted)]
    visible = np.abs(patches[0] - patches[1]).max(axis=-1) < 1e-5
    assert visible.sum(axis=1).min() >= 4
    np.testing.assert_allclose(patches[2][visible], patches[0][visible], atol=1e-5)
    assert 0 <= painted.min() and painted.max() <= 1


def test_it_learns():
    """Twenty passes over easy pictures: clearly better than painting the mean colour."""
    model = mae(vit(position_embedding="sincos", initializer="mae"), decoder_hidden_dim=16)
    model.compile(keras.optimizers.Adam(1e-2))
    pictures = images(32, size=16)
    history = model.fit(pictures, batch_size=16, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.6 * history[0]


def test_twenty_steps_are_the_same_on_every_backend():
    """From the same weights and data, with masks and views drawn, every backend walks the same
    path: the curve stored in the file, made on PyTorch."""
    path = pathlib.Path(__file__).parent / "vectors" / "mae_curve.json"
    model = mae(vit(position_embedding="sincos"), augmenter=None, preprocessor=None)
    fill(model, scale=0.2)
    model.compile(keras.optimizers.AdamW(1e-3, epsilon=1e-8))
    pictures = images(16, size=16) / np.float32(255)
    losses = [float(model.train_on_batch(pictures)) for _ in range(20)]
    expected = json.loads(path.read_text())
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert expected[-1] < expected[0]


def test_small_takes_a_decoder_by_the_encoder():
    backbone = vit(hidden_dim=24, num_heads=3)
    model = MAE.small(backbone, decoder_num_layers=1)
    assert (model.decoder_hidden_dim, model.decoder_num_layers, model.decoder_num_heads) == (
        12,
        1,
        3,
    )
    assert model.pooling == "mean" and model.base_learning_rate == 1e-3
    assert type(model).from_config(model.get_config()).base_learning_rate == 1e-3
    decoder = sum(np.prod(v.shape) for v in model.variables if "decoder" in v.path)
    assert decoder < backbone.count_params() < MAE(backbone).count_params() / 100
    with pytest.raises(ValueError, match="needs a keras_ssl.backbones.ViTBackbone"):
        MAE.small(keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten()]))
