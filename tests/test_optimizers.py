"""AdamW against torch.optim, LARS against the papers' code (vectors), and both through Keras."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from keras import ops

from keras_ssl.optimizers import LARS, AdamW
from keras_ssl.schedules import WarmupCosine

VECTORS = np.load(Path(__file__).parent / "vectors" / "optimizers.npz")
META = json.loads(str(VECTORS["meta"]))
SHAPES = {"dense/kernel": (5, 4), "dense/bias": (4,), "norm/gamma": (4,), "token": (1, 1, 6)}


def make_variables(arrays):
    """Keras variables whose `path` is the given name."""
    variables = []
    for path, array in arrays.items():
        variable = keras.Variable(np.asarray(array, "float32"), name=path.replace("/", "_"))
        variable._path = path
        variables.append(variable)
    return variables


def apply(optimizer, variables, gradients):
    """One update; compiled backends go through `stateless_apply` or a traced function."""
    gradients = [None if g is None else ops.convert_to_tensor(g) for g in gradients]
    optimizer.apply(gradients, variables)


def numpy_values(variables):
    return [ops.convert_to_numpy(v) for v in variables]


def random_problem(seed=0, steps=5, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    arrays = {path: rng.normal(size=shape).astype("float32") for path, shape in shapes.items()}
    gradients = [
        [rng.normal(size=shape).astype("float32") for shape in shapes.values()]
        for _ in range(steps)
    ]
    return arrays, gradients


# ---- AdamW


def torch_adamw(arrays, gradients, groups, rates, decays=None, **kwargs):
    parameters = [torch.nn.Parameter(torch.tensor(a)) for a in arrays.values()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "lr": rates[0] * multiplier, "weight_decay": decay}
            for p, (multiplier, decay) in zip(parameters, groups, strict=True)
        ],
        **kwargs,
    )
    history = []
    for step, (rate, step_gradients) in enumerate(zip(rates, gradients, strict=True)):
        for group, (multiplier, decay) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = rate * multiplier
            if decays is not None and decay:
                group["weight_decay"] = decays[step]
        for parameter, gradient in zip(parameters, step_gradients, strict=True):
            parameter.grad = None if gradient is None else torch.tensor(gradient)
        optimizer.step()
        history.append([p.detach().numpy().copy() for p in parameters])
    return history


@pytest.mark.parametrize("beta_2, epsilon", [(0.95, 1e-8), (0.999, 1e-3)])
def test_adamw_equals_torch(beta_2, epsilon):
    arrays, gradients = random_problem()
    gradients[2] = [g * 1e-6 for g in gradients[2]]  # where the place of epsilon shows
    schedule = WarmupCosine(0.01, total_steps=5, warmup_steps=2, start=0.001)
    rates = [float(schedule(step)) for step in range(5)]
    expected = torch_adamw(
        arrays,
        gradients,
        [(1.0, 0.3), (1.0, 0.0), (0.5, 0.0), (0.25, 0.3)],
        rates,
        betas=(0.9, beta_2),
        eps=epsilon,
    )
    optimizer = AdamW(
        schedule,
        weight_decay=0.3,
        beta_2=beta_2,
        epsilon=epsilon,
        exclude_from_weight_decay=("bias$", "gamma"),
        learning_rate_multipliers={"token": 0.25, "norm|token": 0.5},
    )
    variables = make_variables(arrays)
    for step_gradients, step_expected in zip(gradients, expected, strict=True):
        apply(optimizer, variables, step_gradients)
        for actual, desired in zip(numpy_values(variables), step_expected, strict=True):
            np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-6)


def test_adamw_weight_decay_schedule_and_missing_gradient():
    arrays, gradients = random_problem(1)
    for step in gradients:
        step[1] = None
    schedule = WarmupCosine(0.04, total_steps=5, final=0.4)
    decays = [float(schedule(step)) for step in range(5)]
    groups = [(1.0, 0.04), (1.0, 0.0), (1.0, 0.0), (1.0, 0.04)]
    expected = torch_adamw(arrays, gradients, groups, [0.01] * 5, decays)[-1]
    optimizer = AdamW(0.01, weight_decay=schedule, exclude_1d=True)
    variables = make_variables(arrays)
    for step_gradients in gradients:
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            apply(optimizer, variables, step_gradients)
    for actual, desired in zip(numpy_values(variables), expected, strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-6)
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert restored.decay.get_config() == schedule.get_config()


def test_zero_multiplier_freezes_but_moments_accumulate():
    arrays, gradients = random_problem(2, steps=2)
    optimizer = AdamW(0.1, weight_decay=0.1, learning_rate_multipliers={"token": 0.0})
    variables = make_variables(arrays)
    for step_gradients in gradients:
        apply(optimizer, variables, step_gradients)
    np.testing.assert_array_equal(numpy_values(variables)[3], arrays["token"])
    assert np.abs(ops.convert_to_numpy(optimizer.momentums[3])).min() > 0


# ---- what DINO and DINOv2 add


@pytest.mark.parametrize("cls", [AdamW, LARS])
def test_frozen_variables_begin_when_they_are_released(cls):
    """As in PyTorch with gradients of None: no decay, no moments, and Adam's count starts later."""
    arrays, gradients = random_problem(8, steps=5)
    masked = [
        [None if path == "token" and step < 2 else g for path, g in zip(SHAPES, row, strict=True)]
        for step, row in enumerate(gradients)
    ]
    decay = WarmupCosine(0.04, total_steps=5, final=0.4)
    decays = [float(decay(step)) for step in range(5)]
    options = {"weight_decay": decay, "frozen_steps": {"token": 2}}
    if cls is AdamW:
        groups = [(1.0, 0.04)] * 4
        history = torch_adamw(arrays, masked, groups, [0.01] * 5, decays)
    else:
        options |= {"momentum_holds": "scaled_gradient", "exclude_from_layer_adaptation": (".",)}
        options |= {"exclude_1d": False}
        history = torch_sgd(arrays, masked, [0.01] * 5, decays)
    optimizer, variables = cls(0.01, **options), make_variables(arrays)
    for step, row in enumerate(gradients):
        apply(optimizer, variables, row)
        if step < 2:
            np.testing.assert_array_equal(numpy_values(variables)[3], arrays["token"])
            assert not ops.convert_to_numpy(optimizer.momentums[3]).any()
        for actual, desired in zip(numpy_values(variables), history[step], strict=True):
            np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-6)
    assert optimizer.parameter_groups()[3]["frozen_steps"] == 2


