"""The vision transformer, beside PyTorch's interpolation and its own invariants."""

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradients import compiled, variable_gradients
from toy import fill, to_numpy, vit

from keras_ssl.layers import DropPath, bicubic_matrix, gather_patches, patchify, unpatchify
from keras_ssl.layers.position_embedding import grid_interpolation_matrix

RNG = np.random.default_rng(0)


def run(model, *args, **kwargs):
    """The model's output as one compiled program: op by op, JAX compiles every operation."""
    out = compiled(lambda: model(*args, **kwargs))()
    return keras.tree.map_structure(to_numpy, out)


def pictures(height=16, width=16, batch=2):
    return RNG.random((batch, height, width, 3)).astype("float32")


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (7, 3), (4, 4), (2, 9)])
def test_interpolation_is_pytorchs(size, antialias):
    table = RNG.normal(size=(4 * 4, 5)).astype("float32")
    ours = grid_interpolation_matrix((4, 4), size, antialias=antialias) @ table
    grid = torch.tensor(table.reshape(1, 4, 4, 5)).permute(0, 3, 1, 2)
    theirs = F.interpolate(grid, size=size, mode="bicubic", antialias=antialias)
    theirs = theirs.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(6, 3), (4, 6), (3, 4)])
def test_interpolation_with_dinos_offset_is_pytorchs(size, antialias):
    table = torch.tensor(RNG.normal(size=(1, 2, 4, 4)).astype("float32"))
    scale = tuple((n + 0.1) / 4 for n in size)
    theirs = F.interpolate(
        table,
        scale_factor=scale,
        mode="bicubic",
        antialias=antialias,
        recompute_scale_factor=False,
    )
    rows, columns = (
        bicubic_matrix(4, n, scale=s, antialias=antialias) for n, s in zip(size, scale, strict=True)
    )
    ours = np.einsum("ih,nchw,jw->ncij", rows, table.numpy(), columns)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)


def test_interpolation_rows_sum_to_one_and_same_size_is_identity():
    np.testing.assert_allclose(bicubic_matrix(5, 9).sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(bicubic_matrix(5, 5), np.eye(5), atol=1e-12)


def test_patchify_order_and_inverse():
    images = pictures(8, 12)
    patches = to_numpy(patchify(images, 4))
    assert patches.shape == (2, 6, 48)
    # Second row of patches, third column; inside it row 1, column 2, channel 0.
    assert patches[1, 5, (1 * 4 + 2) * 3] == images[1, 4 + 1, 8 + 2, 0]
    np.testing.assert_array_equal(to_numpy(unpatchify(patches, 4, (2, 3))), images)


def test_gather_patches():
    x = RNG.normal(size=(3, 5, 4)).astype("float32")
    indices = np.array([[4, 0], [1, 1], [2, 3]])
    expected = np.take_along_axis(x, indices[..., None], axis=1)
    np.testing.assert_array_equal(to_numpy(gather_patches(x, indices)), expected)


@pytest.fixture(scope="module")
def backbone():
    model = vit(num_register_tokens=2, use_mask_token=True, layer_scale_init=0.5, ffn="swiglu")
    fill(model)
    return model


def test_any_image_size(backbone):
    assert run(backbone, pictures(8, 24)).shape == (2, 3 + 12, 16)


def test_visible_patches_only(backbone):
    """Given all patches in another order, every token is the same; given some, none else counts."""
    images = pictures()
    everything = run(backbone, images)
    order = np.stack([RNG.permutation(16) for _ in range(2)])
    shuffled = run(backbone, images, visible_indices=order)
    np.testing.assert_allclose(shuffled[:, :3], everything[:, :3], atol=2e-5)
    expected = np.take_along_axis(everything[:, 3:], order[..., None], axis=1)
    np.testing.assert_allclose(shuffled[:, 3:], expected, atol=2e-5)

    some = order[:, :5]
    before = run(backbone, images, visible_indices=some)
    patches = to_numpy(patchify(images, 4)).copy()
    for row, kept in enumerate(some):
        patches[row, np.setdiff1d(np.arange(16), kept)] = 7.0
    hidden_changed = to_numpy(unpatchify(patches, 4, (4, 4)))
    after = run(backbone, hidden_changed, visible_indices=some)
    np.testing.assert_array_equal(before, after)


def test_masked_patches_are_not_seen(backbone):
    images, mask = pictures(), np.zeros((2, 16), "bool")
    mask[:, 3] = mask[:, 9] = True
    masked = run(backbone, images, patch_mask=mask)
    patches = to_numpy(patchify(images, 4)).copy()
    patches[mask] = -3.0
    other = to_numpy(unpatchify(patches, 4, (4, 4)))
    np.testing.assert_array_equal(masked, run(backbone, other, patch_mask=mask))
    assert np.abs(masked - run(backbone, images)).max() > 1e-3


def test_attention_and_intermediate_layers(backbone):
    images = pictures()
    out = run(backbone, images, return_attention=True, return_intermediate=True)
    np.testing.assert_allclose(out["tokens"], run(backbone, images), atol=2e-5)
    assert len(out["attention"]) == len(out["intermediate"]) == 2
    attention = out["attention"][0]
    assert attention.shape == (2, 2, 19, 19)
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)
    normed = backbone.norm(out["intermediate"][-1])
    np.testing.assert_allclose(to_numpy(normed), out["tokens"], atol=1e-6)


