"""DINOv2's parts against float64 NumPy and the official generator's order of draws; the model."""

import functools

import keras
import numpy as np
import pytest
from gradients import compiled, input_gradients, variable_gradients
from keras import ops
from masking_reference import Replay, block_mask
from toy import dinov2, fill, images, to_numpy, vit

from keras_ssl.backbones import ViTBackbone
from keras_ssl.layers import BlockMasking, DropPath, block_masks
from keras_ssl.losses import (
    IBOTPatchLoss,
    KoLeoLoss,
    masked_patches,
    patch_weights,
    sinkhorn_knopp,
)
from keras_ssl.models import DINOv2

RNG = np.random.default_rng(0)


# === Losses ===


def numpy_sinkhorn(logits, temperature, iterations):
    q = np.exp(logits.astype("float64") / temperature)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=0) * q.shape[1]
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_equals_numpy(iterations):
    logits = RNG.normal(size=(9, 5)).astype("float32")
    ours = to_numpy(compiled(lambda x: sinkhorn_knopp(x, 0.3, iterations))(logits))
    np.testing.assert_allclose(ours, numpy_sinkhorn(logits, 0.3, iterations), rtol=2e-5)


def test_sinkhorn_uses_every_prototype_equally():
    # All rows prefer the same prototype; a softmax would give it to all of them.
    logits = RNG.normal(size=(12, 4)).astype("float32") + np.array([5, 0, 0, 0], "float32")
    q = to_numpy(compiled(lambda x: sinkhorn_knopp(x, 0.5, 30))(logits))
    np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(q.sum(axis=0), 3, rtol=1e-2)


def test_sinkhorn_of_valid_rows_only():
    logits = RNG.normal(size=(7, 5)).astype("float32")
    mask = np.array([1, 0, 1, 1, 0, 1, 1], bool)
    q = to_numpy(sinkhorn_knopp(logits, 0.2, mask=mask))
    alone = to_numpy(sinkhorn_knopp(logits[mask], 0.2))
    np.testing.assert_allclose(q[mask], alone, rtol=1e-5, atol=1e-7)
    assert not q[~mask].any()
    assert not to_numpy(sinkhorn_knopp(logits, 0.2, mask=np.zeros(7))).any()


def test_sinkhorn_of_huge_logits():
    """The official exponential overflows from 88 on."""
    q = to_numpy(sinkhorn_knopp(1e4 * RNG.normal(size=(8, 6)).astype("float32"), 0.04))
    assert np.isfinite(q).all()
    np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-5)


def numpy_koleo(x):
    z = x.astype("float64") / np.linalg.norm(x, axis=1, keepdims=True)
    distances = np.linalg.norm(z[:, None] - z[None] + 1e-8, axis=2)
    np.fill_diagonal(distances, np.inf)
    return -np.log(distances.min(axis=1) + 1e-8).mean()