def torch_sgd(arrays, gradients, rates, decays):
    parameters = [torch.nn.Parameter(torch.tensor(a)) for a in arrays.values()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    history = []
    for rate, decay, row in zip(rates, decays, gradients, strict=True):
        optimizer.param_groups[0].update(lr=rate, weight_decay=decay)
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = None if gradient is None else torch.tensor(gradient)
        optimizer.step()
        history.append([p.detach().numpy().copy() for p in parameters])
    return history


def test_multiplier_schedule_against_float64():
    """DINOv2's last layer: rate 0 at first, while the moments accumulate."""
    arrays, gradients = random_problem(9, steps=4)
    multiplier = WarmupCosine(1.0, total_steps=4, final=1.0, freeze_steps=2)
    schedule = WarmupCosine(0.01, total_steps=4)
    optimizer = AdamW(
        schedule, weight_decay=0.1, learning_rate_multipliers={"token": multiplier, "dense": 0.5}
    )
    variables = make_variables(arrays)
    p, m, v = arrays["token"].astype("float64"), 0.0, 0.0
    for step, row in enumerate(gradients):
        apply(optimizer, variables, row)
        rate = float(schedule(step)) * float(step >= 2)
        m, v = 0.9 * m + 0.1 * row[3], 0.999 * v + 0.001 * row[3].astype("float64") ** 2
        t = step + 1
        p = p * (1 - rate * 0.1)
        p = p - rate / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(numpy_values(variables)[3], p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [None, ["dense", "token"], [""]])
def test_clipping_equals_torch(groups):
    arrays, gradients = random_problem(10, steps=1)
    row = [g * scale for g, scale in zip(gradients[0], (1.0, 0.1, 0.0, 3e-6), strict=True)]
    limit = 1e-6 if groups == ["dense", "token"] else 0.5
    parts = {None: [[0], [1], [2], [3]], 2: [[0, 1], [3]], 1: [[0, 1, 2, 3]]}
    expected = [torch.tensor(g, dtype=torch.float64) for g in row]
    for part in parts[groups and len(groups)]:
        norm = torch.sqrt(sum((expected[i] ** 2).sum() for i in part))
        for i in part:
            expected[i] = expected[i] * min(1.0, limit / (norm + 1e-6))
    optimizer = LARS(
        1.0,
        momentum=0.0,
        weight_decay=0.0,
        exclude_from_layer_adaptation=(".",),
        clip_group_norm=limit,
        clip_groups=groups,
    )
    variables = make_variables({path: np.zeros_like(a) for path, a in arrays.items()})
    apply(optimizer, variables, row)
    for actual, desired in zip(numpy_values(variables), expected, strict=True):
        np.testing.assert_allclose(actual, -desired.numpy(), rtol=1e-5, atol=1e-12)
    parameters = [torch.nn.Parameter(torch.tensor(a)) for a in arrays.values()]
    for parameter, gradient in zip(parameters, row, strict=True):
        parameter.grad = torch.tensor(gradient)
    if groups == [""]:
        torch.nn.utils.clip_grad_norm_(parameters, limit)
        for actual, parameter in zip(numpy_values(variables), parameters, strict=True):
            np.testing.assert_allclose(actual, -parameter.grad, rtol=1e-5, atol=1e-12)


def test_these_options_are_saved():
    optimizer = AdamW(
        0.01,
        weight_decay=WarmupCosine(0.04, 10, final=0.4),
        learning_rate_multipliers={"last": WarmupCosine(1.0, 10, freeze_steps=2), "norm": 0.5},
        frozen_steps={"weight_v$": 3},
        clip_group_norm=3.0,
        clip_groups=["backbone", "head"],
    )
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    restored = keras.optimizers.deserialize(config)
    assert restored.get_config() == optimizer.get_config()
    variables = make_variables({"head/last": np.ones(2), "head/weight_v": np.ones(2)})
    groups = restored.parameter_groups(variables)
    assert float(groups[0]["learning_rate_multiplier"](1)) == 0.0
    assert [g["frozen_steps"] for g in groups] == [0, 3]
    assert [g["clip_group"] for g in groups] == ["head", "head"]


# ---- LARS

FILTERED = {"exclude_1d": True}
UNFILTERED = {"exclude_1d": False}
SIMCLR = {"exclude_1d": False, "trust_coefficient": 0.001}
LARS_CASES = {
    "simclr_lars": {
        "default": SIMCLR,
        "head_excluded": SIMCLR,
        "separate_lists": SIMCLR,
        "nesterov": SIMCLR,
        "popular": SIMCLR,
        "popular_nesterov": SIMCLR,
        "no_wd": SIMCLR,
    },
    "mae_utils": {"mae": FILTERED},
    "dino_utils": {"dino": FILTERED},
    "byol_functions": {
        # BYOL filters by module and name
        "filtered": {"exclude_1d": False, "exclude_from_weight_decay": ("/b$", "norm")},
        "unfiltered": UNFILTERED,
    },
    "barlow_vicreg_lars": {
        "barlow_filtered": FILTERED,
        "barlow_unfiltered": UNFILTERED,
        "vicreg_filtered": FILTERED,
        "vicreg_unfiltered": UNFILTERED,
    },
}
NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "eta": "trust_coefficient",
    "eeta": "trust_coefficient",
    "use_nesterov": "nesterov",
}


