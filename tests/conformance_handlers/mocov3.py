"""MoCo v3: ViT with AdamW and ResNet with LARS, over several steps; schedules and positions."""

import keras
import numpy as np
from gradients import compiled, variable_gradients
from keras import ops

from conformance_handlers.framework import BOUNDS, Case, UnknownOption, as_numpy, handler
from conformance_handlers.initial import check_heads
from conformance_handlers.mae_pretrain import compare_parameter
from conformance_handlers.optimizers import compare_move, compare_zero_gradient
from conformance_handlers.torch_names import TorchNames, pixels, tiny_resnet
from keras_ssl import schedules
from keras_ssl.backbones import ViTBackbone
from keras_ssl.layers import sincos_position_embedding
from keras_ssl.models import MoCoV3


def _backbone(case, parameters, channels):
    config = case.config
    if config["arch"] == "resnet":
        config.generator_only(
            "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "ln_eps"
        )
        config.generator_only("stop_grad_conv1")
        query = {n.split(".", 1)[1]: a for n, a in parameters.items() if n.startswith("base_enc")}
        case.check("width", len(query["bn1.weight"]) == config["width"])
        return tiny_resnet(query, config["img_size"], channels)
    if config["arch"] != "vit":
        raise UnknownOption(f"config.arch = {config['arch']!r}")
    return ViTBackbone(
        image_shape=(config["img_size"], config["img_size"], channels),
        patch_size=config["patch_size"],
        hidden_dim=config["embed_dim"],
        num_layers=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        layer_norm_epsilon=config["ln_eps"],
        position_embedding="sincos_moco_v3",
        freeze_patch_projection=config["stop_grad_conv1"],
        initializer="moco_v3",
    )


@handler("mocov3", "model")
def model(case: Case):
    config = case.config
    config.generator_only("seed", "perturb", "key", "track")
    parameters = case.inputs("param/")
    x = [np.moveaxis(case.input(f"in/x{i}"), 1, -1) for i in (1, 2)]
    case.check("batch", len(x[0]) == config["batch"])
    task = MoCoV3(
        _backbone(case, parameters, x[0].shape[-1]),
        projection_dim=config["dim"],
        projection_hidden_dim=config["mlp_dim"],
        temperature=config["T"],
        momentum=config["moco_m"],
        momentum_schedule="cosine" if config["moco_m_cos"] else "constant",
        augmenter=None,
        preprocessor=None,
    )
    names = TorchNames()
    for prefix, backbone, head in (
        ("base_encoder.", task.backbone, task.projection_head),
        ("momentum_encoder.", task.teacher_backbone, task.teacher_projection_head),
    ):
        if config["arch"] == "vit":
            names.add_vit(prefix, backbone)
            names.add_head(prefix + "head.", head)
        else:
            names.add_resnet(prefix, backbone)
            names.add_head(prefix + "fc.", head)
    names.add_head("predictor.", task.prediction_head)
    heads = ["base_encoder.fc.", "predictor."] if config["arch"] == "resnet" else [""]
    copies = ("momentum_encoder.", "base_encoder.")
    check_heads(case, names.fresh(), heads, copies, tables=["base_encoder.pos_embed"])
    optimizer = _optimizer(case, task)
    task.compile(optimizer)
    start, total = (config[k] / config["epoch_per_step"] for k in ("start_epoch", "epochs"))
    if any(abs(steps - round(steps)) > 1e-6 for steps in (start, total)):
        _fractional_steps(task, start, total)
        start = 0

    def load():
        names.load(case, parameters)
        task.teacher_total_steps.assign(round(total))
        task.teacher_step.assign(round(start))

    load()
    task.update_teacher()  # there, between the queries and the keys of the same step
    _forward(case, task, x)
    keys = case.keys("grad/")
    variables = [names.variables[key[len("grad/") :]] for key in keys]
    missing = {id(v) for v in task.trainable_variables} ^ {id(v) for v in variables}
    case.check("the same parameters are trained", not missing)
    views = tuple(ops.convert_to_tensor(v) for v in x)
    loss, gradients = variable_gradients(
        lambda: task.compute_loss(x=views, training=True), variables
    )
    case.compare("loss", loss)
    for key, gradient in zip(keys, gradients, strict=True):
        # A linear layer and batch normalisation follow: a shift of all features is lost.
        compare = compare_zero_gradient if key.endswith("encoder.norm.bias") else Case.compare
        compare(case, key, names.official(key[len("grad/") :], gradient))

    load()
    optimizer.build(task.trainable_variables)
    for step in range(1, config["steps"] + 1):
        case.compare(f"step{step}/lr", optimizer.learning_rate)
        case.compare(f"step{step}/moco_m", 1.0 - as_numpy(task.teacher_rate()))
        task.reset_metrics()
        logs = task.train_on_batch(tuple(x), return_dict=True)
        case.compare(f"step{step}/loss", np.float32(logs["loss"]))
        prefix = f"step{step}/param/"
        for key in case.keys(prefix):
            _compare_parameter(case, names, key, key[len(prefix) :], step, parameters)


