"""Reference files of sizes and options of our own choice, in the format of the vectors.

The references here are independent of the package: plain PyTorch functions written from the
papers, and NumPy in float64. They let the conformance runner be tried on
files that it has never seen.
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F


def save(path, method: str, config: dict, arrays: dict, **meta):
    arrays = {k: np.asarray(v.detach() if torch.is_tensor(v) else v) for k, v in arrays.items()}
    arrays = {k: v.astype("float32") if v.dtype == "float64" else v for k, v in arrays.items()}
    meta = {"method": method, "case": path.stem, "config": config, **meta}
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)


# === MAE =====================================================================================


def sincos(dim: int, height: int, width: int, class_row: bool = True) -> np.ndarray:
    """Position by position, in float64: column first, then row, [sin, cos] each."""
    quarter = dim // 4
    table = np.zeros((height * width, dim))
    for row in range(height):
        for column in range(width):
            for i in range(quarter):
                frequency = 1.0 / 10000 ** (i / quarter)
                table[row * width + column, i] = math.sin(column * frequency)
                table[row * width + column, quarter + i] = math.cos(column * frequency)
                table[row * width + column, 2 * quarter + i] = math.sin(row * frequency)
                table[row * width + column, 3 * quarter + i] = math.cos(row * frequency)
    return np.concatenate([np.zeros((int(class_row), dim)), table])


class TorchMAE:
    """A masked autoencoder over a dict of tensors that are named as the official ones."""

    def __init__(self, config, channels, generator):
        self.c = config
        size = config["img_size"]
        height, width = size if isinstance(size, list) else (size, size)
        p, dim, decoder_dim = config["patch_size"], config["embed_dim"], config["decoder_embed_dim"]
        self.grid = (height // p, width // p)
        self.p, self.channels = p, channels
        self.tensors = {}

        def new(name, *shape, mean=0.0, std=0.1):
            tensor = mean + std * torch.randn(*shape, generator=generator)
            self.tensors[name] = tensor.requires_grad_()

        def linear(name, fan_out, fan_in):
            new(f"{name}.weight", fan_out, fan_in, std=1 / math.sqrt(fan_in))
            new(f"{name}.bias", fan_out)

        def norm(name, width):
            new(f"{name}.weight", width, mean=1.0)
            new(f"{name}.bias", width)

        def block(name, width):
            hidden = int(width * config["mlp_ratio"])
            norm(f"{name}.norm1", width)
            linear(f"{name}.attn.qkv", 3 * width, width)
            linear(f"{name}.attn.proj", width, width)
            norm(f"{name}.norm2", width)
            linear(f"{name}.mlp.fc1", hidden, width)
            linear(f"{name}.mlp.fc2", width, hidden)

        new("cls_token", 1, 1, dim)
        new("mask_token", 1, 1, decoder_dim)
        new("patch_embed.proj.weight", dim, channels, p, p)
        new("patch_embed.proj.bias", dim)
        for i in range(config["depth"]):
            block(f"blocks.{i}", dim)
        norm("norm", dim)
        linear("decoder_embed", decoder_dim, dim)
        for i in range(config["decoder_depth"]):
            block(f"decoder_blocks.{i}", decoder_dim)
        norm("decoder_norm", decoder_dim)
        linear("decoder_pred", p * p * channels, decoder_dim)
        self.fixed = {
            "pos_embed": torch.tensor(sincos(dim, *self.grid)[None], dtype=torch.float32),
            "decoder_pos_embed": torch.tensor(
                sincos(decoder_dim, *self.grid)[None], dtype=torch.float32
            ),
        }

    def linear(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, x, name):
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.c["ln_eps"])
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def block(self, x, name, heads):
        batch, count, width = x.shape
        h = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = h.reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(width // heads)).softmax(-1)
        h = (weights @ v).transpose(1, 2).reshape(batch, count, width)
        x = x + self.linear(h, f"{name}.attn.proj")
        h = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        return x + self.linear(h, f"{name}.mlp.fc2")

    def patchify(self, images):
        batch, p, (rows, columns) = len(images), self.p, self.grid
        x = images.reshape(batch, self.channels, rows, p, columns, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)

    def unpatchify(self, patches):
        batch, p, (rows, columns) = len(patches), self.p, self.grid
        x = patches.reshape(batch, rows, columns, p, p, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, self.channels, rows * p, columns * p)

    def forward(self, images, noise):
        batch, count = noise.shape
        kept = int(count * (1 - self.c["mask_ratio"]))
        order = torch.argsort(noise, dim=1)
        restore = torch.argsort(order, dim=1)
        weight = self.tensors["patch_embed.proj.weight"]
        bias = self.tensors["patch_embed.proj.bias"]
        x = F.conv2d(images, weight, bias, stride=self.p).flatten(2).transpose(1, 2)
        x = x + self.fixed["pos_embed"][:, 1:]
        x = torch.stack([x[b, order[b, :kept]] for b in range(batch)])
        x = torch.cat([self.tensors["cls_token"].expand(batch, -1, -1), x], dim=1)
        for i in range(self.c["depth"]):
            x = self.block(x, f"blocks.{i}", self.c["num_heads"])
        latent = self.norm(x, "norm")
        y = self.linear(latent, "decoder_embed")
        full = self.tensors["mask_token"].repeat(batch, count, 1)
        rows = []
        for b in range(batch):
            places = torch.zeros(count, 1, dtype=torch.bool)
            places[order[b, :kept]] = True
            row = torch.zeros_like(full[b]).index_copy(0, order[b, :kept], y[b, 1:])
            rows.append(torch.where(places, row, full[b]))
        y = torch.cat([y[:, :1], torch.stack(rows)], dim=1) + self.fixed["decoder_pos_embed"]
        for i in range(self.c["decoder_depth"]):
            y = self.block(y, f"decoder_blocks.{i}", self.c["decoder_num_heads"])
        prediction = self.linear(self.norm(y, "decoder_norm"), "decoder_pred")[:, 1:]
        mask = torch.ones(batch, count)
        for b in range(batch):
            mask[b, order[b, :kept]] = 0
        target = self.patchify(images)
        if self.c["norm_pix_loss"]:
            variance = target.var(-1, keepdim=True)  # unbiased
            target = (target - target.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()
        loss = (((prediction - target) ** 2).mean(-1) * mask).sum() / mask.sum()
        return latent, mask, restore, prediction, loss


def mae_pretrain(path, config: dict, channels: int = 3, seed: int = 0, all_steps: bool = True):
    """`config` has the keys of the official file's config."""
    generator = torch.Generator().manual_seed(seed)
    model = TorchMAE(config, channels, generator)
    rows, columns = model.grid
    batch, steps, p = config["batch"], config["steps"], config["patch_size"]
    images = torch.randn(batch, channels, rows * p, columns * p, generator=generator)
    images = images + 2 * torch.randn(batch, channels, 1, 1, generator=generator)
    noise = torch.rand(steps, batch, rows * columns, generator=generator)
    arrays = {"in/imgs": images, "in/noise": noise}
    everything = {**model.tensors, **model.fixed}
    arrays |= {f"param/{name}": tensor.detach().clone() for name, tensor in everything.items()}
    latent, mask, restore, prediction, loss = model.forward(images, noise[0])
    arrays |= {"out/latent": latent, "out/mask": mask, "out/ids_restore": restore}
    arrays |= {"out/pred": prediction, "out/patchify": model.patchify(images)}
    arrays |= {"out/unpatchify_pred": model.unpatchify(prediction), "loss": loss}
    gradients = torch.autograd.grad(loss, list(model.tensors.values()))
    arrays |= {f"grad/{n}": g for n, g in zip(model.tensors, gradients, strict=True)}
    plain = [n for n, t in model.tensors.items() if t.ndim <= 1]
    decayed = [n for n in model.tensors if n not in plain]
    common = dict(lr=config["lr"], betas=config["betas"], eps=1e-8)
    groups = [
        {"params": plain, "weight_decay": 0.0, **common},
        {"params": decayed, "weight_decay": config["weight_decay"], **common},
    ]
    optimizer = torch.optim.AdamW(
        [{**group, "params": [model.tensors[n] for n in group["params"]]} for group in groups]
    )
    for step in range(1, steps + 1):
        loss = model.forward(images, noise[step - 1])[-1]
        arrays[f"step{step}/loss"] = loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, tensor in model.tensors.items():
            if all_steps:
                arrays[f"step{step}/param/{name}"] = tensor.detach().clone()
    save(path, "mae", {"kind": "pretrain", **config}, arrays, optimizer_groups=groups)