def lars_options(case, variant):
    config = META[case]["config"]
    if case == "simclr_lars":
        config = dict(config[variant])
        classic = config.pop("classic_momentum", True)
        options = {"momentum_holds": "update" if classic else "gradient"}
    else:
        options = {"momentum_holds": "scaled_gradient"}
    return {
        **options,
        **LARS_CASES[case][variant],
        **{NAMES.get(key, key): value for key, value in config.items()},
    }


def split(flat, shapes):
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])[:-1]
    return [part.reshape(s) for part, s in zip(np.split(flat, ends), shapes.values(), strict=True)]


@pytest.mark.parametrize("case, variant", [(c, v) for c in LARS_CASES for v in LARS_CASES[c]])
def test_lars_equals_the_reference(case, variant):
    shapes = META[case]["shapes"]
    variables = make_variables(
        dict(zip(shapes, split(VECTORS[f"{case}/param"], shapes), strict=True))
    )
    optimizer = LARS(**lars_options(case, variant))
    for step, flat in enumerate(VECTORS[f"{case}/grad"]):
        apply(optimizer, variables, split(flat, shapes))
        actual = np.concatenate([v.ravel() for v in numpy_values(variables)])
        expected = VECTORS[f"{case}/{variant}/param"][step]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    if f"{case}/{variant}/momentum" in VECTORS.files:
        actual = np.concatenate([v.ravel() for v in numpy_values(optimizer.momentums)])
        expected = VECTORS[f"{case}/{variant}/momentum"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_every_lars_vector_is_tested():
    for case, variants in LARS_CASES.items():
        assert set(variants) == set(META[case]["variants"])


def numpy_lars(arrays, gradients, rates, holds, options):
    """Independent float64 reference with a changing learning rate."""
    w = [a.astype("float64") for a in arrays.values()]
    v = [np.zeros_like(a) for a in w]

    def trust(i, u):
        norms = np.linalg.norm(w[i]), np.linalg.norm(u)
        return 1.0 if w[i].ndim <= 1 or min(norms) == 0 else 0.02 * norms[0] / norms[1]

    for rate, step in zip(rates, gradients, strict=True):
        for i, g in enumerate(step):
            vector = w[i].ndim <= 1
            lr = rate * (options["bias_rate"] if vector else 1.0)
            g = g + (0.0 if vector else 0.1) * w[i]
            if holds != "gradient":
                g = g * trust(i, g) * (lr if holds == "update" else 1.0)
            v[i] = 0.9 * v[i] + g
            u = 0.9 * v[i] + g if options["nesterov"] else v[i]
            if holds == "gradient":
                u = u * trust(i, u)
            w[i] = w[i] - (u if holds == "update" else lr * u)
    return w


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("holds", ["update", "scaled_gradient", "gradient"])
def test_lars_under_a_schedule_with_a_second_rate(holds, nesterov):
    arrays, gradients = random_problem(3)
    arrays["dense/kernel"] *= 0  # a zero weight has trust ratio 1
    schedule = WarmupCosine(0.5, total_steps=6, warmup_steps=2)
    rates = [float(schedule(step)) for step in range(5)]
    options = {"nesterov": nesterov, "bias_rate": 0.024}
    expected = numpy_lars(arrays, gradients, rates, holds, options)
    optimizer = LARS(
        schedule,
        weight_decay=0.1,
        trust_coefficient=0.02,
        momentum_holds=holds,
        nesterov=nesterov,
        learning_rate_multipliers={"(bias|gamma|beta)$": 0.024},
    )
    variables = make_variables(arrays)
    for step_gradients in gradients:
        apply(optimizer, variables, step_gradients)
    for actual, desired in zip(numpy_values(variables), expected, strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6)


# ---- both, through Keras


def make_optimizer(name, **kwargs):
    shared = {
        "exclude_from_weight_decay": ("norm",),
        "learning_rate_multipliers": {"head": 0.5, "norm": 2.0},
        "weight_decay": 0.1,
        "frozen_steps": {"head": 2},
        **kwargs,
    }
    if name == "adamw":
        return AdamW(WarmupCosine(0.01, 50, 2), beta_2=0.95, exclude_1d=True, **shared)
    return LARS(
        WarmupCosine(0.05, 50, 2),
        trust_coefficient=0.02,
        exclude_from_layer_adaptation=("head",),
        momentum_holds="scaled_gradient",
        nesterov=True,
        exclude_1d=False,
        **shared,
    )


def make_model(optimizer, dtype=None, seed=0, **compile_arguments):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, name="body", dtype=dtype),
            keras.layers.LayerNormalization(name="norm", dtype=dtype),
            keras.layers.Dense(3, name="head", dtype=dtype),
        ]
    )
    model.compile(optimizer, loss="mse", **compile_arguments)
    return model


