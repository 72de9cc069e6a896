"""Losses of the joint-embedding methods beside NumPy in float64, and how the models use them."""

import keras
import numpy as np
import pytest
from gradients import compiled, input_gradients
from keras import ops
from toy import METHODS, fill, to_numpy, vit

from keras_ssl import losses
from keras_ssl.layers import ProjectionHead
from keras_ssl.models import BarlowTwins, VICReg

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 7, 5))


def tensors(*arrays):
    return [ops.convert_to_tensor(a.astype("float32")) for a in arrays]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_cosine(p, z):
    return np.sum(unit(p) * unit(z), axis=1)


def numpy_barlow(x, y, weight, epsilon=1e-5):
    x, y = ((z - z.mean(0)) / np.sqrt(z.var(0) + epsilon) for z in (x, y))
    c = x.T @ y / len(x)
    total = 0.0
    for i in range(c.shape[0]):
        for j in range(c.shape[1]):
            total += (1 - c[i, i]) ** 2 if i == j else weight * c[i, j] ** 2
    return total


def numpy_vicreg(x, y, similarity=25.0, variance=25.0, covariance=1.0, epsilon=1e-4):
    total, dim = similarity * np.mean((x - y) ** 2), x.shape[1]
    for z in (x, y):
        deviation = np.sqrt(z.var(0, ddof=1) + epsilon)
        total += variance * np.maximum(0, 1 - deviation).mean() / 2
        c = np.cov(z.T)
        total += covariance * ((c**2).sum() - (np.diag(c) ** 2).sum()) / dim
    return total


def test_losses_without_negatives():
    p, z = tensors(A, B)
    assert float(losses.NegativeCosineLoss()(p, z)) == pytest.approx(
        -numpy_cosine(A, B).mean(), rel=1e-5
    )
    expected = 2 - 2 * numpy_cosine(A, B)
    np.testing.assert_allclose(to_numpy(losses.BYOLLoss()(p, z, reduction=None)), expected, 1e-5)
    assert float(losses.BYOLLoss()(p, z)) == pytest.approx(expected.mean(), rel=1e-5)
    # Far below the rounding of cosines, the distance keeps its digits.
    near = p + 1e-4 * z
    expected = np.sum((unit(A + 1e-4 * B) - unit(A)) ** 2, axis=1).mean()
    assert float(losses.BYOLLoss()(near, p)) == pytest.approx(expected, rel=2e-3)
    with pytest.raises(ValueError, match="batch, dim"):
        losses.NegativeCosineLoss()(p[0], z[0])


@pytest.mark.parametrize("weight", [0.0051, 1.0])
def test_barlow_twins_loss(weight):
    value = float(losses.BarlowTwinsLoss(weight)(*tensors(A, B)))
    assert value == pytest.approx(numpy_barlow(A, B, weight), rel=1e-5)
    # Neither shift nor scale of a feature matters.
    moved = float(losses.BarlowTwinsLoss(weight, epsilon=1e-12)(*tensors(3 * A + 2, B)))
    assert moved == pytest.approx(numpy_barlow(A, B, weight, 1e-12), rel=1e-4)
    with pytest.raises(ValueError, match="off_diagonal_weight"):
        losses.BarlowTwinsLoss(-1.0)


@pytest.mark.parametrize("options", [{}, dict(similarity=1.0, variance=2.0, covariance=3.0)])
def test_vicreg_loss(options):
    x, y = 0.5 * A, 0.5 * B + 0.1
    value = float(losses.VICRegLoss(**options)(*tensors(x, y)))
    assert value == pytest.approx(numpy_vicreg(x, y, **options), rel=1e-5)
    # Collapse: no covariance, and the hinge pays for every feature.
    same = np.ones((4, 3))
    terms = losses.VICRegLoss()(*tensors(same, same), return_terms=True)
    assert float(terms["similarity"]) == float(terms["covariance"]) == 0
    assert float(terms["variance"]) == pytest.approx(0.99, rel=1e-4)
    with pytest.raises(ValueError, match="weights"):
        losses.VICRegLoss(variance=-1.0)


def test_losses_are_rebuilt_from_their_configuration():
    for loss in (
        losses.BarlowTwinsLoss(0.1),
        losses.BYOLLoss(),
        losses.NegativeCosineLoss(),
        losses.VICRegLoss(1.0, 2.0, 3.0),
    ):
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
        assert type(copy) is type(loss) and copy.get_config() == loss.get_config()


# === Negatives ===


def numpy_contrastive(z1, z2, temperature, decoupled=False, sigma=None, prior=0.0, hardness=0.0):
    z, n = unit(np.concatenate([z1, z2])), len(z1)
    pairs = np.sum(z[:n] * z[n:], axis=1)
    total = []
    for i in range(2 * n):
        own = np.exp(pairs[i % n] / temperature)
        others = np.delete(np.exp(z @ z[i] / temperature), [i % n, i % n + n])
        count = len(others)
        weights = others**hardness
        sum_of = count * np.sum(weights * others) / np.sum(weights)
        if prior:
            sum_of = (sum_of - prior * count * own) / (1 - prior)
            sum_of = max(sum_of, count * np.exp(-1 / temperature))
        if decoupled:
            weight = 1.0
            if sigma is not None:
                weight = 2 - n * np.exp(pairs[i % n] / sigma) / np.exp(pairs / sigma).sum()
            total.append(-weight * pairs[i % n] / temperature + np.log(sum_of))
        else:
            total.append(-np.log(own / (own + sum_of)))
    return np.mean(total)


