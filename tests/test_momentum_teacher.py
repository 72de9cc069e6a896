"""The teacher after every step, beside the average computed in float64."""

import keras
import numpy as np
import pytest
import toy
from toy import to_numpy

from keras_ssl.models import BYOL, MoCo
from keras_ssl.optimizers import LARS, sgd
from keras_ssl.schedules import CosineMomentum

VIEWS = tuple(np.random.default_rng(0).random((2, 12, 4, 4, 3)).astype("float32"))


def backbone(dtype="float32"):
    images = keras.Input((4, 4, 3))
    x = keras.layers.Flatten()(images)
    x = keras.layers.Dense(6, dtype=dtype)(x)
    x = keras.layers.BatchNormalization(dtype=dtype)(x)
    return keras.Model(images, keras.layers.Activation("relu", dtype=dtype)(x))


def byol(dtype="float32", **kwargs):
    keras.utils.set_random_seed(2)
    options = dict(projection_dim=4, projection_hidden_dim=5, momentum=0.9, **kwargs)
    return BYOL(backbone(dtype), augmenter=None, preprocessor=None, **options)


def moco(**kwargs):
    keras.utils.set_random_seed(2)
    options = dict(projection_dim=4, queue_size=10, momentum=0.9, batch_norm_groups=2, **kwargs)
    return MoCo(backbone(), augmenter=None, preprocessor=None, **options)


def students(model):
    return [to_numpy(student).astype("float64") for _, student in model._teacher_pairs]


def teachers(model):
    return [to_numpy(teacher).astype("float64") for teacher, _ in model._teacher_pairs]


def check_average(model, steps, momentum_of, accumulate=1, atol=1e-7):
    before = model.teacher_update == "before"
    expected, student = teachers(model), students(model)
    for step in range(steps):
        moves = step % accumulate == 0 if before else (step + 1) % accumulate == 0
        m = momentum_of(step // accumulate) if moves else 1.0
        last = student
        model.train_on_batch(VIEWS)
        student = students(model)
        source = last if before else student
        expected = [m * t + (1 - m) * s for t, s in zip(expected, source, strict=True)]
        for ours, theirs in zip(teachers(model), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=atol)
    assert not all(np.allclose(a, b) for a, b in zip(student, expected, strict=True))
    assert int(model.teacher_step) == steps // accumulate


@pytest.mark.parametrize("make", [byol, moco])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teacher_is_exact_after_every_step(make, accumulate):
    model = make()
    steps = dict(gradient_accumulation_steps=accumulate) if accumulate > 1 else {}
    model.compile(sgd(0.5, momentum=0.0, **steps))
    check_average(model, 4, lambda step: 0.9, accumulate)


def test_in_eager_mode():
    model = byol()
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    check_average(model, 2, lambda step: 0.9)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_in_mixed_precision(dtype):
    model = byol(dtype)
    optimizer = sgd(0.5)
    if dtype == "mixed_float16":
        # A scale that a toy's gradients do not overflow.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    model.compile(optimizer)
    check_average(model, 2, lambda step: 0.9)
    assert all(t.dtype == "float32" for t, _ in model._teacher_pairs)


def test_the_momentum_follows_its_schedule():
    model = byol()
    model.compile(sgd(0.5))
    model.teacher_total_steps.assign(4)
    schedule = CosineMomentum(4, base=0.9)
    check_average(model, 4, lambda step: float(schedule(step)))
    frozen = teachers(model)  # at the end of the schedule m is 1
    model.train_on_batch(VIEWS)
    for old, new in zip(frozen, teachers(model), strict=True):
        np.testing.assert_array_equal(old, new)


def batches():
    return [tuple(view + 0.1 * i for view in VIEWS) for i in range(4)]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return (batches()[index],)


def fit(make, initial_epoch=0, epochs=1, model=None, **kwargs):
    if model is None:
        model = make()
        model.compile(sgd(0.1), **kwargs)
    model.fit(Batches(), epochs=epochs, initial_epoch=initial_epoch, shuffle=False, verbose=0)
    return model


def test_several_steps_in_one_call_are_the_same():
    many = 1 if keras.backend.backend() == "torch" else 4  # PyTorch has one step a call only
    one, four = fit(byol), fit(byol, steps_per_execution=many)
    assert int(four.teacher_total_steps) == int(four.teacher_step) == 4
    for a, b in zip(one.variables, four.variables, strict=True):
        if "random" not in a.path:
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)


