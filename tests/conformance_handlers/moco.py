"""MoCo v1 and v2: logits, loss, gradients, queue, both encoders and SGD, over several steps."""

import keras
import numpy as np
from gradients import compiled, variable_gradients
from keras import ops
from replica_steps import on_processes

from conformance_handlers.framework import BOUNDS, Case, as_numpy, handler
from conformance_handlers.initial import check_heads
from conformance_handlers.optimizers import compare_move
from conformance_handlers.torch_names import TorchNames, pixels, tiny_resnet
from keras_ssl.models import MoCo
from keras_ssl.optimizers import sgd


def channels_last(images):
    return np.moveaxis(images, 1, -1)


@handler("moco", "single")
def single(case: Case):
    _moco(case, groups=1)


@handler("moco", "two_process")
def two_process(case: Case):
    """Two processes with shuffled batch normalisation are one with two groups and that order.

    Gradients and logits come from one process with two groups. On PyTorch the steps are those of
    real processes.
    """
    _moco(case, groups=case.config["world"])


def _moco(case, groups):
    config = case.config
    config.generator_only("seed", "perturb", "key", "track")
    parameters = case.inputs("param/")
    queue, pointer = parameters.pop("queue"), parameters.pop("queue_ptr")
    images = channels_last(case.input("in/step1/im_q"))
    batch, size = config["batch"] * groups, config["img_size"]
    case.check("sizes are those of the inputs", images.shape[:3] == (batch, size, size))
    case.check("the queue has dim and K", queue.shape == (config["dim"], config["K"]))
    query = {n[len("encoder_q.") :]: a for n, a in parameters.items() if n.startswith("encoder_q.")}
    case.check("width", len(query["bn1.weight"]) == config["width"])
    model = MoCo(
        tiny_resnet(query, size, images.shape[-1]),
        projection_dim=config["dim"],
        version=2 if config["mlp"] else 1,
        queue_size=config["K"],
        temperature=config["T"],
        momentum=config["m"],
        batch_norm_groups=groups,
        augmenter=None,
        preprocessor=None,
    )
    names = TorchNames()
    for prefix, backbone, head in (
        ("encoder_q.", model.backbone, model.projection_head),
        ("encoder_k.", model.teacher_backbone, model.teacher_projection_head),
    ):
        names.add_resnet(prefix, backbone)
        if config["mlp"]:
            names.add_head(prefix + "fc.", head)
        else:
            names.add_layer(prefix + "fc", head.linears[0])
    check_heads(case, names.fresh(), ["encoder_q.fc."], teacher=("encoder_k.", "encoder_q."))
    lengths = np.linalg.norm(as_numpy(model.queue.rows), axis=1)
    case.check("the queue starts with unit vectors", np.abs(lengths - 1).max() < 1e-6)
    names.load(case, parameters)
    model.queue.rows.assign(ops.convert_to_tensor(queue.T.copy()))
    model.queue.pointer.assign(int(pointer[0]))
    model.compile(
        sgd(config["lr"], momentum=config["momentum"], weight_decay=config["weight_decay"])
    )
    _gradients(case, model, names)
    names.load(case, parameters)  # the other backends have updated the running statistics
    model.queue.rows.assign(ops.convert_to_tensor(queue.T.copy()))
    model.queue.pointer.assign(int(pointer[0]))
    steps = range(1, config["steps"] + 1)
    train = lambda step, views: _train(model, views)
    if groups > 1 and keras.backend.backend() == "torch":
        results = on_processes(groups, model, [_views(case, step) for step in steps])
        train = lambda step, views: _follow(model, results[step - 1])
    for step in steps:
        _step(case, model, names, step, parameters, groups, train)


def _views(case, step):
    images = [channels_last(case.input(f"in/step{step}/im_{which}")) for which in "qk"]
    return (*images, case.input(f"in/step{step}/shuffle_perm").astype("int32"))


