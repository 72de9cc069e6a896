"""Half precision beside float32, accumulated gradients beside gradients added by hand, and
rematerialisation: the same numbers in less memory."""

import contextlib
import os

import keras
import numpy as np
import pytest
import toy
from several_devices import METHODS, PREPARED, PreparedViews, data_of
from toy import to_numpy

# Every method where a step costs no compilation, or where one is asked for; elsewhere the one with
# most kinds of state.
EAGER = keras.backend.backend() == "torch"
EVERY = EAGER or "EVERY_METHOD" in os.environ
NAMES = sorted(METHODS.keys() - {"clip_cached", "simclr_cached"}) if EVERY else ["moco"]
TEACHERS = ["byol", "dino", "dinov2", "moco", "moco_v3"] if EAGER else ["moco"]
# Of the first loss and of those of four steps, relative to them or to 1; of the direction of the
# first step, as 1 - cosine; and of the state. Set after the figures seen, at 1.4 times the
# worst method or more; how far it is depends on the size of the toys' weights (`scale`).
TOLERANCE = {"mixed_bfloat16": (0.1, 0.15, 0.45, 0.1), "mixed_float16": (0.03, 0.03, 0.02, 0.03)}
# XLA on a CPU lacks the product of float16 that keras-hub's BERT asks for on JAX.
NOT_ON_CPU = {("align", "mixed_float16")} if keras.backend.backend() == "jax" else set()