@pytest.mark.parametrize(
    "options",
    [
        dict(decoupled=True),
        dict(decoupled=True, positive_sigma=0.4),
        dict(hardness=0.7),
        dict(class_prior=0.1),
        dict(class_prior=0.6, hardness=1.5),
        dict(class_prior=0.1, hardness=0.5, decoupled=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("block_size", [None, 5])
def test_options_for_negatives(options, block_size):
    z2 = A + 0.5 * B
    theirs = {
        {"positive_sigma": "sigma", "class_prior": "prior"}.get(k, k): v for k, v in options.items()
    }
    expected = numpy_contrastive(A, z2, 0.3, **theirs)
    loss = losses.NTXentLoss(0.3, block_size=block_size, **options)
    value, gradients = input_gradients(loss, A, z2)
    assert float(value) == pytest.approx(expected, rel=2e-5)
    # The gradient along a random direction, by central differences in float64.
    directions, step = RNG.normal(size=(2, *A.shape)), 1e-5
    ahead, behind = (
        numpy_contrastive(A + s * directions[0], z2 + s * directions[1], 0.3, **theirs)
        for s in (step, -step)
    )
    if "positive_sigma" in options:  # its weights have no gradient, which differences cannot know
        return
    slope = sum(np.sum(g * d) for g, d in zip(gradients, directions, strict=True))
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=2e-3)


def test_hard_negatives_at_low_temperatures_stay_finite():
    z1, z2 = tensors(A, A + 1e-3 * B)
    for temperature in (0.01, 0.05):
        loss = losses.NTXentLoss(temperature, class_prior=0.3, hardness=2.0)
        value, gradients = input_gradients(loss, to_numpy(z1), to_numpy(z2))
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(class_prior=1.0), "class_prior"),
        (dict(hardness=-1.0), "hardness"),
        (dict(positive_sigma=0.5), "positive_sigma"),
        (dict(temperature=0.0), "temperature"),
    ],
)
def test_impossible_options(options, match):
    with pytest.raises(ValueError, match=match):
        losses.NTXentLoss(**options)


# === Models ===


