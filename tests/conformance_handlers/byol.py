"""BYOL: its functions, and whole training steps through the compiled model."""

import re

import keras
import numpy as np
from gradients import compiled, input_gradients, variable_gradients
from keras import layers, ops

from conformance_handlers.framework import Case, as_numpy, handler
from conformance_handlers.initial import check_heads
from conformance_handlers.optimizers import (
    compare_move,
    compare_zero_gradient,
    make_variables,
    run_steps,
)
from keras_ssl import losses, optimizers, schedules
from keras_ssl.losses.nt_xent import l2_normalize
from keras_ssl.models import BYOL

# keras_ssl.augmentation's constants; the reference normalises inside the network's forward pass.
MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))


def _lars(learning_rate, decay, config, filtered=True, **kwargs):
    return optimizers.LARS(
        learning_rate,
        momentum=config["momentum"],
        weight_decay=decay,
        trust_coefficient=config["eta"],
        momentum_holds="scaled_gradient",
        **({"exclude_1d": filtered} | kwargs),
    )


@handler("byol", "functions")
def functions(case: Case):
    config = case.config
    config.generator_only("seed", "lars_shapes")
    x, y = case.input("in/x"), case.input("in/y")
    case.check("batch and dim are those of the input", x.shape == (config["batch"], config["dim"]))
    case.compare("out/l2_normalize_x", l2_normalize(ops.convert_to_tensor(x)))
    loss = losses.BYOLLoss()
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    case.compare("out/regression_loss", loss(*tensors, reduction=None))
    _, gradients = input_gradients(loss, x, y)
    for which, gradient in zip("xy", gradients, strict=True):
        case.compare(f"grad/regression_loss_mean/{which}", gradient)

    steps = case.input("in/steps").astype("float32")
    total = config["max_steps"]
    case.compare("out/target_ema", schedules.CosineMomentum(total, config["base_ema"])(steps))
    peak = schedules.scale_learning_rate(config["base_lr"], config["sched_batch"])
    for key, warmup in (("", config["warmup"]), ("_nowarmup", 0)):
        schedule = schedules.WarmupCosine(peak, total, warmup_steps=warmup)
        case.compare(f"out/learning_schedule{key}", schedule(steps))

    initial = case.inputs("param/")
    for variant in ("filtered", "unfiltered"):
        variables = make_variables(initial)
        filtered = variant == "filtered"
        # There, the names decide: `b` and anything in a layer whose name holds "norm".
        excluded = ("/b$", "norm") if filtered else ()
        optimizer = _lars(
            config["lr"], config["wd"], config, filtered, exclude_from_weight_decay=excluded
        )
        optimizer.build(list(variables.values()))
        run_steps(
            case,
            optimizer,
            variables,
            "in/step{step}/grad/{name}",
            variant + "/step{step}/param/{name}",
            config["steps"],
        )


def haiku_resnet(parameters: dict, size: int) -> keras.Model:
    """haiku's ResNet v1 with plain blocks, up to the map before pooling, from its names."""

    def convolution(x, name, strides):
        kernel = parameters[f"{name}/w"]
        options = dict(strides=strides, padding="same", use_bias=False, name=_keras_name(name))
        return layers.Conv2D(kernel.shape[-1], kernel.shape[0], **options)(x)

    def norm(x, name):
        # haiku's averages start at zero and are corrected for it.
        return layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            moving_variance_initializer="zeros",
            name=_keras_name(name),
        )(x)

    images = keras.Input((size, size, 3))
    x = convolution(images, "initial_conv", 2)
    x = layers.ReLU()(norm(x, "initial_batchnorm"))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    groups = sorted(
        {m[1] for n in parameters if (m := re.match(r"(block_group_\d+/~/block_\d+)/", n))}
    )
    for group in groups:
        first = group.endswith("block_0") and not group.startswith("block_group_0")
        strides = 2 if first else 1
        shortcut = x
        if f"{group}/~/shortcut_conv/w" in parameters:
            shortcut = convolution(x, f"{group}/~/shortcut_conv", strides)
            shortcut = norm(shortcut, f"{group}/~/shortcut_batchnorm")
        x = norm(convolution(x, f"{group}/~/conv_0", strides), f"{group}/~/batchnorm_0")
        x = norm(convolution(layers.ReLU()(x), f"{group}/~/conv_1", 1), f"{group}/~/batchnorm_1")
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    return keras.Model(images, x)