@contextlib.contextmanager
def dtype_policy(name):
    """As the command line's `--precision` sets it: for backbone, heads, losses."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def run(name, policy, steps=4):
    """Losses of some steps, the way of the first, and the model: same weights, same draws."""
    keras.utils.set_random_seed(0)  # of what is not trained
    with dtype_policy(policy):
        model, data = METHODS[name](), data_of(name)
        if name in PREPARED:
            model.augmenter, data = None, data.views
        toy.fill(model, scale=0.6)
        if hasattr(model, "reset_teacher"):
            model.reset_teacher()
        # Steps of a given length: the toys' gradients differ by orders of magnitude.
        optimizer = keras.optimizers.SGD(0.01, global_clipnorm=1.0)
        if policy == "mixed_float16":  # a scale that they do not overflow
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
        model.compile(optimizer)
        before = np.concatenate([to_numpy(v).ravel() for v in model.trainable_variables])
        losses = []
        for step in range(steps):
            model.reset_metrics()  # the loss of one batch
            losses.append(float(np.ravel(model.train_on_batch(data))[0]))
            if step == 0:
                after = np.concatenate([to_numpy(v).ravel() for v in model.trainable_variables])
    return losses, after - before, model


def cosine(x, y):
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_near_float32(name):
    expected, way, reference = run(name, "float32")
    assert abs(expected[-1] - expected[0]) > 1e-4  # it has moved
    for policy, (first, later, turned, apart) in TOLERANCE.items():
        if (name, policy) in NOT_ON_CPU:
            continue
        losses, half_way, model = run(name, policy)
        error = np.abs(np.subtract(losses, expected)) / np.maximum(1, np.abs(expected))
        off = 1 - cosine(way, half_way)
        # `pytest -s` shows them.
        print(f"{name} {policy}: loss {error[0]:.1e} {error.max():.1e}, direction {off:.1e}")
        assert error[0] < first and error.max() < later, (policy, losses, expected)
        assert off < turned, policy
        half = policy.removeprefix("mixed_")
        assert model.compute_dtype == model.backbone.compute_dtype == half
        # Weights, teacher, queue, centre and the statistics of batch norm stay in float32.
        for variable in model.variables:
            kind = keras.backend.standardize_dtype(variable.dtype)
            assert kind == "float32" or "int" in kind, variable.path
        for one, two in zip(
            model.non_trainable_variables, reference.non_trainable_variables, strict=True
        ):
            if keras.backend.is_float_dtype(one.dtype):
                one, two, path = to_numpy(one), to_numpy(two), one.path
                scale = max(1.0, np.abs(two).max())
                np.testing.assert_allclose(one, two, atol=apart * scale, err_msg=f"{policy} {path}")


def test_loss_scaling_skips_what_overflows():
    """A scale far too large: float16 gradients overflow, the step is left out, nothing is lost."""
    with dtype_policy("mixed_float16"):
        model = toy.moco(augmenter=None, preprocessor=None)
    views = PreparedViews("moco").views
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05), initial_scale=2.0**40
    )
    model.compile(optimizer, non_finite="stop")
    before = [to_numpy(v).copy() for v in model.trainable_variables]
    history = model.fit(PreparedViews("moco"), epochs=2, shuffle=False, verbose=0).history
    for one, two in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, to_numpy(two))
    assert np.isfinite(history["loss"]).all()
    assert float(optimizer.dynamic_scale) == 2.0**38  # halved twice
    optimizer.dynamic_scale.assign(8.0)
    model.train_on_batch(views)
    assert any(
        (one != to_numpy(two)).any()
        for one, two in zip(before, model.trainable_variables, strict=True)
    )


# === Accumulated gradients ===


def accumulating(name, rate, steps):
    """On prepared views, so that both ways see the same ones."""
    keras.utils.set_random_seed(0)
    model = toy.METHODS[name](augmenter=None, preprocessor=None)
    toy.fill(model)
    model.reset_teacher()
    model.compile(keras.optimizers.SGD(rate, gradient_accumulation_steps=steps))
    return model


@pytest.mark.parametrize("name", TEACHERS)
def test_accumulated_gradients(name):
    """Two batches, one step of the mean of their gradients, each taken at the old weights; batch
    norm, queue and centre saw both; the teacher moved once."""
    views = PreparedViews(name).views
    first, second = (tuple(view[part] for view in views) for part in (slice(8), slice(8, 16)))
    rate = 0.05
    model = accumulating(name, rate, 2)
    start = [to_numpy(v).copy() for v in model.trainable_variables]
    old = [to_numpy(t).copy() for t, _ in model._teacher_pairs]
    model.train_on_batch(first)
    for one, two in zip(start, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, to_numpy(two))
    model.train_on_batch(second)

    # By hand: a step of length 0 on the first batch leaves the weights, one on the second gives
    # its gradient there; then from the beginning again, one on the first.
    other = accumulating(name, 0.0, None)
    everything = [(v, to_numpy(v).copy()) for v in other.variables]
    other.train_on_batch(first)
    other.optimizer.learning_rate = rate
    other.train_on_batch(second)
    on_second = [to_numpy(v).copy() for v in other.trainable_variables]
    seen_both = [to_numpy(v).copy() for v in other.non_trainable_variables]
    for variable, value in everything:
        variable.assign(value)
    other.train_on_batch(first)
    on_first = [to_numpy(v).copy() for v in other.trainable_variables]
    farthest = 0.0
    columns = zip(model.trainable_variables, start, on_first, on_second, strict=True)
    for ours, begin, one, two in columns:
        expected = begin + ((one - begin) + (two - begin)) / 2
        np.testing.assert_allclose(to_numpy(ours), expected, rtol=1e-5, atol=2e-6)
        farthest = max(farthest, np.abs(one - two).max())
    assert farthest > 1e-4  # the two differ: neither alone would do

    teachers = {id(t) for t, _ in model._teacher_pairs}
    counters = {"teacher_step", "teacher_seen"}
    for ours, theirs in zip(model.non_trainable_variables, seen_both, strict=True):
        if id(ours) not in teachers and ours.name not in counters:
            np.testing.assert_allclose(to_numpy(ours), theirs, atol=1e-6)
    after = model.teacher_update == "after"  # else the next batch moves it
    rate = float(model.teacher_rate()) if after else 0.0
    for (teacher, student), was in zip(model._teacher_pairs, old, strict=True):
        expected = was + rate * (to_numpy(student) - was)
        np.testing.assert_allclose(to_numpy(teacher), expected, rtol=1e-5, atol=1e-6)
    assert int(model.teacher_step) == 1


# === Rematerialisation ===


def test_rematerialised_steps_are_equal():
    """Training steps with stochastic depth, whose draws must not change in the second pass."""
    weights = []
    for again in (False, True):
        backbone = toy.vit(num_layers=2, drop_path_rate=0.5, rematerialize=again)
        model = toy.simclr(backbone, augmenter=None, preprocessor=None)
        toy.fill(model)
        for variable in model.non_trainable_variables:
            if "stream" in variable.path:
                variable.assign([1, 2, 0])
        model.compile(keras.optimizers.SGD(0.1))
        start = [to_numpy(v).copy() for v in model.variables]
        for _ in range(2):
            model.train_on_batch(PreparedViews("simclr").views)
        weights.append([to_numpy(v) for v in model.variables])
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(start, weights[0], strict=True)) > 1e-3


if keras.backend.backend() == "jax":

    def test_every_block_is_asked_for_again():
        """What XLA is given holds a barrier for each block, between its two computations."""
        import jax

        counts = []
        for again in (False, True):
            backbone = toy.vit(num_layers=3, rematerialize=again)
            trainable, frozen = (
                [v.value for v in variables]
                for variables in (backbone.trainable_variables, backbone.non_trainable_variables)
            )

            def loss(trainable, backbone=backbone, frozen=frozen):
                images = keras.ops.cast(toy.images(2), "float32")
                outputs, _ = backbone.stateless_call(trainable, frozen, images, training=True)
                return sum(keras.ops.sum(x) for x in keras.tree.flatten(outputs))

            text = jax.jit(jax.grad(loss)).lower(trainable).as_text()
            counts.append(text.count("optimization_barrier"))
        assert counts == [0, 3]