class TorchViT(TorchMAE):
    """The encoder with learned positions and a classifier on top."""

    def __init__(self, config, channels, generator):
        unused = dict(decoder_embed_dim=4, decoder_depth=0)
        super().__init__({**config, **unused}, channels, generator)
        keep = ("cls_token", "patch_embed", "blocks")
        if not config["global_pool"]:
            keep += ("norm",)
        self.tensors = {k: v for k, v in self.tensors.items() if k.startswith(keep)}
        dim, classes, count = config["embed_dim"], config["num_classes"], math.prod(self.grid)

        def new(name, *shape, mean=0.0):
            self.tensors[name] = mean + 0.3 * torch.randn(*shape, generator=generator)

        new("pos_embed", 1, 1 + count, dim)
        new("head.weight", classes, dim)
        new("head.bias", classes)
        if config["global_pool"]:
            new("fc_norm.weight", dim, mean=1.0)
            new("fc_norm.bias", dim)

    def features(self, images):
        weight = self.tensors["patch_embed.proj.weight"]
        bias = self.tensors["patch_embed.proj.bias"]
        x = F.conv2d(images, weight, bias, stride=self.p).flatten(2).transpose(1, 2)
        x = torch.cat([self.tensors["cls_token"].expand(len(x), -1, -1), x], dim=1)
        x = x + self.tensors["pos_embed"]
        for i in range(self.c["depth"]):
            x = self.block(x, f"blocks.{i}", self.c["num_heads"])
        if self.c["global_pool"]:
            return self.norm(x[:, 1:].mean(1), "fc_norm")
        return self.norm(x, "norm")[:, 0]


