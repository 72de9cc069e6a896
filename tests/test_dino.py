"""DINO: the loss in float64, the head, multi-crop, and what one training step does to the state."""

import keras
import numpy as np
import pytest
from gradients import compiled, input_gradients
from toy import dino, images, to_numpy, vit

from keras_ssl.backbones import ViTBackbone, small_resnet
from keras_ssl.callbacks import CollapseMonitor
from keras_ssl.layers import DINOHead
from keras_ssl.losses import Center, DINOLoss
from keras_ssl.models import DINO
from keras_ssl.optimizers import AdamW
from keras_ssl.training.momentum_teacher import copy_layer

RNG = np.random.default_rng(0)
PICTURES = images(16, size=16)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# === Loss, centre, head ===


def reference_loss(student, teacher, center, student_temperature, teacher_temperature):
    """Pair by pair, picture by picture, in float64."""
    losses = []
    for t, teacher_crop in enumerate(teacher):
        for v, student_crop in enumerate(student):
            if t != v:
                for a, b in zip(teacher_crop, student_crop, strict=True):
                    p = softmax((a - center) / teacher_temperature)
                    losses.append(-(p * np.log(softmax(b / student_temperature))).sum())
    return np.mean(losses)


def test_loss_against_float64():
    student, teacher = RNG.normal(size=(5, 3, 7)), RNG.normal(size=(2, 3, 7))
    values = RNG.normal(size=(1, 7))
    center = Center(7)
    center.center.assign(values)
    targets = center.probabilities(teacher, 0.3)
    loss = DINOLoss(0.2)
    expected = reference_loss(student, teacher, values[0], 0.2, 0.3)
    as_lists = loss(list(student), [to_numpy(x) for x in targets])
    value, (gradient,) = input_gradients(lambda s: loss(s, targets), student)
    np.testing.assert_allclose([float(value), float(as_lists)], expected, rtol=1e-6)
    assert float(DINOLoss(0.2, "sum")(student, targets)) == pytest.approx(8 * expected, rel=1e-5)
    # The gradient of a softmax's cross entropy, summed over the pairs of each crop.
    p, q = to_numpy(targets).astype("float64"), softmax(student / 0.2)
    for v in range(5):
        others = [p[t] for t in range(2) if t != v]
        np.testing.assert_allclose(
            gradient[v], (len(others) * q[v] - sum(others)) / 0.2 / 8 / 3, atol=1e-6
        )


def test_all_pairs_and_what_is_refused():
    student, p = RNG.normal(size=(2, 3, 7)), softmax(RNG.normal(size=(1, 3, 7)))
    both = float(DINOLoss(1.0)(student, p, exclude_same=False))
    log = np.log(softmax(student))
    assert both == pytest.approx(-(p * log).sum(-1).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="two crops or more"):
        DINOLoss()(student[:1], p)
    with pytest.raises(ValueError, match="student_temperature=0.0"):
        DINOLoss(0.0)
    with pytest.raises(ValueError, match="momentum=1.5"):
        Center(4, 1.5)


def test_the_centre_is_a_moving_average():
    center, expected = Center(4, momentum=0.8), np.zeros(4)
    for _ in range(3):
        logits = RNG.normal(size=(2, 5, 4))
        center.update(logits)
        expected = 0.8 * expected + 0.2 * logits.mean(axis=(0, 1))
    np.testing.assert_allclose(to_numpy(center.center)[0], expected, atol=1e-6)
    # Centring undoes a constant preference; without it one prototype wins.
    preference = np.array([5.0, 0, 0, 0])
    centred, plain = Center(4, momentum=0.0), Center(4, momentum=1.0)
    for layer in (centred, plain):
        layer.update(preference[None])
    np.testing.assert_allclose(to_numpy(centred.probabilities(preference, 0.1))[0], 0.25)
    assert to_numpy(plain.probabilities(preference, 0.1))[0, 0] > 0.999