def _keras_name(name):
    return name.replace("/~/", "__")


_NORM = {"scale": "gamma", "offset": "beta"}


class WithProbe(BYOL):
    """BYOL and the linear classifier that the reference trains beside it on stopped features."""

    def add_probe(self, classes, dim):
        self.probe = layers.Dense(classes, name="classifier")
        self.probe.build((None, dim))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        view_1, view_2, labels = x
        loss = super().compute_loss(x=(view_1, view_2), training=training)
        return loss + self.classification_loss(labels)

    def classification_loss(self, labels):
        features, _ = self.features  # of the first view only
        log_probabilities = ops.log_softmax(self.probe(ops.stop_gradient(features)))
        return -ops.mean(ops.take_along_axis(log_probabilities, labels[:, None], axis=-1))

    def project(self, view, training=False):
        # Kept for the probe: another pass would move the averages again.
        features = self.encode(view, training=training)
        self.features = getattr(self, "features", ())[-1:] + (features,)
        return self.projection_head(features, training=training)


def _model(case, online):
    config = case.config
    config.must_be(resnet_v2=False)
    encoder = {n[len(_ENCODER) :]: a for n, a in online.items() if n.startswith(_ENCODER)}
    model = WithProbe(
        haiku_resnet(encoder, config["img_size"]),
        projection_dim=config["proj_out"],
        projection_hidden_dim=config["proj_hidden"],
        prediction_hidden_dim=config["pred_hidden"],
        momentum=config["base_ema"],
        augmenter=None,
        preprocessor=None,
    )
    model.add_probe(config["num_classes"], online["classifier/w"].shape[0])
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum, layer.epsilon = config["bn_decay"], config["bn_eps"]
    return model


_ENCODER = "tiny_res_net/~/"


def _variables(model, backbone, projection, rest=True):
    """haiku's path to our variable, of parameters and of the averages of batch normalisation."""
    found, averages = {}, {}

    def add(path, layer):
        if isinstance(layer, layers.BatchNormalization):
            for theirs, ours in _NORM.items():
                found[f"{path}/{theirs}"] = getattr(layer, ours)
            averages[f"{path}/~/mean_ema"] = layer.moving_mean
            averages[f"{path}/~/var_ema"] = layer.moving_variance
            return
        found[f"{path}/w"] = layer.kernel
        if layer.use_bias:
            found[f"{path}/b"] = layer.bias

    for layer in backbone.layers:
        if layer.weights:
            add(_ENCODER + layer.name.replace("__", "/~/"), layer)
    heads = {"projector": projection} | ({"predictor": model.prediction_head} if rest else {})
    for path, head in heads.items():
        add(f"{path}/linear", head.linears[0])
        add(f"{path}/batch_norm", head.norms[0])
        add(f"{path}/linear_1", head.linears[1])
    if rest:
        add("classifier", model.probe)
    return found, averages