def _gradients(case, model, names):
    keys = case.keys("grad/")
    variables = [names.variables[key[len("grad/") :]] for key in keys]
    missing = {id(v) for v in model.trainable_variables} - {id(v) for v in variables}
    case.check("every trainable parameter has a gradient there", not missing)
    # The reference moves the key encoder before it is used.
    model.update_teacher()
    views = tuple(ops.convert_to_tensor(v) for v in _views(case, 1))
    loss, gradients = variable_gradients(
        lambda: model.compute_loss(x=views, training=True), variables
    )
    if "loss" in case.arrays:
        _compare_loss(case, "loss", loss)
    for key, gradient in zip(keys, gradients, strict=True):
        case.compare(key, names.official(key[len("grad/") :], gradient))


def _compare_loss(case, key, loss):
    """Where every query finds its key, the loss is what is left of logits that cancel."""
    logits = case.arrays.get("out/logits", np.zeros(1))
    rounding = 2 * np.finfo("float32").eps * np.abs(logits).max()
    because = "so small a loss is a difference of logits, known to their rounding"
    case.compare(key, loss, floor=rounding / BOUNDS["output"], because=because)


def _logits(model, views):
    """Those of the step to come, and nothing of it kept."""
    states = model.non_trainable_variables
    before = [as_numpy(v).copy() for v in states]
    model.update_teacher()

    @compiled
    def logits(query_views, key_views, order):
        with keras.StatelessScope():
            q = model.queries(query_views, training=True)
            k = model.keys(key_views, training=True, order=order)
            return model.contrastive_loss(q, k, model.queue.features(), return_logits=True)[1]

    result = as_numpy(logits(*[ops.convert_to_tensor(v) for v in views]))
    for variable, value in zip(states, before, strict=True):
        variable.assign(ops.convert_to_tensor(value))
    return result


def _train(model, views):
    model.reset_metrics()
    return np.float32(model.train_on_batch(views, return_dict=True)["loss"])


def _follow(model, result):
    """The model as the processes left it."""
    for variable, value in zip(model.variables, result["variables"], strict=True):
        variable.assign(value)
    return np.float32(result["loss"])


def _step(case, model, names, step, parameters, groups, train):
    views = _views(case, step)
    logits = _logits(model, views)
    labels = np.zeros(len(logits), "int64")
    loss = train(step, views)
    if groups == 1:
        for prefix in (f"step{step}/", "out/") if step == 1 else (f"step{step}/",):
            case.compare(f"{prefix}logits", logits)
            case.compare(f"{prefix}labels", labels)
        if step == 1:
            _compare_loss(case, "step1/loss", loss)
        else:
            case.compare(f"step{step}/loss", loss)
    else:
        per_rank = len(logits) // groups
        theirs = []
        for rank in range(groups):
            rows = slice(rank * per_rank, (rank + 1) * per_rank)
            case.compare(f"rank{rank}/step{step}/logits", logits[rows])
            case.compare(f"rank{rank}/step{step}/labels", labels[rows])
            own = logits[rows].astype("float64")
            own = np.log(np.exp(own - own[:, :1]).sum(axis=1)).mean()
            case.compare(f"rank{rank}/step{step}/loss", own)
            theirs.append(case.arrays[f"rank{rank}/step{step}/loss"])
        case.compare_values(f"step{step}/loss", loss, np.mean(theirs))
    case.compare(f"step{step}/queue", ops.convert_to_numpy(model.queue.rows).T)
    case.compare(f"step{step}/queue_ptr", np.array([int(model.queue.pointer)]))
    prefix = f"step{step}/param/"
    for key in case.keys(prefix):
        name = key[len(prefix) :]
        if "running" in name:
            count = len(views[0]) * pixels(name, case.config["img_size"])
            case.compare(key, names.unbiased(name, count, step))
        else:
            case.compare(key, names.official(name))
            if not name.startswith("encoder_k."):
                compare_move(case, key, names.official(name), parameters[name])