@pytest.mark.parametrize("free", [False, True])
def test_head_against_float64(free):
    head = DINOHead(9, hidden_dim=6, bottleneck_dim=4, normalize_last_layer=not free)
    x = RNG.normal(size=(5, 3)).astype("float32")
    head.build((None, 3))
    for weight in head.trainable_weights:
        weight.assign(RNG.normal(size=weight.shape))
    logits = to_numpy(head(x))
    z = x.astype("float64")
    erf = np.vectorize(__import__("math").erf)
    for i, linear in enumerate(head.linears):
        z = z @ to_numpy(linear.kernel) + to_numpy(linear.bias)
        z = z * 0.5 * (1 + erf(z / np.sqrt(2))) if i < 2 else z
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    v = to_numpy(head.weight_v).astype("float64")
    expected = z @ (v / np.linalg.norm(v, axis=0)) * to_numpy(head.weight_g)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert head.weight_g.trainable is free
    if not free:
        assert np.abs(logits).max() <= 1 + 1e-6  # cosines
    again = copy_layer(head)
    np.testing.assert_array_equal(to_numpy(again(x)), logits)


# === Multi-crop ===


def crops(sizes, count=3):
    return tuple(RNG.normal(size=(count, s, s, 3)).astype("float32") for s in sizes)


def test_one_forward_for_each_size_gives_what_each_crop_gives_alone():
    model = dino(vit(num_layers=1, interpolation_offset=0.1))
    views = crops([16, 16, 8, 8, 12, 8])

    @compiled
    def both(*views):
        alone = [model.head(model.encode(view)) for view in views]
        return model.project(views), keras.ops.stack(alone)

    together, alone = map(to_numpy, both(*views))
    assert together.shape == (6, 3, 24)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_the_teacher_sees_the_global_views_only_and_drops_nothing():
    backbone = vit(num_layers=2, drop_path_rate=0.5)
    model = dino(backbone, augmenter=None, preprocessor=None)
    assert model.teacher_backbone.drop_path_rate == 0 and model.backbone.drop_path_rate == 0.5
    seen = []
    project = model.project_teacher
    model.project_teacher = lambda views, training: seen.append(views) or project(views, training)

    @compiled
    def loss(*views):
        with keras.StatelessScope():
            return model.compute_loss(x=views, training=True)

    assert float(loss(*crops([16, 16, 8]))) > 0
    assert [view.shape[1] for view in seen[0]] == [16, 16]
    assert not any(v.trainable for v in model.teacher_backbone.variables)


def test_views_fit_the_patches():
    model = DINO.small(vit(image_shape=(32, 32, 3), patch_size=8))
    assert model.augmenter.local_size == (16, 16) and model.augmenter.num_views == 6
    assert model.head.use_batch_norm and float(
        model.current_teacher_temperature()
    ) == pytest.approx(0.03)
    backbone = ViTBackbone.from_size("vit_tiny", image_shape=(224, 224, 3), num_layers=1)
    model = DINO(backbone, output_dim=8, num_local_views=3)
    assert model.augmenter.local_size == (96, 96) and model.augmenter.num_views == 5


# === Training ===


def test_a_step_moves_centre_teacher_and_counters_as_the_paper_says():
    model = dino(augmenter=None, preprocessor=None, momentum=0.9, warmup_teacher_epochs=2)
    model.compile(epochs=40)
    views = crops([16, 16, 8])
    prototypes = to_numpy(model.head.weight_v).copy()
    center, moved = np.zeros(24), []
    for epoch in range(3):  # of one batch each
        logits = to_numpy(model.project_teacher(views[:2], training=True))
        center = 0.9 * center + 0.1 * logits.mean(axis=(0, 1))
        before = [to_numpy(teacher).astype("float64") for teacher, _ in model._teacher_pairs]
        history = model.fit(iter([(views,)]), steps_per_epoch=1, verbose=0).history
        np.testing.assert_allclose(to_numpy(model.center.center)[0], center, atol=1e-5)
        momentum = 1 - 0.1 * np.cos(np.pi * epoch / 80) ** 2  # rises from 0.9 over 40 steps
        for old, (teacher, student) in zip(before, model._teacher_pairs, strict=True):
            average = momentum * old + (1 - momentum) * to_numpy(student)
            np.testing.assert_allclose(to_numpy(teacher), average, atol=1e-6)
        parts = history["teacher_entropy"][0] + history["teacher_student_kl"][0]
        assert parts == pytest.approx(history["loss"][0], rel=1e-4)
        moved.append(np.abs(to_numpy(model.head.weight_v) - prototypes).max())
    assert moved[0] == 0.0 and moved[1] > 0  # frozen for one epoch
    decay = model.optimizer.decay
    assert float(decay(0)) == pytest.approx(0.04) and float(decay(40)) == pytest.approx(0.4)
    decayed = {row["path"] for row in model.optimizer.parameter_groups() if row["weight_decay"]}
    assert all(v.path in decayed or len(v.shape) == 1 for v in model.trainable_variables)
    assert int(model.teacher_total_steps) == 40 and int(model.epoch_batches) == 1


