"""A training step of MoCo v2 (ResNet-18) and MoCo v3 (ViT-Tiny) on each backend, beside PyTorch.

The peer is torchvision's ResNet-18 or timm's ViT-Tiny with lightly's heads, loss and momentum
update, in a plain PyTorch loop. Equal for all: sizes, given views (no augmentation), a queue of
65,536 keys, SGD or AdamW, batch statistics over the whole batch. Every line is a process of its
own; the lines take turns for several rounds, and medians are compared.

Command: python benchmarks/joint_step.py [--rounds 3] [--steps 8]
"""

import copy

from steps import in_turns, main, print_steps, timed, timed_fit

MOCO = dict(batch=16, image=112, dim=128, queue=65536, temperature=0.2)
MOCO_V3 = dict(batch=16, image=112, patch=16, dim=256, mlp_dim=4096, temperature=0.2)
VIT_TINY = dict(hidden_dim=192, num_layers=12, num_heads=3)
AIM = 1.0


def views(sizes):
    import numpy as np

    shape = (2, sizes["batch"], sizes["image"], sizes["image"], 3)
    return tuple(np.random.default_rng(0).random(shape, dtype="float32"))


def torch_views(sizes):
    import torch

    return [torch.tensor(v).permute(0, 3, 1, 2).contiguous() for v in views(sizes)]


def teacher_of(student):
    teacher = copy.deepcopy(student)
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    return teacher


def moco_ours(steps):
    import keras_hub

    import keras_ssl

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[2, 2, 2, 2],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(MOCO["image"], MOCO["image"], 3),
    )
    model = keras_ssl.models.MoCo(
        backbone,
        projection_dim=MOCO["dim"],
        queue_size=MOCO["queue"],
        temperature=MOCO["temperature"],
        batch_norm_groups=1,
        augmenter=None,
        preprocessor=None,
    )
    model.compile(keras_ssl.optimizers.sgd(0.03))
    return timed_fit(model, views(MOCO), steps)


def moco_peer(steps):
    import torch
    from views import _import_torchvision

    torchvision = _import_torchvision()
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum

    backbone = torchvision.models.resnet18(weights=None)
    backbone.fc = torch.nn.Identity()
    student = torch.nn.Sequential(backbone, MoCoProjectionHead(512, 512, MOCO["dim"])).train()
    teacher = teacher_of(student)
    criterion = NTXentLoss(MOCO["temperature"], memory_bank_size=(MOCO["queue"], MOCO["dim"]))
    optimizer = torch.optim.SGD(student.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    query_view, key_view = torch_views(MOCO)

    def step():
        update_momentum(student, teacher, m=0.999)
        query = student(query_view)
        with torch.no_grad():
            key = teacher(key_view)
        loss = criterion(query, key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(step, steps)


def moco_v3_ours(steps):
    import keras_ssl

    backbone = keras_ssl.backbones.ViTBackbone(
        image_shape=(MOCO_V3["image"], MOCO_V3["image"], 3),
        patch_size=MOCO_V3["patch"],
        freeze_patch_projection=True,
        initializer="moco_v3",
        position_embedding="sincos_moco_v3",
        **VIT_TINY,
    )
    model = keras_ssl.models.MoCoV3(
        backbone,
        projection_dim=MOCO_V3["dim"],
        projection_hidden_dim=MOCO_V3["mlp_dim"],
        temperature=MOCO_V3["temperature"],
        augmenter=None,
        preprocessor=None,
    )
    model.compile(keras_ssl.optimizers.AdamW(1e-4, weight_decay=0.1))
    return timed_fit(model, views(MOCO_V3), steps)


def moco_v3_peer(steps):
    import torch
    from views import _import_torchvision

    _import_torchvision()  # timm and lightly import it
    import timm
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum
    from torch.nn.functional import cross_entropy, normalize

    backbone = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=MOCO_V3["image"], global_pool="token"
    )
    backbone.patch_embed.requires_grad_(False)
    backbone.pos_embed.requires_grad = False
    dim, mlp_dim = MOCO_V3["dim"], MOCO_V3["mlp_dim"]
    width = VIT_TINY["hidden_dim"]
    student = torch.nn.Sequential(
        backbone, MoCoProjectionHead(width, mlp_dim, dim, num_layers=3, batch_norm=True)
    ).train()
    predictor = MoCoProjectionHead(dim, mlp_dim, dim, num_layers=2, batch_norm=True).train()
    teacher = teacher_of(student)
    trained = [p for p in (*student.parameters(), *predictor.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.1)
    pair, temperature = torch_views(MOCO_V3), MOCO_V3["temperature"]

    def contrast(query, key):
        logits = normalize(query, dim=1) @ normalize(key, dim=1).T / temperature
        return cross_entropy(logits, torch.arange(len(logits))) * 2 * temperature

    def step():
        update_momentum(student, teacher, m=0.99)
        queries = [predictor(student(view)) for view in pair]
        with torch.no_grad():
            keys = [teacher(view) for view in pair]
        loss = contrast(queries[0], keys[1]) + contrast(queries[1], keys[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(step, steps)


LINES = {}
for _method, _peer, _ours in (
    ("MoCo v2, ResNet-18", moco_peer, moco_ours),
    ("MoCo v3, ViT-Tiny", moco_v3_peer, moco_v3_ours),
):
    LINES[f"{_method}: PyTorch, lightly"] = ("torch", _peer, {})
    for _backend in ("torch", "tensorflow", "jax"):
        LINES[f"{_method}: keras_ssl {_backend}"] = (_backend, _ours, {})


def run(quick: bool = False, rounds: int = 3, steps: int = 8) -> list[dict]:
    """Measures all lines in turns; prints the table and returns its rows."""
    rounds, steps = (1, 2) if quick else (rounds, steps)
    rows = in_turns(__file__, LINES, rounds, steps)
    title = (
        f"MoCo v2, ResNet-18, {MOCO['image']} px, batch {MOCO['batch']}; "
        f"MoCo v3, ViT-Tiny, {MOCO_V3['image']} px, batch {MOCO_V3['batch']}"
    )
    print_steps(title, rows, lambda name: name.endswith("lightly"), lambda row: AIM)
    return rows


if __name__ == "__main__":
    main(__doc__, LINES, run)
