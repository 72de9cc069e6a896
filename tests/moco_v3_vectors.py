"""MoCo v3 with a tiny ResNet or ViT in plain PyTorch, in the format of the vectors.

Written from the paper and the description of the format; nothing of the package is used.
"""

import math

import torch
import torch.nn.functional as F
from reference_vectors import TorchMAE, save, sincos
from torch import nn

CONFIG = dict(
    **dict(arch="vit", img_size=12, patch_size=4, embed_dim=8, depth=1, num_heads=2, mlp_ratio=2.0),
    **dict(ln_eps=1e-6, stop_grad_conv1=False, dim=8, mlp_dim=12, T=0.5, batch=6, steps=2),
    **dict(optimizer="adamw", lr=1e-3, weight_decay=0.1, momentum=0.9, warmup_epochs=2, epochs=7),
    # A step is no whole part of an epoch's start: neither 0.5 nor 7 is a multiple of 0.4.
    **dict(start_epoch=0.5, epoch_per_step=0.4, moco_m=0.9, moco_m_cos=True, track=[]),
)


class TinyResNet(nn.Module):
    """conv, block, block of stride 2, with torchvision's names."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2 = _Block(width, width, 1), _Block(width, 2 * width, 2)
        self.dim = 2 * width

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return x.mean((2, 3))


class _Block(nn.Module):
    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.downsample = nn.Identity()
        if stride > 1:
            convolution = nn.Conv2d(width, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class ViT(nn.Module):
    """The encoder of `TorchMAE` as a module; positions are those of MoCo v3's layout."""

    def __init__(self, config, generator):
        super().__init__()
        unused = dict(decoder_embed_dim=4, decoder_depth=0)
        self.mae = TorchMAE({**config, **unused}, 3, generator)
        dim = self.dim = config["embed_dim"]
        keep = ("cls_token", "patch_embed", "blocks", "norm")
        for name, tensor in self.mae.tensors.items():
            if name.startswith(keep):
                self._put(name, nn.Parameter(tensor.detach()))
        table = torch.tensor(sincos(dim, *self.mae.grid), dtype=torch.float32)[None]
        table = torch.cat(table.chunk(2, dim=-1)[::-1], dim=-1)  # rows first there
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        if config["stop_grad_conv1"]:
            self.patch_embed.proj.requires_grad_(False)

    def _put(self, name, parameter):
        module, (*path, last) = self, name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, parameter)

    def forward(self, images):
        mae = self.mae
        mae.tensors = dict(self.named_parameters())
        projection = self.patch_embed.proj
        x = F.conv2d(images, projection.weight, projection.bias, stride=mae.p)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for i in range(mae.c["depth"]):
            x = mae.block(x, f"blocks.{i}", mae.c["num_heads"])
        return mae.norm(x, "norm")[:, 0]


def _mlp(layers, dim, hidden, out, last_norm):
    parts = []
    for i in range(layers):
        last = i == layers - 1
        parts.append(nn.Linear(hidden if i else dim, out if last else hidden, bias=False))
        if not last:
            parts += [nn.BatchNorm1d(hidden), nn.ReLU()]
        elif last_norm:
            parts.append(nn.BatchNorm1d(out, affine=False))
    return nn.Sequential(*parts)


def _encoder(config, generator):
    vit = config["arch"] == "vit"
    encoder = ViT(config, generator) if vit else TinyResNet(config["width"])
    head = _mlp(3 if vit else 2, encoder.dim, config["mlp_dim"], config["dim"], True)
    encoder.add_module("head" if vit else "fc", head)
    return encoder, head


def write(path, config: dict, seed: int = 0):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Module()
    model.base_encoder, head = _encoder(config, generator)
    model.momentum_encoder, key_head = _encoder(config, generator)
    vit = config["arch"] == "vit"
    model.predictor = _mlp(2, config["dim"], config["mlp_dim"], config["dim"], vit)
    model.momentum_encoder.load_state_dict(model.base_encoder.state_dict())
    model.momentum_encoder.requires_grad_(False)
    size = config["img_size"]
    x = [torch.randn(config["batch"], 3, size, size, generator=generator) for _ in range(2)]
    x = [view + 2 * torch.randn(len(view), 3, 1, 1, generator=generator) for view in x]
    arrays = {f"param/{n}": v.clone() for n, v in model.state_dict().items()}
    arrays |= {"in/x1": x[0], "in/x2": x[1]}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    slots = {}
    for step in range(1, config["steps"] + 1):
        epoch = config["start_epoch"] + (step - 1) * config["epoch_per_step"]
        rate, momentum = _rate(config, epoch), _momentum(config, epoch)
        queries = [model.predictor(head(model.base_encoder(view))) for view in x]
        with torch.no_grad():
            pairs = zip(
                model.momentum_encoder.parameters(), model.base_encoder.parameters(), strict=True
            )
            for slow, fast in pairs:
                slow.mul_(momentum).add_(fast, alpha=1 - momentum)
            keys = [key_head(model.momentum_encoder(view)) for view in x]
        losses = [_loss(queries[0], keys[1], config["T"]), _loss(queries[1], keys[0], config["T"])]
        loss = sum(losses)
        gradients = dict(zip(trained, torch.autograd.grad(loss, trained.values()), strict=True))
        if step == 1:
            arrays |= {f"grad/{n}": g for n, g in gradients.items()}
            arrays |= {f"out/{k}": v for k, v in zip(("q1", "q2"), queries, strict=True)}
            arrays |= {f"out/{k}": v for k, v in zip(("k1", "k2"), keys, strict=True)}
            arrays |= {"out/loss_q1_k2": losses[0], "out/loss_q2_k1": losses[1], "loss": loss}
        arrays |= {f"step{step}/loss": loss, f"step{step}/lr": torch.tensor(rate)}
        arrays[f"step{step}/moco_m"] = torch.tensor(momentum)
        with torch.no_grad():
            for name, gradient in gradients.items():
                _update(trained[name], gradient, slots, name, rate, config)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                arrays[f"step{step}/param/{name}"] = value.clone()
    save(path, "mocov3", {"kind": "model", **config}, arrays)


def _loss(q, k, temperature):
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(q)))


def _rate(config, epoch):
    warmup = config["warmup_epochs"]
    if epoch < warmup:
        return config["lr"] * epoch / warmup
    part = (epoch - warmup) / (config["epochs"] - warmup)
    return config["lr"] * 0.5 * (1 + math.cos(math.pi * part))


def _momentum(config, epoch):
    if not config["moco_m_cos"]:
        return config["moco_m"]
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / config["epochs"]))
    return 1 - cosine * (1 - config["moco_m"])


def _update(tensor, gradient, slots, name, rate, config):
    decay = config["weight_decay"]
    if config["optimizer"] == "adamw":
        m, v, t = slots.get(name, (0.0, 0.0, 0))
        m, v, t = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, t + 1
        slots[name] = (m, v, t)
        tensor.mul_(1 - rate * decay)
        tensor.sub_(rate / (1 - 0.9**t) * m / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        return
    if tensor.ndim > 1:
        gradient = gradient + decay * tensor
        norms = tensor.norm(), gradient.norm()
        if min(norms) > 0:
            gradient = gradient * 0.001 * norms[0] / norms[1]
    slots[name] = config["momentum"] * slots.get(name, 0.0) + gradient
    tensor.sub_(rate * slots[name])