def test_rematerialized_is_equal():
    images = pictures()
    plain, again = vit(num_layers=1), vit(num_layers=1, rematerialize=True)
    fill(plain), fill(again)
    results = []
    for model in (plain, again):

        def loss(model=model):
            return keras.ops.mean(keras.ops.square(model(images, training=True)[:, 1:] - 0.5))

        results.append(variable_gradients(loss, model.trainable_variables))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for first, second in zip(results[0][1], results[1][1], strict=True):
        if first is not None:
            np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_near(policy):
    images = pictures()
    full, half = vit(num_layers=1), vit(num_layers=1, dtype=policy)
    fill(full), fill(half)
    assert half.compute_output_spec(keras.KerasTensor(images.shape)).dtype == policy[6:]
    assert all(v.dtype == "float32" for v in half.trainable_variables)
    tokens = to_numpy(compiled(lambda: keras.ops.cast(half(images), "float32"))())
    difference = np.abs(tokens - run(full, images))
    assert difference.max() < (0.1 if "bfloat" in policy else 0.02)


def test_stochastic_depth_only_in_training():
    layer = DropPath(0.5, seed=0)
    x = np.ones((400, 2, 3), "float32")
    np.testing.assert_array_equal(to_numpy(layer(x)), x)
    dropped = to_numpy(layer(x, training=True))
    kept = dropped[:, 0, 0] > 0
    # Whole samples are dropped, and the others are scaled so that the mean stays.
    np.testing.assert_array_equal(dropped, np.where(kept[:, None, None], 2.0, 0.0) * x)
    assert 0.4 < kept.mean() < 0.6
    assert [block.drop_path_rate for block in vit(drop_path_rate=0.3).blocks] == [0.0, 0.3]


def test_config_round_trip(backbone):
    clone = type(backbone).from_config(backbone.get_config())
    clone.set_weights(backbone.get_weights())
    images = pictures()
    np.testing.assert_array_equal(run(clone, images), run(backbone, images))


def test_layer_decay_multipliers_by_layer(backbone):
    import re

    multipliers = backbone.layer_decay_multipliers(0.5)

    def of(path):
        return next((m for p, m in multipliers.items() if re.search(p, path)), 1.0)

    assert of("vit_backbone/class_token") == of("patch_embedding/kernel") == 0.5**3
    assert of("block_0/attention/qkv/kernel") == 0.5**2
    assert of("block_1/mlp/w12/bias") == 0.5
    assert of("norm/gamma") == of("predictions/kernel") == 1.0
    for variable in backbone.trainable_variables:
        assert of(variable.path) < 1 or variable.path.startswith("norm/")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(image_shape=(30, 32, 3)), "multiples of patch_size=4"),
        (dict(image_shape=(32, 32)), "three positive integers"),
        (dict(num_heads=3), "must divide"),
        (dict(hidden_dim=18, position_embedding="sincos"), "multiple of 4"),
        (dict(position_embedding="absolute"), "position_embedding"),
        (dict(initializer="zeros"), "initializer"),
        (dict(activation="relu6"), "activation"),
        (dict(ffn="moe"), "ffn"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        vit(**arguments)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 15, 16, 3), "multiples of patch_size"),
        ((2, 16, 16, 1), r"\(batch, height, width, 3\)"),
        ((16, 16, 3), r"\(batch, height, width, 3\)"),
    ],
)
def test_wrong_images(backbone, shape, message):
    with pytest.raises(ValueError, match=message):
        backbone.embed(np.zeros(shape, "float32"))


def test_patch_mask_needs_a_mask_token():
    with pytest.raises(ValueError, match="use_mask_token=True"):
        vit(num_layers=1)(pictures(), patch_mask=np.zeros((2, 16), "bool"))


def test_rotary_positions_follow_their_patches():
    """Shuffled patches with their own angles are the same picture; a shifted one is not."""
    model = vit(position_embedding="rotary", num_register_tokens=1, mlp_dim=20)
    assert model.blocks[0].mlp.hidden_dim == 20 and model.position_embedding is None
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    full = run(model, images)
    order = np.random.default_rng(1).permutation(16)
    shuffled = run(model, images, visible_indices=np.stack([order, order]))
    np.testing.assert_allclose(shuffled[:, 2:], full[:, 2:][:, order], atol=1e-5)
    np.testing.assert_allclose(shuffled[:, :2], full[:, :2], atol=1e-5)
    moved = run(model, np.roll(images, 4, axis=2))
    assert np.abs(moved[:, 0] - full[:, 0]).max() > 1e-4
    again = type(model).from_config(model.get_config())
    assert again.rotary_theta == 100.0 and again.mlp_dim == 20
    with pytest.raises(ValueError, match="multiple of 4"):
        vit(position_embedding="rotary", hidden_dim=12)