def test_a_loaded_model_continues_the_schedule(tmp_path):
    straight = fit(byol, epochs=2)
    model = byol()
    model.compile(sgd(0.1))
    model.teacher_total_steps.assign(8)
    fit(byol, model=model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.teacher_total_steps) == 8 and int(loaded.teacher_step) == 4
    fit(byol, model=loaded, initial_epoch=1, epochs=2)
    for ours, theirs in zip(teachers(loaded), teachers(straight), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("make", [toy.moco_v3, toy.byol])
def test_a_run_resumed_between_accumulated_batches(make, tmp_path):
    """Three batches an epoch, two to an update: every other epoch ends within an update."""

    def fresh():
        keras.utils.set_random_seed(0)
        model = make()
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2))
        return model

    images, options = toy.images(24), dict(batch_size=8, verbose=0)
    whole = fresh()
    whole.fit(images, epochs=5, **options)
    first = fresh()
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(first, "stop_training", epoch == 0)
    )
    first.fit(images, epochs=5, callbacks=[stop], **options)
    first.save(tmp_path / "first.keras")
    resumed = keras.saving.load_model(tmp_path / "first.keras")
    resumed.fit(images, epochs=5, initial_epoch=1, **options)
    updates = 8 if whole.teacher_update == "before" else 7  # of 15 batches
    for model in (whole, resumed):
        assert int(model.teacher_step) == int(model.teacher_total_steps) == updates
    for one, other in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other), err_msg=one.path)


@pytest.mark.parametrize("method", ["byol", "moco_v3"])
def test_a_steps_gradient_is_of_that_step_alone(method):
    """Student and teacher have variables of the same paths; none may be taken for the other."""
    model = toy.METHODS[method](augmenter=None, preprocessor=None)
    views = tuple(np.random.default_rng(0).random((2, 6, 16, 16, 3)).astype("float32"))
    model.compile(sgd(0.0, momentum=0.5, weight_decay=0.0))
    slots = []
    for _ in range(3):
        model.train_on_batch(views)
        slots.append([to_numpy(m).copy() for m in model.optimizer.momentums])
    largest = max(np.abs(m).max() for m in slots[0])
    # The weights stand still: v = g, then g + v / 2 = 1.5 g, then 1.75 g.
    for first, second, third in zip(*slots, strict=True):
        np.testing.assert_allclose(second, 1.5 * first, atol=1e-4 * largest)
        np.testing.assert_allclose(third, 1.75 * first, atol=1e-4 * largest)


def test_the_optimizer_knows_nothing_of_the_teacher():
    model = byol()
    model.compile(LARS(0.1, weight_decay=0.1))
    model.train_on_batch(VIEWS)
    assert len(model.optimizer.parameter_groups()) == len(model.trainable_variables)
    known = {id(v) for v in model.trainable_variables}
    assert not any(id(t) in known for t, _ in model._teacher_pairs)
    assert len(model._teacher_pairs) == 4 + len(model.projection_head.trainable_variables)


def test_the_teachers_batch_norm_is_its_own():
    """Batch statistics while training, its own moving ones, neither copied nor averaged."""
    model = byol()
    model.compile(sgd(0.0))
    model.train_on_batch(VIEWS)
    (norm,) = [x for x in model.teacher_backbone.layers if "batch_norm" in x.name]
    moved = to_numpy(norm.moving_mean).copy()
    assert np.abs(moved).max() > 0
    model.test_on_batch(VIEWS)
    np.testing.assert_array_equal(to_numpy(norm.moving_mean), moved)


def test_a_teacher_is_reset_to_weights_that_were_loaded():
    model = byol()
    for variable in model.backbone.trainable_variables:
        variable.assign(variable + 1.0)
    model.reset_teacher()
    for teacher, student in zip(teachers(model), students(model), strict=True):
        np.testing.assert_array_equal(teacher, student)
    model.compile(sgd(0.1))
    model.train_on_batch(VIEWS)  # no buffer is shared


def test_impossible_momenta():
    with pytest.raises(ValueError, match="momentum"):
        BYOL(backbone(), momentum=1.5, augmenter=None, preprocessor=None)
    with pytest.raises(ValueError, match="momentum_schedule"):
        byol(momentum_schedule="linear")