def data(n=32):
    rng = np.random.default_rng(7)
    return rng.normal(size=(n, 6)).astype("float32"), rng.normal(size=(n, 3)).astype("float32")


def test_parameter_groups():
    model = make_model(make_optimizer("adamw"))
    groups = model.optimizer.parameter_groups(model.trainable_variables)
    table = {g["path"].split("/", 1)[-1]: g for g in groups}
    kernel = next(g for path, g in table.items() if "body/kernel" in path)
    assert kernel["weight_decay"] and kernel["learning_rate_multiplier"] == 1.0
    assert sum(g["weight_decay"] for g in groups) == 2
    assert [g["learning_rate_multiplier"] for g in groups] == [1.0, 1.0, 2.0, 2.0, 0.5, 0.5]


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_config_round_trip(name):
    optimizer = make_optimizer(name, clipnorm=1.5)
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    restored = keras.optimizers.deserialize(config)
    assert type(restored) is type(optimizer)
    assert restored.get_config() == optimizer.get_config()
    model = make_model(optimizer)
    variables = model.trainable_variables
    assert restored.parameter_groups(variables) == optimizer.parameter_groups(variables)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_save_and_continue_equals_never_having_stopped(name, tmp_path):
    x, y = data()
    straight = make_model(make_optimizer(name))
    straight.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    stopped = make_model(make_optimizer(name))
    stopped.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    stopped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == stopped.optimizer.get_config()
    loaded.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for actual, expected in zip(loaded.get_weights(), straight.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_compiled_fit_equals_eager_fit(name):
    x, y = data()
    # torch is left eager: its compiler takes tens of seconds on any model.
    compiled = make_model(make_optimizer(name), run_eagerly=False)
    compiled.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    eager = make_model(make_optimizer(name), run_eagerly=True)
    eager.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for actual, expected in zip(compiled.get_weights(), eager.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_gradient_accumulation_equals_the_large_batch(name):
    x, y = data()
    keyword = {
        "learning_rate_multipliers": {"head": 0.5},
        "frozen_steps": {"body": 2},
        "clip_group_norm": 0.1,  # of the accumulated gradient
    }
    cls = AdamW if name == "adamw" else LARS
    large = make_model(cls(0.01, **keyword))
    large.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    small = make_model(cls(0.01, gradient_accumulation_steps=2, **keyword))
    small.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for actual, expected in zip(small.get_weights(), large.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_mixed_float16_with_loss_scaling(name):
    x, y = data()
    optimizer = make_optimizer(name)
    wrapped = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**8)
    half = make_model(wrapped, dtype="mixed_float16")
    half.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    full = make_model(make_optimizer(name))
    full.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 8
    for actual, expected in zip(half.get_weights(), full.get_weights(), strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=0.02)
    # a non-finite gradient skips the step
    before = half.get_weights()
    half.fit(np.full((8, 6), 1e9, "float32"), y[:8], batch_size=8, epochs=1, verbose=0)
    for actual, expected in zip(half.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["adamw", "lars"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_variables(name, dtype):
    arrays, gradients = random_problem(5, steps=3)
    results = []
    for variable_dtype in ("float32", dtype):
        variables = [keras.Variable(a, dtype=variable_dtype) for a in arrays.values()]
        optimizer = (AdamW if name == "adamw" else LARS)(0.01, weight_decay=0.1)
        for step_gradients in gradients:
            tensors = [ops.convert_to_tensor(g, dtype=variable_dtype) for g in step_gradients]
            optimizer.apply(tensors, variables)
        assert all(v.dtype == variable_dtype for v in variables)
        results.append([ops.convert_to_numpy(ops.cast(v, "float32")) for v in variables])
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.05)


@pytest.mark.parametrize("argument", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clipping_as_in_keras(argument):
    arrays, gradients = random_problem(6, steps=1)
    optimizer = LARS(
        1.0, momentum=0.0, weight_decay=0.0, exclude_from_layer_adaptation=(".",), **{argument: 0.5}
    )
    reference = keras.optimizers.SGD(1.0, **{argument: 0.5})
    variables, expected = make_variables(arrays), make_variables(arrays)
    apply(optimizer, variables, gradients[0])
    apply(reference, expected, gradients[0])
    for actual, desired in zip(numpy_values(variables), numpy_values(expected), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6)


def test_constraints_and_ema_see_the_updated_weights():
    x, y = data()
    weights = {}
    for case, options in {"plain": {}, "ema": {"use_ema": True, "ema_momentum": 0.0}}.items():
        model = make_model(make_optimizer("adamw", **options))
        model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
        weights[case] = model.get_weights()
    for actual, expected in zip(weights["ema"], weights["plain"], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)
    model = make_model(make_optimizer("adamw"))
    model.layers[0].kernel.constraint = keras.constraints.NonNeg()
    model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert ops.convert_to_numpy(model.layers[0].kernel).min() >= 0


def test_excluding_by_the_keras_method_survives_saving():
    optimizer = AdamW(0.01, weight_decay=0.1)
    variables = make_variables(random_problem()[0])
    optimizer.exclude_from_weight_decay(var_list=[variables[0]], var_names=["gamma"])
    restored = AdamW.from_config(optimizer.get_config())
    decays = [g["weight_decay"] for g in restored.parameter_groups(variables)]
    assert decays == [False, True, False, True]
    optimizer.build(variables)
    with pytest.raises(ValueError, match="before the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AdamW(0.1, weight_decay=-0.1), "weight_decay=-0.1"),
        (lambda: AdamW(0.1, beta_2=1.0), "beta_2=1.0"),
        (lambda: AdamW(0.1, epsilon=-1.0), "epsilon=-1.0"),
        (lambda: AdamW(0.1, exclude_from_weight_decay="bias"), "not a single string"),
        (lambda: AdamW(0.1, exclude_from_weight_decay=("(",)), "valid regular expressions"),
        (lambda: AdamW(0.1, learning_rate_multipliers={"a": -1.0}), "-1.0"),
        (lambda: AdamW(0.1, frozen_steps={"a": -1}), "'a': -1"),
        (lambda: AdamW(0.1, clip_group_norm=0.0), "clip_group_norm=0.0"),
        (lambda: AdamW(0.1, clip_groups=["a"]), "needs `clip_group_norm`"),
        (lambda: AdamW(0.1, clip_group_norm=1.0, clipnorm=1.0), "Only one of"),
        (lambda: LARS(0.1, momentum=1.0), "momentum=1.0"),
        (lambda: LARS(0.1, trust_coefficient=0.0), "trust_coefficient=0.0"),
        (lambda: LARS(0.1, momentum_holds="v"), "momentum_holds='v'"),
        (lambda: LARS(1), "learning_rate=1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
