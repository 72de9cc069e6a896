"""What a training step costs on many devices: operations, bytes exchanged, bytes of memory, time.

`cost` is a function of method, sizes, batch and devices. `--check` compares it with this machine:
its operations with those that PyTorch counts while a step runs, and its time with the clock, where
one step of MAE gives the speed and the other methods' times are predicted. Without it, the papers'
runs are recomputed.

Command: python benchmarks/cost_model.py [--check]
"""

import argparse
import dataclasses
import os
import statistics
import time

os.environ.setdefault("KERAS_BACKEND", "torch")

from keras_ssl.backbones.text_transformer import TEXT_SIZES
from keras_ssl.backbones.vit import VIT_SIZES


@dataclasses.dataclass(frozen=True)
class Device:
    """Dense bfloat16 operations a second, memory in bytes, bytes a second to other devices."""

    name: str
    speed: float
    memory: float
    link: float


DEVICES = {
    # NVIDIA's data sheet; one 400 Gbit/s port for each GPU, as in a DGX H100.
    "h100": Device("H100 SXM", 989e12, 80e9, 50e9),
    # Google's Cloud TPU v5p page: 459 TFLOP/s, 95 GB, 4800 Gbit/s between chips.
    "v5p": Device("TPU v5p", 459e12, 95e9, 600e9),
    # What the papers had: float16 on tensor cores.
    "v100": Device("V100", 125e12, 32e9, 12.5e9),
    "a100": Device("A100 40 GB", 312e12, 40e9, 25e9),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A transformer: what it costs to run on a sequence, and how large it is."""

    dim: int
    layers: int
    mlp: int
    gated: bool = False

    @classmethod
    def named(cls, name: str) -> "Network":
        size = {**VIT_SIZES, **TEXT_SIZES}[name]
        dim = size["hidden_dim"]
        if size.get("ffn") == "swiglu":  # two thirds of four widths, in whole eights
            return cls(dim, size["num_layers"], (int(dim * 8 / 3) + 7) // 8 * 8, True)
        return cls(dim, size["num_layers"], 4 * dim)

    @property
    def parameters(self) -> int:
        return self.layers * ((3 if self.gated else 2) * self.dim * self.mlp + 4 * self.dim**2)

    def forward(self, tokens: float) -> float:
        """Operations (a product and a sum are two) of one sequence: matrices, and attention."""
        return 2 * tokens * self.parameters + 4 * tokens**2 * self.dim * self.layers

    def activations(self, tokens: float, rematerialize: bool, number_bytes: int) -> float:
        """Bytes kept for the backward pass, with attention that keeps no matrix.

        17 numbers for each of the residual stream and layer (Korthikanti et al. 2022, equation 1
        without its attention term); with rematerialisation a layer's input only, and one layer
        whole, the one that is computed again.
        """
        numbers = self.layers + 17 if rematerialize else 17 * self.layers
        return tokens * self.dim * numbers * number_bytes


def mlp(*widths) -> int:
    """Weights of an MLP."""
    return sum(a * b for a, b in zip(widths, widths[1:], strict=False))


@dataclasses.dataclass
class Cost:
    """Of one step: operations of all devices; bytes that each device sends; bytes that it holds."""

    flops: float
    exchange: dict
    memory: dict

    def seconds(self, device: Device, devices: int, utilization: float) -> tuple[float, float]:
        """Of computing, and of exchanging (which overlaps where the compiler can)."""
        computing = self.flops / (devices * device.speed * utilization)
        return computing, sum(self.exchange.values()) / device.link


# A method's passes: views that are trained on and that a teacher sees, as (side over the image's,
# count); its head's widths after the backbone's; what it compares, see `_exchange`.
CONTRASTIVE = dict(trained=[(1, 2)], teacher=[], head=lambda d: [d, d, 128])
BARLOW = dict(trained=[(1, 2)], teacher=[], head=lambda d: [d, 8192, 8192, 8192])
PREDICT = dict(trained=[(1, 2)], teacher=[(1, 2)], head=lambda d: [d, 4096, 256, 4096, 256])
PROTOTYPES = dict(
    trained=[(1, 2), (3 / 7, 8)], teacher=[(1, 2)], head=lambda d: [d, 2048, 2048, 256, 65536]
)
METHODS = {
    "mae": dict(trained=[(1, 1)], teacher=[], head=lambda d: []),
    "simclr": CONTRASTIVE,
    "barlow_twins": BARLOW,
    "vicreg": BARLOW,
    "simsiam": dict(CONTRASTIVE, head=lambda d: [d, 2048, 2048, 2048, 512, 2048]),
    "moco": dict(trained=[(1, 1)], teacher=[(1, 1)], head=lambda d: [d, d, 128]),
    "moco_v3": PREDICT,
    "byol": PREDICT,
    "dino": PROTOTYPES,
    "dinov2": PROTOTYPES,
    "clip": dict(trained=[(1, 1)], teacher=[], head=lambda d: [d, 768]),
    "siglip": dict(trained=[(1, 1)], teacher=[], head=lambda d: [d, 768]),
}


def cost(
    method: str,
    size: str | Network = "vit_base",
    batch: int = 4096,
    devices: int = 64,
    image: int = 224,
    patch: int = 16,
    text: str | Network = "clip_large",
    text_tokens: int = 77,
    decoder: Network = Network(512, 8, 2048),
    mask_ratio: float = 0.75,
    head: list | None = None,
    drop_path: float = 0.0,
    rematerialize: bool = False,
    gradient_bytes: int = 4,
    number_bytes: int = 2,
) -> Cost:
    """The cost of one step of a method on `devices` that share a batch.

    Args:
        method: a key of `METHODS`.
        size: of the vision transformer, by name or as a `Network`.
        batch: pictures (pairs) of all devices together.
        devices: how many share it.
        image, patch: sides in pixels.
        text, text_tokens: of the text side of CLIP and SigLIP.
        decoder, mask_ratio: of MAE.
        head: widths of the head in place of the paper's, the backbone's width first.
        drop_path: share of the samples that a block is not computed for (DINOv2's students).
        rematerialize: keep a layer's input only.
        gradient_bytes: of a number when gradients are exchanged.
        number_bytes: of a number that is kept for the backward pass.

    Raises:
        ValueError: an unknown method, a count below 1, or a share outside [0, 1).
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}. Received: method={method!r}")
    counts = dict(batch=batch, devices=devices, image=image, patch=patch, text_tokens=text_tokens)
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more. Received: {name}={value}")
    for name, value in dict(mask_ratio=mask_ratio, drop_path=drop_path).items():
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` must lie in [0, 1). Received: {name}={value}")
    network = size if isinstance(size, Network) else Network.named(size)
    plan, dim, own = METHODS[method], network.dim, batch / devices
    widths = plan["head"](dim) if head is None else head
    patches = lambda share: round(image * share / patch) ** 2
    embed = 2 * 3 * patch**2 * dim  # of a patch
    flops = held = 0.0
    for passes, factor in ((plan["trained"], 3), (plan["teacher"], 1)):
        for share, count in passes:
            seen = patches(share) * ((1 - mask_ratio) if method == "mae" else 1)
            kept = 1 - drop_path if factor == 3 else 1
            flops += factor * count * (kept * network.forward(seen + 1) + embed * seen)
            flops -= (factor == 3) * count * embed * seen  # no gradient by the pixels
            flops += factor * count * 2 * mlp(*widths)
            if factor == 3:
                held += kept * count * network.activations(seen + 1, rematerialize, number_bytes)
                held += count * 4 * sum(widths[1:])
    parameters = network.parameters + embed // 2 + mlp(*widths)
    if method == "mae":
        count = patches(1)
        ends = 2 * (count * (1 - mask_ratio) + 1) * dim * decoder.dim
        ends += 2 * (count + 1) * decoder.dim * 3 * patch**2
        flops += 3 * (decoder.forward(count + 1) + ends)
        held += decoder.activations(count + 1, rematerialize, number_bytes)
        parameters += decoder.parameters + decoder.dim * (dim + 3 * patch**2)
    if method in ("clip", "siglip"):
        text = text if isinstance(text, Network) else Network.named(text)
        flops += 3 * (text.forward(text_tokens) + 2 * text.dim * widths[-1])
        held += text.activations(text_tokens, rematerialize, number_bytes)
        parameters += text.parameters + 49408 * text.dim + text.dim * widths[-1]
    if method == "dinov2":  # the same head on the masked patches: half the pictures, 30 % of each
        masked = 2 * 0.5 * 0.3 * patches(1)
        flops += masked * 2 * mlp(*widths) * (3 + 1)
        held += masked * 4 * sum(widths[1:])
    rows, compared, loss = _compared(method, batch, own, widths)
    ring = (devices - 1) / devices
    exchange = {"gradients": 2 * ring * parameters * gradient_bytes}
    exchange.update({name: ring * size for name, size in compared.items()})
    slots = 1 if method in ("simclr", "moco", "simsiam", "byol", "barlow_twins", "vicreg") else 2
    memory = {
        "weights, optimizer": 4 * parameters * (1 + slots),
        "gradients": 4 * parameters,
        "teacher": 4 * parameters if plan["teacher"] else 0,
        "activations": own * held,
        "loss": loss,
    }
    return Cost(batch * flops + devices * rows, exchange, memory)


def _compared(method, batch, own, widths):
    """Operations a device spends on comparing, bytes exchanged for it, bytes the matrices take.

    As TensorFlow and PyTorch run it. Gathered features send their gradients back: twice their size.
    """
    dim = widths[-1] if widths else 0
    stored = 3 * 4  # logits, probabilities, gradient
    if method == "simclr":
        features = 4 * 2 * batch * dim
        return (
            3 * 2 * (2 * batch) ** 2 * dim,
            {"embeddings": 2 * features},
            stored * 512 * 2 * batch,
        )
    if method in ("clip", "siglip"):
        features, sides = 4 * batch * dim, 2 if method == "clip" else 1
        rows = min(own, 512) if method == "siglip" else own
        work = 3 * 2 * sides * own * batch * dim
        return work, {"embeddings": 2 * sides * features}, sides * stored * rows * batch
    if method == "moco_v3":
        work, features = 3 * 2 * 2 * batch**2 * dim, 4 * 2 * batch * dim
        return work, {"queries": 2 * features, "keys": features}, 2 * stored * batch**2
    if method == "moco":
        work = 3 * 2 * own * 65536 * dim
        return work, {"keys": 4 * batch * dim}, stored * own * 65536
    if method in ("barlow_twins", "vicreg"):
        matrices = 1 if method == "barlow_twins" else 2
        work = 3 * 2 * matrices * own * dim**2
        return work, {"correlations": 2 * 2 * matrices * 4 * dim**2}, 3 * matrices * 4 * dim**2
    if method == "dino":
        return 0, {"centre": 2 * 4 * dim}, stored * own * 10 * dim
    if method == "dinov2":
        features = 4 * 2 * batch * widths[0]
        exchange = {"sinkhorn": 2 * 2 * 4 * 4 * dim, "koleo": 2 * features}
        return 3 * 2 * 2 * batch**2 * widths[0], exchange, stored * own * 10 * dim
    return 0, {}, 0


# === The papers' runs ===

# What ran, for how many pictures, and what the paper or its code says of the time.
RUNS = {
    "MAE ViT-L, 800 epochs of ImageNet": dict(
        method="mae", size="vit_large", batch=4096, pictures=800 * 1_281_167
    ),
    "CLIP ViT-L/14, 32 epochs of 400 M pairs": dict(
        method="clip", size="vit_large", patch=14, batch=32768, pictures=32 * 400e6
    ),
    "DINOv2 ViT-g/14, 625,000 steps of 3072": dict(
        method="dinov2",
        size="vit_giant2",
        patch=14,
        batch=3072,
        drop_path=0.4,
        pictures=625_000 * 3072,
    ),
}
PUBLISHED = {
    "MAE ViT-L, 800 epochs of ImageNet": ("v100", 64 * 42),
    "CLIP ViT-L/14, 32 epochs of 400 M pairs": ("v100", 256 * 12 * 24),
    "DINOv2 ViT-g/14, 625,000 steps of 3072": ("a100", 22_016),
}
UTILIZATION = 0.4  # of the peak: an assumption, not measured on these devices


def papers():
    for name, run in RUNS.items():
        pictures, options = run["pictures"], {k: v for k, v in run.items() if k != "pictures"}
        one = cost(devices=64, **options)
        total = one.flops / run["batch"] * pictures
        key, hours = PUBLISHED[name]
        share = total / (hours * 3600 * DEVICES[key].speed)
        print(f"\n{name}: {total:.2e} operations, {one.flops / run['batch'] / 1e9:.0f} G a picture")
        print(f"  published: {hours} hours of {DEVICES[key].name}, {share:.0%} of their peak")
        for key in ("h100", "v5p"):
            for devices in (64, 256):
                device, step = DEVICES[key], cost(devices=devices, **options)
                computing, exchanging = step.seconds(device, devices, UTILIZATION)
                hours = computing * pictures / run["batch"] / 3600
                sent = {k: f"{v / 1e6:.1f} MB" for k, v in step.exchange.items()}
                held = {k: f"{v / 1e9:.1f} GB" for k, v in step.memory.items()}
                print(f"  {devices} {device.name}: {hours:.1f} hours at {UTILIZATION:.0%} of peak")
                print(f"    a step: {computing:.3f} s, exchange {exchanging:.3f} s: {sent}")
                print(f"    memory: {held}")


def table(size="vit_base", batch=4096, devices=64):
    print(f"{size}, batch {batch} on {devices} devices; MB that a device sends in a step")
    for method in METHODS:
        step = cost(method, size, batch, devices)
        sent = {k: round(v / 1e6, 2) for k, v in step.exchange.items()}
        held = sum(step.memory.values()) / 1e9
        print(f"  {method:13} {step.flops / batch / 1e9:7.0f} G a picture, {held:5.1f} GB, {sent}")


# === This machine ===


def counted_and_timed(method: str, size: Network, batch: int, image: int, steps: int):
    """Operations that PyTorch counts in a real step, and the median time of some."""
    import keras
    import numpy as np
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    import keras_ssl

    keras.utils.set_random_seed(0)
    options = dict(hidden_dim=size.dim, num_layers=size.layers, num_heads=4)
    backbone = keras_ssl.backbones.ViTBackbone(
        image_shape=(image, image, 3), patch_size=16, use_mask_token=method == "dinov2", **options
    )
    rng, views = np.random.default_rng(0), METHODS[method]["trained"]
    sides = [round(image * share / 16) * 16 for share, count in views for _ in range(count)]
    x = tuple(rng.random((batch, side, side, 3), dtype="float32") for side in sides)
    kwargs, widths = dict(augmenter=None, preprocessor=None), HEADS[method]
    if method == "mae":
        kwargs.update(decoder_hidden_dim=64, decoder_num_layers=2, decoder_num_heads=4)
    elif method == "simclr":
        kwargs.update(projection_dim=widths[-1], projection_hidden_dim=widths[0])
    elif method == "byol":
        kwargs.update(projection_dim=widths[1], projection_hidden_dim=widths[0])
    else:
        kwargs.update(hidden_dim=widths[0], bottleneck_dim=widths[2], output_dim=widths[3])
    classes = dict(mae="MAE", simclr="SimCLR", byol="BYOL", dino="DINO")
    model = getattr(keras_ssl.models, classes[method])(backbone, **kwargs)
    model.compile(keras.optimizers.SGD(0.0))
    x = x[0] if len(x) == 1 else x
    batch_of = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    model._batch_size = batch
    step = lambda: model.train_step((batch_of,))
    # The counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return counter.get_total_flops(), statistics.median(seconds)


HEADS = {
    "mae": [],
    "simclr": [192, 64],
    "byol": [256, 64, 256, 64],
    "dino": [256, 256, 64, 1024],
}


def check(steps: int = 5):
    """Predicted over counted operations, and predicted over measured time."""
    speed = None
    print("method, layers, batch: operations predicted/counted, time predicted/measured")
    for method, layers, batch in (
        ("mae", 12, 16),
        ("mae", 6, 32),
        ("simclr", 6, 8),
        ("byol", 6, 8),
        ("dino", 4, 4),
    ):
        size = Network(192, layers, 768)
        head = [192, *HEADS[method]] if HEADS[method] else []
        step = cost(method, size, batch, 1, decoder=Network(64, 2, 256), head=head)
        flops, seconds = counted_and_timed(method, size, batch, 224, steps)
        speed = speed or step.flops / seconds
        print(
            f"  {method:7} {layers:2} {batch:2}: {step.flops:.3e} / {flops:.3e} = "
            f"{step.flops / flops:.3f}, {step.flops / speed:.3f} s / {seconds:.3f} s = "
            f"{step.flops / speed / seconds:.2f}"
        )


def check_memory(backends=("torch", "tensorflow", "jax")):
    """Predicted over measured memory of a step of SimCLR, beside weights and optimizer."""
    from memory import BATCH, measured

    print("a step's memory in MB: predicted / measured in a process of its own")
    for way, options in (
        ("as it is", dict(number_bytes=4)),
        ("mixed_bfloat16", dict(number_bytes=2)),
        ("rematerialised blocks", dict(number_bytes=4, rematerialize=True)),
    ):
        sizes = dict(batch=BATCH, devices=1, image=64, patch=8, head=[192, 192, 64], **options)
        step = cost("simclr", Network(192, 8, 768), **sizes).memory
        predicted = (step["gradients"] + step["activations"] + step["loss"]) / 2**20
        for backend in backends:
            found = measured(backend, way)["megabytes"]
            print(
                f"  {way:22} {backend:10} {predicted:4.0f} / {found:4.0f} = {predicted / found:.2f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="against this machine")
    if parser.parse_args().check:
        check()
        check_memory()
    else:
        table()
        papers()
