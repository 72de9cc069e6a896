"""A multi-crop training step of DINO (ViT-Tiny) on each backend, beside PyTorch.

The peer is timm's ViT-Tiny with lightly's head, loss and momentum update, in a plain PyTorch loop
written like the paper's: crops of one size in one forward, the teacher on the global ones, every
gradient clipped, AdamW in two groups. Equal for all: sizes, given crops (no augmentation). Every
line is a process of its own; the lines take turns for several rounds, and medians are compared.

Command: python benchmarks/dino_step.py [--rounds 3] [--steps 8]
"""

from joint_step import VIT_TINY
from steps import in_turns, main, print_steps, timed, timed_fit

SIZES = dict(batch=8, image=112, local=48, patch=16, num_local=6)
HEAD = dict(output_dim=8192, hidden_dim=1024, bottleneck_dim=256)
AIM = 1.0


def crops():
    """Two global crops and the local ones, channels last."""
    import numpy as np

    rng = np.random.default_rng(0)
    sides = [SIZES["image"]] * 2 + [SIZES["local"]] * SIZES["num_local"]
    return tuple(rng.random((SIZES["batch"], s, s, 3), dtype="float32") for s in sides)


def ours(steps):
    import keras_ssl

    backbone = keras_ssl.backbones.ViTBackbone(
        image_shape=(SIZES["image"], SIZES["image"], 3),
        patch_size=SIZES["patch"],
        interpolation_offset=0.1,
        **VIT_TINY,
    )
    model = keras_ssl.models.DINO(backbone, augmenter=None, preprocessor=None, **HEAD)
    model.compile(
        keras_ssl.optimizers.AdamW(1e-4, weight_decay=0.04, exclude_1d=True, clip_group_norm=3.0)
    )
    return timed_fit(model, crops(), steps)


def peer(steps):
    import torch
    from views import _import_torchvision

    _import_torchvision()  # timm and lightly import it
    import timm
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    def network():
        backbone = timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=0,
            img_size=SIZES["image"],
            dynamic_img_size=True,
            global_pool="token",
        )
        head = DINOProjectionHead(
            VIT_TINY["hidden_dim"],
            HEAD["hidden_dim"],
            HEAD["bottleneck_dim"],
            HEAD["output_dim"],
            batch_norm=False,
            norm_last_layer=True,
        )
        return torch.nn.ModuleList([backbone, head]).train()

    student, teacher = network(), network().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    criterion = DINOLoss(HEAD["output_dim"], teacher_temp=0.04)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-4,
        weight_decay=0.04,
    )
    images = [torch.tensor(crop).permute(0, 3, 1, 2).contiguous() for crop in crops()]

    def step():
        with torch.no_grad():
            targets = teacher[1](teacher[0](torch.cat(images[:2]))).chunk(2)
        features = [student[0](torch.cat(part)) for part in (images[:2], images[2:])]
        outputs = student[1](torch.cat(features)).chunk(len(images))
        loss = criterion(list(targets), list(outputs))
        optimizer.zero_grad()
        loss.backward()
        for parameter in trained:
            factor = 3.0 / (parameter.grad.norm() + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)
        optimizer.step()
        update_momentum(student, teacher, m=0.996)

    return timed(step, steps)


LINES = {"PyTorch: timm, lightly": ("torch", peer, {})}
for _backend in ("torch", "tensorflow", "jax"):
    LINES[f"keras_ssl {_backend}"] = (_backend, ours, {})


def run(quick: bool = False, rounds: int = 3, steps: int = 8) -> list[dict]:
    """Measures all lines in turns; prints the table and returns its rows."""
    rounds, steps = (1, 2) if quick else (rounds, steps)
    rows = in_turns(__file__, LINES, rounds, steps)
    title = (
        f"DINO, ViT-Tiny, 2 x {SIZES['image']} and {SIZES['num_local']} x {SIZES['local']} px, "
        f"batch {SIZES['batch']}, {HEAD['output_dim']} prototypes"
    )
    print_steps(title, rows, lambda name: name.startswith("PyTorch"), lambda row: AIM)
    return rows


if __name__ == "__main__":
    main(__doc__, LINES, run)