def mae_vit(path, config: dict, seed: int = 0):
    """The fine-tuning model, with positions resized by PyTorch's bicubic interpolation."""
    generator = torch.Generator().manual_seed(seed)
    model = TorchViT(config, 3, generator)
    p, grid = config["patch_size"], model.grid
    images = torch.randn(config["batch"], 3, grid[0] * p, grid[1] * p, generator=generator)
    arrays = {f"param/{n}": t for n, t in model.tensors.items()}
    with torch.no_grad():
        features = model.features(images)
        logits = model.linear(features, "head")
    arrays |= {"in/imgs": images, "out/features": features, "out/logits": logits}
    positions = model.tensors["pos_embed"]
    for new in config["interp_img_sizes"]:
        height, width = new if isinstance(new, list) else (new, new)
        patches = positions[:, 1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, size=(height // p, width // p), mode="bicubic")
        patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
        arrays[f"out/interp_pos_embed_{new}"] = torch.cat([positions[:, :1], patches], dim=1)
    groups = _layer_decay_groups(model.tensors, config)
    save(path, "mae", {"kind": "vit", **config}, arrays, param_groups_lrd=groups)


def _layer_decay_groups(tensors, config):
    depth, groups = config["depth"], {}
    for name, tensor in tensors.items():
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = depth + 1
        plain = tensor.ndim == 1 or name in ("cls_token", "pos_embed")
        scale = config["layer_decay"] ** (depth + 1 - layer)
        decay = 0.0 if plain else config["weight_decay"]
        groups.setdefault((scale, decay), []).append(name)
    return [{"lr_scale": s, "weight_decay": d, "params": n} for (s, d), n in groups.items()]


def mae_utils(path, config: dict, seed: int = 0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for dim, grid in config["sincos"]:
        for class_row in (0, 1):
            name = f"out/sincos_d{dim}_g{grid}_cls{class_row}"
            arrays[name] = sincos(dim, grid, grid, bool(class_row))
    o = config["lr_sched"]
    epochs = np.arange(0, o["epochs"], config["lr_stride"])
    values = []
    for epoch in epochs:
        if epoch < o["warmup_epochs"]:
            values.append(o["lr"] * epoch / o["warmup_epochs"])
        else:
            part = (epoch - o["warmup_epochs"]) / (o["epochs"] - o["warmup_epochs"])
            cosine = 0.5 * (1 + math.cos(math.pi * part))
            values.append(o["min_lr"] + (o["lr"] - o["min_lr"]) * cosine)
    arrays |= {"in/lr_epochs": epochs, "out/lr": np.array(values)}
    o, weights, slots = config["lars"], {}, {}
    for name, shape in config["lars_shapes"].items():
        weights[name] = rng.normal(size=shape).astype("float32") * (name != "zero")
        slots[name] = np.zeros(shape)
        arrays[f"param/{name}"] = weights[name]
    for step in range(1, config["steps"] + 1):
        for name, w in weights.items():
            gradient = rng.normal(size=w.shape).astype("float32")
            arrays[f"in/step{step}/grad/{name}"] = gradient
            d = gradient.astype("float64")
            if w.ndim > 1:
                d = d + o["weight_decay"] * w
                w_norm, d_norm = np.linalg.norm(w), np.linalg.norm(d)
                if w_norm > 0 and d_norm > 0:
                    d = d * o["trust_coefficient"] * w_norm / d_norm
            slots[name] = o["momentum"] * slots[name] + d
            weights[name] = w - o["lr"] * slots[name]
            arrays[f"step{step}/param/{name}"] = weights[name]
    save(path, "mae", {"kind": "utils", **config}, arrays)


# === SimCLR ==================================================================================


def simclr_ntxent(path, runs: list[dict], seed: int = 0):
    """In float64, pair by pair: the log-probability of each view's partner among all others."""
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    for i, run in enumerate(runs):
        n = run["batch"]
        half = torch.randn(n, run["dim"], generator=generator)
        other = half + run["noise"] * torch.randn(n, run["dim"], generator=generator)
        hidden = torch.cat([half, other]).double().requires_grad_()
        z = hidden / hidden.norm(dim=1, keepdim=True) if run["hidden_norm"] else hidden
        similarity = z @ z.T / run["temperature"]
        total = 0.0
        for row in range(2 * n):
            partner = (row + n) % (2 * n)
            others = [k for k in range(2 * n) if k != row]
            total = total + torch.logsumexp(similarity[row, others], 0) - similarity[row, partner]
        loss = total / n
        (gradient,) = torch.autograd.grad(loss, [hidden])
        arrays |= {f"in/{i}/hidden": hidden, f"grad/{i}/hidden": gradient, f"out/{i}/loss": loss}
        arrays[f"out/{i}/logits_ab"] = similarity[:n, n:]
        arrays[f"out/{i}/labels"] = np.eye(n, 2 * n, dtype="float32")
    save(path, "simclr", {"kind": "ntxent", "seed": seed, "runs": runs}, arrays)


def _trust(weight, update, eeta):
    weight_norm, update_norm = np.linalg.norm(weight), np.linalg.norm(update)
    return eeta * weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0


def simclr_lars(path, config: dict, seed: int = 0):
    """LARS of google-research/simclr, with its defaults, in float64."""
    import re

    rng = np.random.default_rng(seed)
    start, gradients, arrays = {}, {}, {}
    for name, shape in config["shapes"].items():
        start[name] = rng.normal(size=shape).astype("float32") * (name != config["zero"])
        arrays[f"param/{name}"] = start[name]
        for step in range(1, config["steps"] + 1):
            gradient = rng.normal(size=shape).astype("float32")
            if name == config["zero_grad"] and step == 2:
                gradient[:] = 0
            gradients[step, name] = gradient
            arrays[f"in/step{step}/grad/{name}"] = gradient

    def matches(patterns, name):
        return any(re.search(pattern, name) for pattern in patterns or ())

    for variant, o in config["variants"].items():
        momentum, eeta = o.get("momentum", 0.9), o.get("eeta", 0.001)
        decay_list = o.get("exclude_from_weight_decay")
        adaptation_list = o.get("exclude_from_layer_adaptation") or decay_list
        for name, w in start.items():
            w, v = w.astype("float64"), np.zeros(w.shape)

            adapted = not matches(adaptation_list, name)
            for step in range(1, config["steps"] + 1):
                g = gradients[step, name].astype("float64")
                if not matches(decay_list, name):
                    g = g + o.get("weight_decay", 0.0) * w
                if o.get("classic_momentum", True):
                    added = o["learning_rate"] * (_trust(w, g, eeta) if adapted else 1.0) * g
                    v = momentum * v + added
                    w = w - (momentum * v + added if o.get("use_nesterov") else v)
                else:
                    v = momentum * v + g
                    update = momentum * v + g if o.get("use_nesterov") else v
                    trust = _trust(w, update, eeta) if adapted else 1.0
                    w = w - o["learning_rate"] * trust * update
                arrays[f"{variant}/step{step}/param/{name}"] = w
            arrays[f"{variant}/momentum/{name}"] = v
    save(path, "simclr", {"kind": "lars", **config}, arrays)