def test_koleo_equals_numpy_and_spreads():
    x = RNG.normal(size=(6, 4)).astype("float32")
    value, (gradient,) = input_gradients(KoLeoLoss(), x)
    assert float(value) == pytest.approx(numpy_koleo(x), rel=1e-5)
    change = np.zeros((6, 4))
    change[2, 1] = 1e-5
    slope = (numpy_koleo(x + change) - numpy_koleo(x - change)) / 2e-5
    assert gradient[2, 1] == pytest.approx(slope, rel=1e-3)
    assert numpy_koleo(x - 0.1 * gradient) < float(value)
    alike = ops.ones((3, 4))
    assert float(compiled(KoLeoLoss())(alike)) > 15  # all equal: as bad as it gets


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_ibot_equals_numpy_and_its_picked_form():
    student = RNG.normal(size=(4, 6, 5)).astype("float32")
    teacher = np.exp(log_softmax(RNG.normal(size=(4, 6, 5)) / 0.3)).astype("float32")
    mask = np.array([[1, 0, 1, 0, 0, 0], [0] * 6, [1] * 6, [0, 0, 0, 0, 0, 1]], bool)
    each = -(teacher * log_softmax(student.astype("float64") / 0.2)).sum(axis=-1)
    expected = np.mean(
        [row[m].mean() if m.any() else 0.0 for row, m in zip(each, mask, strict=True)]
    )
    loss = IBOTPatchLoss(0.2)
    value, (gradient,) = input_gradients(lambda s: loss(s, teacher, mask=mask), student)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert not gradient[~mask].any() and gradient[mask].any(axis=-1).all()
    places, weights = (to_numpy(a) for a in masked_patches(mask, limit=12))
    assert (places[:9] == np.flatnonzero(mask)).all() and not weights[9:].any()
    assert weights.sum() == pytest.approx(3 / 4) == float(ops.sum(patch_weights(mask)))
    picked = (a.reshape(-1, 5)[places] for a in (student, teacher))
    assert float(loss(*picked, weights=weights)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: IBOTPatchLoss(0.0), "greater than 0"),
        (lambda: IBOTPatchLoss()(np.ones((3, 2)), np.ones((3, 2))), "Give `mask` with patches"),
        (lambda: KoLeoLoss(epsilon=-1), "greater than 0"),
        (lambda: KoLeoLoss()(np.ones(3)), r"\(N, D\)"),
        (lambda: sinkhorn_knopp(np.ones((2, 2)), iterations=0), "integer >= 1"),
        (lambda: sinkhorn_knopp(np.ones(2)), r"\(N, K\)"),
        (lambda: BlockMasking(4, mask_ratio=(0.5, 0.1)), "smallest, largest"),
        (lambda: BlockMasking(4, probability=1.5), r"in \[0, 1\]"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# === Block masks ===


def test_blocks_in_parallel_equal_one_after_the_other():
    draws = (np.floor(RNG.random((20, 32, 4)) * 2**24) / 2**24).astype("float32")
    for grid in ((4, 4), (8, 6)):
        counts = RNG.integers(0, grid[0] * grid[1] // 2, 20)
        place = compiled(functools.partial(block_masks, grid=grid, max_patches=12))
        masks = to_numpy(place(draws, counts))
        for mask, row, count in zip(masks, draws, counts, strict=True):
            np.testing.assert_array_equal(
                mask, block_mask(Replay(row), count, grid, max_patches=12)
            )
            assert mask.sum() <= count


def test_masks_of_a_batch():
    layer = BlockMasking(patch_size=2, seed=3)
    batch = np.zeros((40, 16, 16, 3), "float32")
    masks = to_numpy(layer(batch, training=True))
    counts = np.sort(masks.sum(axis=1))
    assert masks.shape == (40, 64) and not counts[:20].any()
    # The ratios are spread evenly over 0.1 to 0.5; a block may miss a patch or two.
    aims = 64 * (0.1 + 0.4 * np.arange(21) / 20)
    assert (counts[20:] <= aims[1:]).all() and (counts[20:] >= aims[:-1] - 4).all()
    assert counts.sum() <= layer.limit(batch)
    # Equal on all three backends, and another at the next call, but for evaluation.
    assert int(np.flatnonzero(masks).sum()) == MASK_SUM
    assert (to_numpy(layer(batch, training=True)) != masks).any()
    fixed = [to_numpy(layer(batch, training=False)) for _ in range(2)]
    np.testing.assert_array_equal(*fixed)


MASK_SUM = 473152


# === Stochastic depth by a part of the batch ===


def test_branches_of_a_part_of_the_batch():
    layer = DropPath(0.4, subset=True, seed=0)
    x = RNG.normal(size=(5, 2, 3)).astype("float32")
    draws = np.array([0.3, 0.9, 0.1, 0.5, 0.2], "float32")
    seen = []

    def branch(x, samples):
        seen.append(to_numpy(samples).tolist())
        return 2 * x

    out = to_numpy(layer.residual(ops.convert_to_tensor(x), branch, ops.convert_to_tensor(draws)))
    assert seen == [[2, 4, 0]]  # the three smallest draws, in order
    factors = np.array([1, 0, 1, 0, 1])[:, None, None] * 5 / 3
    np.testing.assert_allclose(out, x + factors * 2 * x, rtol=1e-6)
    # Without the branch's own arithmetic: the same as a mask.
    masked = layer(ops.convert_to_tensor(2 * x), training=True, draws=ops.convert_to_tensor(draws))
    np.testing.assert_allclose(x + to_numpy(masked), out, rtol=1e-6)


def test_stochastic_depth_in_the_backbone(tmp_path):
    options = dict(drop_path_rate=0.4, drop_path_uniform=True, drop_path_subset=True)
    backbone = vit(**options)
    assert [block.drop_path.subset for block in backbone.blocks] == [True, True]
    assert not vit(**{**options, "drop_path_rate": 0.1}).blocks[1].drop_path.subset
    fill(backbone)
    x = ops.convert_to_tensor(RNG.normal(size=(6, 16, 16, 3)).astype("float32"))
    draws = ops.convert_to_tensor(RNG.random((2, 2, 6)).astype("float32"))
    backbone.draw_drop_path = lambda batch: draws
    plain = compiled(lambda x: backbone(x, training=True))
    # Where attention is asked for, everything is computed and masked.
    whole = compiled(lambda x: backbone(x, training=True, return_attention=True)["tokens"])
    np.testing.assert_allclose(to_numpy(plain(x)), to_numpy(whole(x)), atol=1e-5)
    # It can be added to a network that was trained without, and taken away.
    vit().save_weights(tmp_path / "plain.weights.h5")
    fresh = vit(drop_path_rate=0.2)
    fresh.load_weights(tmp_path / "plain.weights.h5")
    fresh.save_weights(tmp_path / "dropping.weights.h5")
    vit().load_weights(tmp_path / "dropping.weights.h5")
    assert type(fresh).from_config(backbone.get_config()).drop_path_subset


# === The model ===


def given(**kwargs) -> DINOv2:
    """A filled model whose loss at equal views can be worked out by hand."""
    keras.utils.set_random_seed(0)
    model = dinov2(vit(num_layers=1, use_mask_token=True), augmenter=None, **kwargs)
    fill(model, scale=0.3)
    model.reset_teacher()
    return model


def test_the_teacher_gets_no_gradient_and_every_weight_of_the_student_does():
    model = given(separate_head=True, ibot_output_dim=20, centering="centering")
    views = [RNG.normal(size=(4, 16, 16, 3)).astype("float32") for _ in range(2)]
    views = (*views, RNG.normal(size=(4, 8, 8, 3)).astype("float32"))
    variables = list(model.trainable_variables)
    assert not any("teacher" in v.path for v in variables)
    batch = tuple(map(ops.convert_to_tensor, views))
    _, gradients = variable_gradients(
        lambda: model.compute_loss(x=batch, training=False), variables
    )
    assert all(g is not None and np.abs(g).max() > 0 for g in gradients)


def test_optimizer_groups():
    model = given(layer_decay=0.5, patch_embedding_multiplier=0.2, freeze_last_layer=1)
    optimizer = model.default_optimizer(total_steps=100, batch_size=1024, steps_per_epoch=5)
    groups = {g["path"]: g for g in optimizer.parameter_groups(model.trainable_variables)}
    rates = {path: g["learning_rate_multiplier"] for path, g in groups.items()}
    patch = next(r for p, r in rates.items() if "patch_embedding/kernel" in p)
    block = next(r for p, r in rates.items() if "block_0/attention/qkv/kernel" in p)
    assert patch == pytest.approx(0.5**2 * 0.2) and block == pytest.approx(0.5)
    last = next(r for p, r in rates.items() if p.endswith("dino_head/weight_v"))
    assert [float(last(step)) for step in (0, 4, 5, 99)] == [0, 0, 1, 1]
    clip = {g["clip_group"] for g in groups.values()}
    assert clip == {"(^|/)dino_head/", ""}
    decayed = {p.rsplit("/", 1)[-1] for p, g in groups.items() if g["weight_decay"]}
    assert {"class_token", "mask_token", "weight_g", "kernel"} <= decayed
    assert not {"bias", "gamma", "beta"} & decayed


@pytest.mark.parametrize("epochs, batches", [(3, 2), (1, 1), (0, 2)])
def test_temperature_warms_up_step_by_step(epochs, batches):
    model = given(warmup_teacher_epochs=epochs)
    model.epoch_batches.assign(batches)
    temperatures = []
    for step in range(8):
        model.seen_batches.assign(step + 1)
        temperatures.append(float(model.current_teacher_temperature()))
    expected = [*np.linspace(0.04, 0.07, epochs * batches), *[0.07] * 8][:8]
    np.testing.assert_allclose(temperatures, expected, rtol=1e-5)


def test_heads_of_different_depth_and_no_clipping():
    model = given(separate_head=True, num_head_layers=3, ibot_num_head_layers=1, clip_norm=None)
    assert len(model.dino_head.linears) == 3 and len(model.ibot_head.linears) == 1
    assert len(model.teacher_ibot_head.linears) == 1
    optimizer = model.default_optimizer(total_steps=10, batch_size=8, steps_per_epoch=5)
    assert optimizer.clip_group_norm is None


def test_ibot_alone_and_centres_move():
    """koleo_weight=0 with centring: iBOT; both centres follow the teacher's logits."""
    model = given(koleo_weight=0.0, centering="centering")
    views = tuple(RNG.normal(size=(4, 16, 16, 3)).astype("float32") for _ in range(2))
    model.compile(keras.optimizers.SGD(0.01))
    logs = model.train_on_batch(views, return_dict=True)
    assert logs["koleo"] == 0 and logs["dino_local"] == 0
    total = logs["dino_global"] + logs["ibot"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)
    for center in (model.dino_center, model.ibot_center):
        assert np.abs(to_numpy(center.center)).max() > 0
    with pytest.raises(ValueError, match="use_mask_token"):
        DINOv2(vit())
    with pytest.raises(ValueError, match="`centering` must be one of"):
        given(centering="none")
    with pytest.raises(ValueError, match="masks nothing"):
        given(mask_probability=0)


def test_going_on_at_a_higher_resolution():
    model = dinov2()
    fill(model)
    model.reset_teacher()
    model.seen_batches.assign(5)
    finer = model.at_image_size(24)
    assert finer.backbone.image_shape == (24, 24, 3) and finer.augmenter.size == (24, 24)
    assert finer.augmenter.local_size == (12, 12) and int(finer.seen_batches) == 0
    x = RNG.normal(size=(2, 24, 24, 3)).astype("float32")
    np.testing.assert_allclose(  # what the smaller model makes of such pictures
        to_numpy(finer.teacher_backbone(x)), to_numpy(model.teacher_backbone(x)), atol=1e-5
    )
    np.testing.assert_array_equal(
        to_numpy(finer.dino_head.weight_v), to_numpy(model.dino_head.weight_v)
    )
    history = finer.fit(images(16, size=28), batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert finer.predict(images(3, size=28), verbose=0).shape == (3, 16)
    with pytest.raises(ValueError, match="multiples of patch_size"):
        model.at_image_size(25)


def test_small_does_not_collapse_at_once():
    """A few steps: the teacher's assignments stay apart, and the loss falls."""
    keras.utils.set_random_seed(1)
    backbone = ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=4,
        hidden_dim=16,
        num_layers=1,
        num_heads=2,
        use_mask_token=True,
    )
    model = DINOv2.small(backbone, output_dim=32, hidden_dim=16, bottleneck_dim=8, seed=1)
    history = model.fit(images(32), batch_size=16, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["teacher_entropy"][-1] < np.log(32)
    assert history["teacher_student_kl"][-1] > 0