@pytest.mark.parametrize("method", ["barlow_twins", "byol", "simsiam", "vicreg"])
def test_the_loss_of_a_batch_is_the_papers(method):
    model = METHODS[method](augmenter=None, preprocessor=None)
    fill(model, scale=0.3)
    views = RNG.random((2, 6, 16, 16, 3)).astype("float32")
    before = [to_numpy(v).copy() for v in model.variables]

    @compiled
    def outputs(view_1, view_2):
        with keras.StatelessScope():
            z = [model.project(v, training=True) for v in (view_1, view_2)]
            p, target = z, z
            if hasattr(model, "prediction_head"):
                p = [model.prediction_head(x, training=True) for x in z]
            if method == "byol":
                target = [model.project_target(v, training=True) for v in (view_1, view_2)]
            return *p, *target

    p1, p2, z1, z2 = (to_numpy(x).astype("float64") for x in outputs(*tensors(*views)))
    expected = {
        "barlow_twins": lambda: numpy_barlow(z1, z2, 0.0051),
        # The sum of both directions, not their mean.
        "byol": lambda: (4 - 2 * numpy_cosine(p1, z2) - 2 * numpy_cosine(p2, z1)).mean(),
        "simsiam": lambda: -(numpy_cosine(p1, z2) + numpy_cosine(p2, z1)).mean() / 2,
        "vicreg": lambda: numpy_vicreg(z1, z2),
    }[method]()
    model.compile(keras.optimizers.SGD(0.0))
    loss = model.train_on_batch(tuple(views), return_dict=True)["loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-3)
    # A learning rate of zero leaves every parameter where it was.
    for variable, old in zip(model.variables, before, strict=False):
        if variable.trainable:
            np.testing.assert_array_equal(to_numpy(variable), old)


@pytest.mark.parametrize(
    "method, optimizer",
    [
        ("barlow_twins", "LARS"),
        ("byol", "LARS"),
        ("moco", "LARS"),
        ("moco_v3", "AdamW"),
        ("simsiam", "LARS"),
        ("vicreg", "LARS"),
    ],
)
def test_default_optimizers(method, optimizer):
    model = METHODS[method]()
    model.compile()
    default = model.default_optimizer(total_steps=100, batch_size=256, steps_per_epoch=5)
    assert type(default).__name__ == optimizer
    groups = default.parameter_groups(model.trainable_variables)
    plain_sgd = method in ("moco", "simsiam")
    vectors = [
        g for g, v in zip(groups, model.trainable_variables, strict=True) if len(v.shape) < 2
    ]
    assert vectors and all(g["weight_decay"] == (plain_sgd or method == "moco_v3") for g in vectors)
    assert any(g["layer_adaptation"] for g in groups) != plain_sgd or method == "moco_v3"
    if method == "barlow_twins":
        rates = {g["learning_rate_multiplier"] for g in vectors}
        assert rates == {0.0048 / 0.2}


@pytest.mark.parametrize(
    "method, recipe",
    [
        ("barlow_twins", "barlow_twins"),
        ("byol", "byol"),
        ("moco", "mocov2"),
        ("moco_v3", "mocov3"),
        ("simsiam", "simsiam"),
        ("vicreg", "vicreg"),
    ],
)
def test_the_papers_views_are_the_default(method, recipe):
    augmenter = METHODS[method](augmenter="auto").augmenter
    assert augmenter.recipe == recipe and tuple(augmenter.size) == (16, 16)


def test_heads_by_table():
    def shapes(**options):
        head = ProjectionHead(4, **options)
        head.build((None, 6))
        biases = [linear.use_bias for linear in head.linears]
        return [tuple(linear.kernel.shape) for linear in head.linears], biases, len(head.norms)

    assert shapes(num_layers=1, batch_norm=False) == ([(6, 4)], [True], 0)
    assert shapes(batch_norm=False) == ([(6, 6), (6, 4)], [True, True], 0)
    byol = dict(hidden_dim=5, final_batch_norm=False, hidden_bias=True, output_bias=False)
    assert shapes(**byol) == ([(6, 5), (5, 4)], [True, False], 1)
    widths = dict(num_layers=3, hidden_dim=[8, 7], final_batch_norm=False, output_bias=False)
    assert shapes(**widths) == ([(6, 8), (8, 7), (7, 4)], [False] * 3, 2)
    with pytest.raises(ValueError, match="hidden_dim"):
        ProjectionHead(4, hidden_dim=[3], num_layers=3)


@pytest.mark.parametrize("method", [BarlowTwins, VICReg])
@pytest.mark.parametrize("hidden, widths", [([], [4]), ([8], [8, 4]), ([8, 7, 6], [8, 7, 6, 4])])
def test_projectors_of_any_depth(method, hidden, widths):
    options = dict(projection_hidden_dim=hidden, augmenter=None, preprocessor=None)
    model = method(vit(), projection_dim=4, **options)
    model = method.from_config(model.get_config())
    assert [linear.units for linear in model.projection_head.linears] == widths


@pytest.mark.parametrize("name, deviation", [("torch", 3**-0.5), ("haiku", 0.8796), ("glorot", 1)])
def test_heads_start_as_in_the_published_codes(name, deviation):
    keras.utils.set_random_seed(0)
    head = ProjectionHead(100, initializer=name, output_bias=True)
    head.build((None, 100))
    kernel, bias = to_numpy(head.linears[1].kernel), to_numpy(head.linears[1].bias)
    assert kernel.std() == pytest.approx(0.1 * deviation, rel=0.02)
    reach = {"torch": 0.1, "haiku": 0.2, "glorot": 0.1 * 3**0.5}[name]
    assert np.abs(kernel).max() == pytest.approx(reach, rel=0.01)
    assert np.abs(bias).max() == pytest.approx(0.1 if name == "torch" else 0.0, rel=0.1)
    assert ProjectionHead.from_config(head.get_config()).initializer == name
    with pytest.raises(ValueError, match="initializer"):
        ProjectionHead(4, initializer="xavier")


@pytest.mark.parametrize(
    "method", sorted({"barlow_twins", "byol", "moco", "moco_v3", "simsiam", "vicreg"})
)
def test_methods_start_as_their_published_codes(method):
    model = METHODS[method]()
    heads = [getattr(model, n) for n in ("projection_head", "prediction_head") if hasattr(model, n)]
    starts = {head.initializer for head in heads}
    assert starts == {"haiku" if method == "byol" else "torch"}


@pytest.mark.parametrize("fixed", [True, False])
def test_simsiams_predictor_keeps_its_learning_rate(fixed):
    model = METHODS["simsiam"](fix_predictor_learning_rate=fixed, augmenter=None, preprocessor=None)
    model.compile()
    optimizer = model.default_optimizer(total_steps=4, batch_size=256, steps_per_epoch=2)
    optimizer = type(optimizer).from_config(optimizer.get_config())
    optimizer.build(model.trainable_variables)
    # After the last epoch's decay and with equal gradients, what moves is the learning rate.
    optimizer.iterations.assign(2)
    before = [to_numpy(v).copy() for v in model.trainable_variables]
    optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables])
    for variable, old in zip(model.trainable_variables, before, strict=True):
        rate = np.mean(old - to_numpy(variable))
        kept = fixed and "prediction_head" in variable.path
        assert rate == pytest.approx(0.05 if kept else 0.025, rel=1e-3)
    assert any("prediction_head" in v.path for v in model.trainable_variables)