def _fractional_steps(task, start, total):
    """The teacher's schedule where the run does not begin or end with a whole step."""
    decay = schedules.CosineMomentum(1.0, base=0.0)

    def teacher_rate():
        step = ops.cast(task.teacher_step, "float32") + start
        cosine = task.momentum_schedule == "cosine"
        return (1.0 - task.momentum) * (1.0 - decay(step / total) if cosine else ops.ones(()))

    task.teacher_rate = teacher_rate


class Epochs(schedules.Schedule):
    """A schedule of epochs, of which some lie behind it while the optimizer's moments are new."""

    def __init__(self, schedule, start, per_step):
        self.schedule, self.start, self.per_step = schedule, start, per_step

    def __call__(self, step):
        return self.schedule(ops.cast(step, "float32") * self.per_step + self.start)


def _optimizer(case, task):
    """The model's default optimizer with the numbers of the file."""
    config = case.config
    schedule = schedules.WarmupCosine(
        config["lr"], total_steps=config["epochs"], warmup_steps=config["warmup_epochs"]
    )
    schedule = Epochs(schedule, config["start_epoch"], config["epoch_per_step"])
    task.compile()
    default = task.default_optimizer(total_steps=10, batch_size=256, steps_per_epoch=1)
    kind = type(default).__name__
    case.check("optimizer", kind.lower() == config["optimizer"], kind)
    options = {"learning_rate": schedule, "weight_decay": config["weight_decay"]}
    momentum = config["momentum"]
    if kind == "LARS":
        options["momentum"] = momentum
    return type(default).from_config({**default.get_config(), **options})


def _compare_parameter(case, names, key, name, step, parameters):
    adam, rate = case.config["optimizer"] == "adamw", case.config["lr"]
    if "running" in name:
        # Encoder and predictor see one view after the other: two updates a step.
        count = case.config["batch"]
        if ".fc." not in name and ".head." not in name and "predictor" not in name:
            count *= pixels(name, case.config["img_size"])
        # What moves by rounding only (below) shifts the means that the first layer behind it sees.
        shifted = adam and name.endswith("head.1.running_mean")
        floor = 2 * step * rate / BOUNDS["step"] if shifted else None
        because = "moves with a bias of rounding only" if shifted else ""
        case.compare(key, names.unbiased(name, count, 2 * step), because=because, floor=floor)
        return
    ours, theirs = names.official(name), case.arrays[key]
    start, teacher = parameters[name], name.startswith("momentum_encoder.")
    if adam and name.endswith("encoder.norm.bias"):
        # Batch normalisation subtracts it again: Adam makes steps of size lr from its rounding.
        apart, limit = np.abs(ours - theirs).max(), 2.02 * step * rate
        case.compared.add(key)
        case.check(f"{key}: moves by rounding only", apart <= limit, f"{apart:.1e} apart")
        return
    if adam and name.endswith("attn.qkv.bias"):
        if teacher:  # the keys' third follows the student's, of which the same is true
            third = slice(len(ours) // 3, 2 * len(ours) // 3)
            ours = ours.copy()
            ours[third] = theirs[third]
        else:
            compare_parameter(case, key, ours, start, step, rate, case.config["weight_decay"])
            return
    case.compare(key, ours)
    frozen = "patch_embed" in name and case.config["stop_grad_conv1"]
    if not frozen and not teacher:
        compare_move(case, key, ours, start, adam=adam)


def _forward(case, task, x):
    @compiled
    def forward(view_1, view_2):
        with keras.StatelessScope():
            q1, q2 = (task.queries(view, training=True) for view in (view_1, view_2))
            k1, k2 = (task.keys(view, training=True) for view in (view_1, view_2))
            losses = task.contrastive_loss(q1, k2), task.contrastive_loss(q2, k1)
            return q1, q2, k1, k2, *losses

    results = forward(*[ops.convert_to_tensor(v) for v in x])
    keys = ("q1", "q2", "k1", "k2", "loss_q1_k2", "loss_q2_k1")
    for key, value in zip(keys, results, strict=True):
        case.compare(f"out/{key}", value)


@handler("mocov3", "utils")
def utils(case: Case):
    config = case.config
    config.generator_only("seed", "stride", "stem_dim", "perturb")
    epochs, sched = case.input("in/epochs"), config["sched"]
    schedule = schedules.WarmupCosine(
        sched["lr"], sched["epochs"], warmup_steps=sched["warmup_epochs"]
    )
    case.compare("out/lr", schedule(epochs))
    schedule = schedules.CosineMomentum(sched["epochs"], base=sched["moco_m"])
    case.compare("out/moco_m", schedule(epochs))
    for table in config["pos_embed"]:
        image, patch, dim = table["img"], table["patch"], table["dim"]
        grid = image // patch
        ours = sincos_position_embedding(dim, grid, grid, layout="moco_v3")
        ours = np.concatenate([np.zeros((1, dim), "float32"), ours])[None]
        case.compare(f"out/pos_embed_img{image}_p{patch}_d{dim}", ours)
