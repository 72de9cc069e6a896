"""Schedules against the papers' code (vectors), numpy in float64, and through a save."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_ssl.schedules import CosineMomentum, LinearWarmup, WarmupCosine, scale_learning_rate

VECTORS = np.load(Path(__file__).parent / "vectors" / "optimizers.npz")
META = json.loads(str(VECTORS["meta"]))


def values(schedule, steps):
    """One array call and single calls with Python and tensor steps, which must agree."""
    steps = np.asarray(steps)
    batch = ops.convert_to_numpy(schedule(steps))
    assert batch.shape == steps.shape and batch.dtype == np.float32
    for i in (0, len(steps) // 2, len(steps) - 1):
        single = schedule(ops.convert_to_tensor(steps[i]))
        np.testing.assert_allclose(float(single), batch[i], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(float(schedule(steps[i].item())), batch[i], rtol=1e-6)
    return batch


def close(actual, expected, scale):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * scale)


def test_mae_learning_rate_per_iteration():
    config, per_epoch = META["mae_schedule"], 4
    schedule = WarmupCosine(
        config["lr"],
        total_steps=config["epochs"] * per_epoch,
        warmup_steps=config["warmup_epochs"] * per_epoch,
        final=config["min_lr"],
    )
    steps = np.round(VECTORS["schedule/mae/in"] * per_epoch).astype("int32")
    close(values(schedule, steps), VECTORS["schedule/mae/out"], config["lr"])


def test_moco_v3_learning_rate_and_momentum():
    config = META["mocov3_schedule"]
    epochs = VECTORS["schedule/mocov3/in"]
    schedule = WarmupCosine(config["lr"], config["epochs"], config["warmup_epochs"])
    close(values(schedule, epochs), VECTORS["schedule/mocov3/lr"], config["lr"])
    momentum = CosineMomentum(total_steps=config["epochs"], base=config["moco_m"])
    close(values(momentum, epochs), VECTORS["schedule/mocov3/m"], 1)


@pytest.mark.parametrize("index", range(3))
def test_dino_cosine_scheduler(index):
    config = META["dino_schedule"][index]
    per_epoch = config["niter_per_ep"]
    schedule = WarmupCosine(
        config["base_value"],
        total_steps=config["epochs"] * per_epoch,
        warmup_steps=config.get("warmup_epochs", 0) * per_epoch,
        final=config["final_value"],
        warmup_includes_peak=True,
    )
    expected = VECTORS[f"schedule/dino{index}/out"]
    steps = np.arange(len(expected))
    close(values(schedule, steps), expected, config["base_value"])
    if "warmup_epochs" not in config and config["final_value"] == 1:
        momentum = CosineMomentum(total_steps=len(expected), base=config["base_value"])
        close(values(momentum, steps), expected, 1)


@pytest.mark.parametrize("index", range(4))
def test_dinov2_cosine_scheduler(index):
    config = META["dinov2_schedule"][index]
    schedule = WarmupCosine(
        config["base_value"],
        total_steps=config["total_iters"],
        warmup_steps=config.get("warmup_iters", 0),
        start=config.get("start_warmup_value", 0.0),
        final=config["final_value"],
        freeze_steps=config.get("freeze_iters", 0),
        warmup_includes_peak=True,
    )
    expected = VECTORS[f"schedule/dinov2{index}/out"]
    close(values(schedule, np.arange(len(expected))), expected, config["base_value"])


def test_byol_learning_rate_and_tau():
    config = META["byol_schedule"]
    steps = np.arange(25)
    peak = scale_learning_rate(config["base_lr"], config["sched_batch"])
    for warmup, name in ((config["warmup"], ""), (0, "_nowarmup")):
        schedule = WarmupCosine(peak, config["max_steps"], warmup)
        close(values(schedule, steps), VECTORS[f"schedule/byol/learning_schedule{name}"], peak)
    tau = CosineMomentum(total_steps=config["max_steps"], base=config["base_ema"])
    close(values(tau, steps), VECTORS["schedule/byol/target_ema"], 1)


def test_barlow_twins_and_vicreg_learning_rates():
    config = META["barlow_schedule"]
    expected = VECTORS["schedule/barlow/out"]
    for column, rate in enumerate((config["lr_w"], config["lr_b"])):
        peak = scale_learning_rate(rate, config["batch"])
        schedule = WarmupCosine(
            peak,
            total_steps=config["epochs"] * config["iters_per_epoch"],
            warmup_steps=10 * config["iters_per_epoch"],
            final=0.001 * peak,
        )
        close(values(schedule, np.arange(len(expected))), expected[:, column], peak)
    config = META["vicreg_schedule"]
    peak = scale_learning_rate(config["base_lr"], config["sched_batch"])
    expected = VECTORS["schedule/vicreg/out"]
    schedule = WarmupCosine(
        peak,
        total_steps=config["epochs"] * config["iters_per_epoch"],
        warmup_steps=10 * config["iters_per_epoch"],
        final=0.001 * peak,
    )
    close(values(schedule, np.arange(len(expected))), expected, peak)


def test_precision_at_the_end_of_a_long_schedule():
    total, warmup, peak = 500_000, 20_000, 2.4e-3
    steps = np.array([19_999, 20_000, 260_000, 499_000, 499_990, 499_999, 500_000, 600_000])
    schedule = WarmupCosine(peak, total, warmup)
    progress = np.clip((steps - warmup) / (total - warmup), 0, 1)
    expected = np.where(
        steps < warmup, peak * steps / warmup, peak * (1 + np.cos(np.pi * progress)) / 2
    )
    np.testing.assert_allclose(values(schedule, steps), expected, rtol=2e-6, atol=1e-20)


def test_update_every_holds_the_value():
    per_epoch = 5
    schedule = WarmupCosine(1.0, 20 * per_epoch, 4 * per_epoch, update_every=per_epoch)
    by_epoch = WarmupCosine(1.0, 20, 4)
    steps = np.arange(20 * per_epoch)
    np.testing.assert_allclose(
        values(schedule, steps), values(by_epoch, steps // per_epoch), rtol=1e-6
    )
    temperature = LinearWarmup(
        0.07, 6 * per_epoch, start=0.04, warmup_includes_peak=True, update_every=per_epoch
    )
    expected = np.concatenate([np.linspace(0.04, 0.07, 6), np.full(4, 0.07)]).repeat(per_epoch)
    np.testing.assert_allclose(values(temperature, np.arange(50)), expected, rtol=1e-6)


def test_linear_warmup():
    np.testing.assert_allclose(
        values(LinearWarmup(0.4, 4), np.arange(6)), [0, 0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6
    )
    np.testing.assert_allclose(values(LinearWarmup(0.4, 0), np.arange(2)), [0.4, 0.4], rtol=1e-6)


def test_scale_learning_rate():
    assert scale_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)
    assert scale_learning_rate(0.075, 4096, divisor=1, rule="sqrt") == pytest.approx(4.8)
    assert scale_learning_rate(0.004, 1024, divisor=1024, rule="sqrt") == pytest.approx(0.004)
    with pytest.raises(ValueError, match="rule='cubic'"):
        scale_learning_rate(0.1, 256, rule="cubic")
    with pytest.raises(ValueError, match="batch_size=0"):
        scale_learning_rate(0.1, 0)


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupCosine(0.1, 30, 5, start=0.01, final=0.02, freeze_steps=3, warmup_includes_peak=True),
        WarmupCosine(0.1, 30, 6, update_every=3),
        LinearWarmup(0.07, 8, start=0.04, warmup_includes_peak=True),
        CosineMomentum(30, base=0.99, final=0.999),
    ],
)
def test_serialisation(schedule):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is type(schedule) and restored.get_config() == schedule.get_config()
    np.testing.assert_array_equal(values(restored, np.arange(35)), values(schedule, np.arange(35)))


def test_in_keras_optimizer_of_a_compiled_model():
    schedule = WarmupCosine(0.5, total_steps=6, warmup_steps=2)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(schedule), loss=lambda y, p: ops.mean(p))
    model.layers[0].kernel.assign([[0.0]])
    model.fit(np.ones((6, 1)), np.ones((6, 1)), batch_size=1, verbose=0)
    expected = -sum(float(schedule(step)) for step in range(6))
    np.testing.assert_allclose(model.get_weights()[0], [[expected]], rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: WarmupCosine(0.1, 0), "total_steps=0"),
        (lambda: WarmupCosine(0.1, 10, -1), "warmup_steps=-1"),
        (lambda: WarmupCosine(0.1, 10, 8, freeze_steps=3), "must fit in `total_steps`"),
        (lambda: WarmupCosine(0.1, None), "total_steps=None"),
        (lambda: LinearWarmup(0.1, 10, update_every=0), "update_every=0"),
        (lambda: CosineMomentum(10, base=1.5), "base=1.5"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
