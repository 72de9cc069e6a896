"""DINO's training steps in plain PyTorch, in the format of the vectors: other sizes and options.

Written from the paper and the description of the format; nothing of the package is used.
"""

import math
import re

import torch
import torch.nn.functional as F
from reference_vectors import TorchMAE, save

CONFIG = dict(
    img_size=12,
    patch_size=4,
    embed_dim=8,
    depth=1,
    num_heads=2,
    mlp_ratio=2.0,
    ln_eps=1e-6,
    batch=3,
    n_local=2,
    local_size=8,
    out_dim=20,
    head_nlayers=2,
    head_hidden=10,
    head_bottleneck=6,
    use_bn=True,
    norm_last_layer=False,
    warmup_teacher_temp=0.05,
    teacher_temp=0.09,
    warmup_teacher_temp_epochs=2,
    epochs=5,
    student_temp=0.2,
    center_momentum=0.8,
    loss_epochs=[0, 3],
    clip_grad=0.2,
    freeze_last_layer=2,
    optimizer="lars",
    lr=0.3,
    min_lr=0.01,
    warmup_epochs=2,
    start_warmup_value=0.1,
    weight_decay=0.05,
    weight_decay_end=0.2,
    momentum_teacher=0.7,
    steps=3,
)


class TorchDINO(TorchMAE):
    """Encoder and head over a dict of tensors with the official names."""

    def __init__(self, config, generator):
        unused = dict(decoder_embed_dim=4, decoder_depth=0)
        super().__init__({**config, **unused}, 3, generator)
        keep = ("cls_token", "patch_embed", "blocks", "norm")
        encoder = {k: v.detach() for k, v in self.tensors.items() if k.startswith(keep)}
        count, dim = math.prod(self.grid), config["embed_dim"]
        encoder["pos_embed"] = 0.5 * torch.randn(1, 1 + count, dim, generator=generator)
        self.tensors = {f"backbone.{k}": v for k, v in encoder.items()}
        self.buffers = {}
        layers, bottleneck = config["head_nlayers"], config["head_bottleneck"]
        for i in range(layers):
            fan_out = bottleneck if i == layers - 1 else config["head_hidden"]
            name = "head.mlp" if layers == 1 else f"head.mlp.{self.place(i)}"
            weight = torch.randn(fan_out, dim, generator=generator) / math.sqrt(dim)
            self.tensors[f"{name}.weight"] = weight
            self.tensors[f"{name}.bias"] = 0.1 * torch.randn(fan_out, generator=generator)
            if config["use_bn"] and i < layers - 1:
                name = f"head.mlp.{self.place(i) + 1}"
                self.tensors[f"{name}.weight"] = 1 + 0.1 * torch.randn(fan_out, generator=generator)
                self.tensors[f"{name}.bias"] = 0.1 * torch.randn(fan_out, generator=generator)
                self.buffers[f"{name}.running_mean"] = torch.zeros(fan_out)
                self.buffers[f"{name}.running_var"] = torch.ones(fan_out)
            dim = fan_out
        prototypes = config["out_dim"]
        self.tensors["head.last_layer.weight_g"] = torch.ones(prototypes, 1)
        if not config["norm_last_layer"]:
            self.tensors["head.last_layer.weight_g"] += 0.2 * torch.rand(prototypes, 1)
        weight = torch.randn(prototypes, bottleneck, generator=generator)
        self.tensors["head.last_layer.weight_v"] = weight

    def place(self, i):
        return i * (3 if self.c["use_bn"] else 2)

    def copy(self):
        other = object.__new__(TorchDINO)
        other.__dict__.update(self.__dict__)
        other.tensors = {k: v.detach().clone() for k, v in self.tensors.items()}
        other.buffers = {k: v.clone() for k, v in self.buffers.items()}
        return other

    def positions(self, height, width):
        table = self.tensors["backbone.pos_embed"]
        rows, columns = height // self.p, width // self.p
        if (rows, columns) == self.grid:
            return table
        patches = table[:, 1:].reshape(1, *self.grid, -1).permute(0, 3, 1, 2)
        factors = ((rows + 0.1) / self.grid[0], (columns + 0.1) / self.grid[1])
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
        patches = patches.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)
        return torch.cat([table[:, :1], patches], dim=1)

    def encode(self, images):
        weight = self.tensors["backbone.patch_embed.proj.weight"]
        bias = self.tensors["backbone.patch_embed.proj.bias"]
        x = F.conv2d(images, weight, bias, stride=self.p).flatten(2).transpose(1, 2)
        x = torch.cat([self.tensors["backbone.cls_token"].expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions(*images.shape[2:])
        for i in range(self.c["depth"]):
            x = self.block(x, f"backbone.blocks.{i}", self.c["num_heads"])
        return self.norm(x, "backbone.norm")[:, 0]

    def head(self, x):
        layers = self.c["head_nlayers"]
        for i in range(layers):
            name = "head.mlp" if layers == 1 else f"head.mlp.{self.place(i)}"
            x = self.linear(x, name)
            if i == layers - 1:
                break
            if self.c["use_bn"]:
                name = f"head.mlp.{self.place(i) + 1}"
                moving = (self.buffers[f"{name}.running_{s}"] for s in ("mean", "var"))
                gain, offset = (self.tensors[f"{name}.{s}"] for s in ("weight", "bias"))
                x = F.batch_norm(x, *moving, gain, offset, training=True)
            x = F.gelu(x)
        x = F.normalize(x, dim=-1)
        v, g = (self.tensors[f"head.last_layer.weight_{s}"] for s in "vg")
        return x @ (g * v / v.norm(dim=1, keepdim=True)).T

    def forward(self, crops, local):
        features = self.encode(torch.cat(crops[:2]))
        if local:
            features = torch.cat([features, self.encode(torch.cat(crops[2:]))])
        return self.head(features)


def _cosine(base, final, epochs, warmup=0, start=0.0):
    """As a list; the warm-up ends at the peak, which the cosine repeats."""
    ramp = [start + (base - start) * i / max(warmup - 1, 1) for i in range(warmup)]
    rest = epochs - warmup
    return ramp + [
        final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)
    ]


def _loss(student, teacher, center, temperature, config):
    targets = ((teacher - center) / temperature).softmax(-1).chunk(2)
    predictions = (student / config["student_temp"]).log_softmax(-1).chunk(2 + config["n_local"])
    terms = [
        -(p * q).sum(-1).mean()
        for t, p in enumerate(targets)
        for v, q in enumerate(predictions)
        if v != t
    ]
    return sum(terms) / len(terms)


def training(path, config: dict, seed: int = 0):
    """Steps of one iteration an epoch; `config` has the keys of the official files."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    student = TorchDINO(config, generator)
    teacher = student.copy()
    for tensor in teacher.tensors.values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    if config["norm_last_layer"]:
        teacher.tensors["head.last_layer.weight_g"] = torch.ones(config["out_dim"], 1)
    trained = dict(student.tensors)
    if config["norm_last_layer"]:
        del trained["head.last_layer.weight_g"]
    for tensor in trained.values():
        tensor.requires_grad_()
    sizes = [config["img_size"]] * 2 + [config["local_size"]] * config["n_local"]
    crops = []
    for size in sizes:
        colours = 2 * torch.randn(config["batch"], 3, 1, 1, generator=generator)
        noise = torch.randn(config["batch"], 3, size, size, generator=generator)
        crops.append(colours + noise)
    center = 0.1 * torch.randn(1, config["out_dim"], generator=generator)
    arrays = {f"in/crop{i}": crop for i, crop in enumerate(crops)} | {"in/center": center}
    for which, model in (("student", student), ("teacher", teacher)):
        for name, tensor in {**model.tensors, **model.buffers}.items():
            arrays[f"param/{which}.{name}"] = tensor.detach().clone()

    epochs = config["epochs"]
    first, last = config["warmup_teacher_temp"], config["teacher_temp"]
    warm = config["warmup_teacher_temp_epochs"]
    temperatures = [first + (last - first) * i / max(warm - 1, 1) for i in range(warm)]
    temperatures += [last] * (epochs - warm)
    rates = _cosine(
        config["lr"],
        config["min_lr"],
        epochs,
        config["warmup_epochs"],
        config["start_warmup_value"],
    )
    decays = _cosine(config["weight_decay"], config["weight_decay_end"], epochs)
    momenta = _cosine(config["momentum_teacher"], 1.0, epochs)
    for name, values in (
        ("teacher_temp", temperatures),
        ("lr", rates),
        ("wd", decays),
        ("momentum", momenta),
    ):
        arrays[f"out/{name}_schedule"] = torch.tensor(values)

    slots = {}
    for step in range(1, config["steps"] + 1):
        now = step - 1
        with torch.no_grad():
            targets = teacher.forward(crops, local=False)
        output = student.forward(crops, local=config["n_local"] > 0)
        loss = _loss(output, targets, center, temperatures[now], config)
        gradients = dict(zip(trained, torch.autograd.grad(loss, trained.values()), strict=True))
        arrays[f"step{step}/loss"] = loss
        moved = config["center_momentum"] * center
        moved = moved + (1 - config["center_momentum"]) * targets.mean(0, keepdim=True)
        clipped = {
            name: g * min(1.0, config["clip_grad"] / (float(g.norm()) + 1e-6))
            for name, g in gradients.items()
        }
        used = clipped if config["clip_grad"] else gradients  # 0 turns it off
        if step == 1:
            arrays |= {"out/teacher_output": targets, "out/student_output": output, "loss": loss}
            arrays |= {f"grad/{n}": g for n, g in gradients.items()}
            arrays |= {f"grad_clipped/{n}": g for n, g in clipped.items()}
            arrays["out/center_after"] = moved
            for epoch in config["loss_epochs"]:
                other = _loss(output, targets, center, temperatures[epoch], config)
                arrays[f"out/loss_at_epoch{epoch}"] = other
        center = moved
        arrays[f"step{step}/center"] = center
        with torch.no_grad():
            for name, gradient in used.items():
                if "last_layer" in name and now < config["freeze_last_layer"]:
                    continue
                _update(trained[name], gradient, slots, name, rates[now], decays[now], config)
            for name, tensor in teacher.tensors.items():
                tensor.mul_(momenta[now]).add_(student.tensors[name], alpha=1 - momenta[now])
        for which, model in (("student", student), ("teacher", teacher)):
            for name, tensor in {**model.tensors, **model.buffers}.items():
                arrays[f"step{step}/param/{which}.{name}"] = tensor.detach().clone()
    kind = "adamw" if config["optimizer"] == "adamw" else "sgd"
    common = {"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}, "sgd": {"momentum": 0.9}}[kind]
    vectors = [n for n, t in trained.items() if n.endswith(".bias") or t.ndim == 1]
    groups = [
        {"params": [f"module.{n}" for n in trained if n not in vectors], **common},
        {"params": [f"module.{n}" for n in vectors], **common},
    ]
    kept = [n for n in trained if "last_layer" not in n or not config["freeze_last_layer"]]
    save(
        path,
        "dino",
        {"kind": "training", **config},
        arrays,
        optimizer_groups=groups,
        params_with_grad_after_cancel=kept,
        grad_norms_before_clip={n: float(arrays[f"grad/{n}"].norm()) for n in trained},
    )


def _update(tensor, gradient, slots, name, rate, decay, config):
    if tensor.ndim == 1 or re.search(r"\.bias$", name):
        decay = 0.0
    if config["optimizer"] == "adamw":
        m, v, t = slots.get(name, (0.0, 0.0, 0))
        m, v, t = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, t + 1
        slots[name] = (m, v, t)
        tensor.mul_(1 - rate * decay)
        tensor.sub_(rate / (1 - 0.9**t) * m / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        return
    gradient = gradient + decay * tensor
    if config["optimizer"] == "lars" and tensor.ndim > 1:
        norms = tensor.norm(), gradient.norm()
        if min(norms) > 0:
            gradient = gradient * 0.001 * norms[0] / norms[1]
    slots[name] = 0.9 * slots.get(name, 0.0) + gradient
    tensor.sub_(rate * slots[name])