@handler("byol", "training")
def training(case: Case):
    config = case.config
    config.generator_only("seed", "perturb", "track")
    views = [(case.input(f"in/view{i}") - MEAN) / STD for i in (1, 2)]
    labels = case.input("in/labels")
    case.check("batch", len(labels) == config["batch"])
    online = case.inputs("param/online/")
    target = case.inputs("param/target/")
    case.inputs("state/")
    model = _model(case, online)
    ours, averages = _variables(model, model.backbone, model.projection_head)
    teacher, _ = _variables(model, model.teacher_backbone, model.teacher_projection_head, False)
    wrong = set(ours) ^ set(online)
    case.check("every parameter has its place", not wrong, ", ".join(sorted(wrong)))
    fresh = {n: as_numpy(v).reshape(online[n].shape) for n, v in ours.items()}
    check_heads(case, fresh, ["projector/", "predictor/"])

    def load():
        for variables, values in ((ours, online), (teacher, target)):
            for name, variable in variables.items():
                variable.assign(ops.convert_to_tensor(values[name].reshape(variable.shape)))
        for variable in model.non_trainable_variables:
            if "moving_" in variable.path:
                variable.assign(ops.zeros(variable.shape))
        model.teacher_total_steps.assign(config["max_steps"])
        model.teacher_step.assign(config["start_step"])

    load()
    x = tuple(ops.convert_to_tensor(a) for a in (*views, labels))
    _forward(case, model, x)
    load()
    keys = case.keys("grad/")
    variables = [ours[key[len("grad/") :]] for key in keys]
    loss, gradients = variable_gradients(lambda: model.compute_loss(x=x, training=True), variables)
    case.compare("loss", loss)
    for key, gradient in zip(keys, gradients, strict=True):
        compare = compare_zero_gradient if key.endswith("linear/b") else Case.compare
        compare(case, key, gradient.reshape(case.arrays[key].shape))
    load()

    peak = schedules.scale_learning_rate(config["base_lr"], config["sched_batch"])
    schedule = schedules.WarmupCosine(peak, config["max_steps"], warmup_steps=config["warmup"])
    model.compile(_lars(schedule, config["wd"], config))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(config["start_step"])
    for step in range(1, config["steps"] + 1):
        count = config["start_step"] + step - 1
        case.compare(f"step{step}/learning_rate", model.optimizer.learning_rate)
        case.compare(f"step{step}/tau", 1.0 - as_numpy(model.teacher_rate()))
        model.reset_metrics()
        logs = model.train_on_batch((*views, labels), return_dict=True)
        case.compare(f"step{step}/loss", np.float32(logs["loss"]))
        case.check(f"step {step}: counters", int(model.teacher_step) == count + 1)
        for which, variables, start in (("online", ours, online), ("target", teacher, target)):
            prefix = f"step{step}/param/{which}/"
            for key in case.keys(prefix):
                name = key[len(prefix) :]
                if name in variables:
                    value = as_numpy(variables[name]).reshape(case.arrays[key].shape)
                    case.compare(key, value)
                    _compare_move(case, key, value, start[name])
        _compare_averages(case, averages, step)


def _compare_move(case, key, value, start):
    if not key.endswith("linear/b"):
        compare_move(case, key, value, start)
        return
    # Batch normalisation subtracts this bias again: its gradient is rounding, in both codes.
    moves = [np.abs(x - start).max() for x in (value, case.arrays[key])]
    note = f"moved {moves[0]:.1e}, there {moves[1]:.1e}"
    if "online" in key:
        case.check(f"{key}: only rounding", max(moves) < 1e-6 * np.abs(start).max() + 1e-6, note)


def _compare_averages(case, averages, step):
    prefix = f"step{step}/state/online/"
    for key in case.keys(prefix):
        name, what = key[len(prefix) :].rsplit("/", 1)
        passes = 2 * step  # the two views pass one after the other
        value = as_numpy(averages[name]).reshape(case.arrays[f"{prefix}{name}/hidden"].shape)
        if what == "hidden":
            case.compare(key, value)
        elif what == "average":
            case.compare(key, value / (1 - case.config["bn_decay"] ** passes))
        else:
            case.compare(key, np.array(passes))


def _forward(case, model, x):
    @compiled
    def forward(view_1, view_2, labels):
        results = {}
        with keras.StatelessScope():  # what the passes move is forgotten
            for i, view in ((1, view_1), (2, view_2)):
                z = model.project(view, training=True)
                results[f"online/projection_view{i}"] = z
                results[f"online/prediction_view{i}"] = model.prediction_head(z, training=True)
                results[f"online/logits_view{i}"] = model.probe(model.features[-1])
                results[f"target/projection_view{i}"] = model.project_target(view, training=True)
            p1, p2 = (results[f"online/prediction_view{i}"] for i in (1, 2))
            z1, z2 = (results[f"target/projection_view{i}"] for i in (1, 2))
            results["repr_loss"] = model.regression_loss(p1, z2) + model.regression_loss(p2, z1)
            results["classif_loss"] = model.classification_loss(labels)
        return results

    results = {k: as_numpy(v) for k, v in forward(*x).items()}
    for key, value in results.items():
        case.compare(f"out/{key}", value)