def test_the_teachers_temperature_changes_by_epochs():
    model = dino(warmup_teacher_epochs=3)
    temperatures = []
    for length, seen in ((0, 5), (4, 0), (4, 1), (4, 4), (4, 5), (4, 9), (4, 400)):
        model.epoch_batches.assign(length)
        model.seen_batches.assign(seen)
        temperatures.append(round(float(model.current_teacher_temperature()), 4))
    # An unknown length is the first epoch; batches 1 to 4 are an epoch of four.
    assert temperatures == [0.04, 0.04, 0.04, 0.04, 0.055, 0.07, 0.07]


def test_a_resnet_of_fixed_size_with_normalisation_in_the_head():
    backbone = small_resnet((16, 16, 3))
    model = DINO.small(backbone, output_dim=16, hidden_dim=8, seed=0)
    history = model.fit(PICTURES, batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    student = model.encode(np.zeros((1, 16, 16, 3), "float32"))
    teacher = model.encode(np.zeros((1, 16, 16, 3), "float32"), backbone=model.teacher_backbone)
    assert not np.allclose(to_numpy(student), to_numpy(teacher))
    again = DINO.from_config(model.get_config())
    assert again.project(crops([16, 7])).shape == (2, 3, 16)


def test_mixed_precision_with_accumulated_gradients():
    """The centre, the prototypes and what is compared stay in float32."""
    model = dino(vit(num_layers=1, dtype="mixed_float16"))
    optimizer = AdamW(1e-3, weight_decay=0.1, clip_group_norm=3.0, gradient_accumulation_steps=2)
    # Near its start the toy head's bottleneck is short, so that its gradients are long.
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0))
    history = model.fit(PICTURES, batch_size=4, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert model.head.prototypes().dtype == model.head.weight_v.value.dtype
    assert keras.backend.standardize_dtype(model.center.center.dtype) == "float32"
    np.testing.assert_allclose(np.linalg.norm(to_numpy(model.head.prototypes()), axis=0), 1, 1e-5)
    assert int(model.teacher_step) == 2 and 0 < model.teacher_distance() < 1


def test_predict_is_the_teachers_or_the_students():
    kwargs = dict(augmenter=None, preprocessor=None)
    pictures = crops([16])[0]
    for which in ("teacher", "student"):
        model = dino(predict_with=which, **kwargs)
        model.teacher_backbone.set_weights([w + 0.1 for w in model.backbone.get_weights()])
        network = model.teacher_backbone if which == "teacher" else model.backbone
        expected = to_numpy(network(pictures))[:, 0]
        np.testing.assert_allclose(model.predict(pictures, verbose=0), expected, atol=1e-4)
    with pytest.raises(ValueError, match="predict_with='both'"):
        dino(predict_with="both")
    with pytest.raises(ValueError, match="Temperatures"):
        dino(teacher_temperature=0.0)


def test_the_monitor_says_when_student_and_teacher_agree():
    # No centring and a sharp teacher whose logits prefer one prototype for every picture.
    model = dino(center_momentum=1.0, freeze_last_layer=0)
    model.compile(keras.optimizers.SGD(0.0))
    for head in (model.head, model.teacher_head):
        head.linears[-1].kernel.assign(np.zeros(head.linears[-1].kernel.shape))
        head.linears[-1].bias.assign(np.ones(8))
        v = np.full((8, 24), -1.0)
        v[:, 3] = 1.0
        head.weight_v.assign(v)
    with pytest.warns(UserWarning, match="the student says what its teacher says"):
        monitor = CollapseMonitor(PICTURES[:4], min_std=0.0, min_rank=0.0)
        history = model.fit(PICTURES, batch_size=8, verbose=0, callbacks=[monitor])
    assert history.history["teacher_student_kl"][0] < 1e-3
    assert history.history["teacher_entropy"][0] < 1e-3
    assert history.history["center_entropy"][0] == pytest.approx(np.log(24), rel=1e-4)
