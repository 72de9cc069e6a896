"""A training step of CLIP on each backend, beside open_clip in PyTorch; memory of the losses.

ViT-B/32's widths with two layers in each encoder: 224 px, patch 32, 768 wide; 77 ids of 49,408, 512
wide; batch 32, AdamW. The same sizes, pictures and ids for all. Every line is a process of its own;
the lines take turns for several rounds, and medians are compared.

Then the memory of the losses alone with their gradients: CLIP's needs the whole matrix of
similarities, SigLIP's is computed whole or in blocks of rows (as in nt_xent.py, which measures).

Command: python benchmarks/clip_step.py [--rounds 3] [--steps 8]
Needs: pip install torch==2.13.0 open_clip_torch
"""

from steps import in_turns, main, print_steps, timed, timed_fit

SIZES = dict(batch=32, image=224, patch=32, length=77, vocabulary=49408, layers=2, dim=512)
ADAMW = dict(beta_1=0.9, beta_2=0.98, epsilon=1e-6)
AIM = 1.0
LOSSES = ("clip", "siglip plain", "siglip blocks")


def pairs():
    """Random pictures, and captions of 5 to 20 ids with their start and end."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.random((SIZES["batch"], SIZES["image"], SIZES["image"], 3), dtype="float32")
    ids = np.zeros((SIZES["batch"], SIZES["length"]), "int32")
    for row in ids:
        count = rng.integers(5, 21)
        row[: count + 2] = [49406, *rng.integers(1, 49406, count), 49407]
    return images, ids


def ours(steps):
    import keras_ssl

    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_base",
        image_shape=(SIZES["image"], SIZES["image"], 3),
        patch_size=SIZES["patch"],
        num_layers=SIZES["layers"],
        use_pre_norm=True,
        patch_bias=False,
        activation="quick_gelu",
        layer_norm_epsilon=1e-5,
    )
    text = keras_ssl.backbones.TextTransformer.from_size("clip_base", num_layers=SIZES["layers"])
    model = keras_ssl.models.CLIP(
        backbone, text, SIZES["dim"], match_duplicates=False, augmenter=None, preprocessor=None
    )
    model.compile(keras_ssl.optimizers.AdamW(5e-4, weight_decay=0.2, **ADAMW))
    images, ids = pairs()
    return timed_fit(model, {"images": images, "token_ids": ids}, steps)


def peer(steps):
    import torch
    from views import _import_torchvision

    _import_torchvision()  # open_clip imports it
    import open_clip

    vision = dict(
        image_size=SIZES["image"], layers=SIZES["layers"], width=768, patch_size=SIZES["patch"]
    )
    text = dict(
        context_length=SIZES["length"],
        vocab_size=SIZES["vocabulary"],
        width=512,
        heads=8,
        layers=SIZES["layers"],
    )
    model = open_clip.CLIP(SIZES["dim"], vision, text, quick_gelu=True).train()
    criterion = open_clip.ClipLoss()
    betas = (ADAMW["beta_1"], ADAMW["beta_2"])
    optimizer = torch.optim.AdamW(
        model.parameters(), 5e-4, betas=betas, eps=ADAMW["epsilon"], weight_decay=0.2
    )
    images, ids = pairs()
    images = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    ids = torch.tensor(ids, dtype=torch.long)

    def step():
        optimizer.zero_grad()
        criterion(*model(images, ids)[:3]).backward()
        optimizer.step()

    return timed(step, steps)


LINES = {"CLIP: PyTorch, open_clip": ("torch", peer, {})}
for _backend in ("torch", "tensorflow", "jax"):
    LINES[f"CLIP: keras_ssl {_backend}"] = (_backend, ours, {})


def run(quick: bool = False, rounds: int = 3, steps: int = 8) -> list[dict]:
    """Measures all lines in turns, then the losses; prints both tables and returns their rows."""
    import nt_xent

    rounds, steps = (1, 2) if quick else (rounds, steps)
    rows = in_turns(__file__, LINES, rounds, steps)
    title = f"CLIP, ViT-B/32 and text with {SIZES['layers']} layers each, batch {SIZES['batch']}"
    print_steps(title, rows, lambda name: "keras_ssl" not in name, lambda row: AIM)
    print("\nPeak MB of the loss with its gradients, dim 128; in brackets seconds")
    batches = (256, 1024) if quick else (512, 2048, 8192)
    print(f"{'':26}" + "".join(f"{batch:>18}" for batch in batches))
    for backend in ("torch",) if quick else nt_xent.BACKENDS:
        for name in LOSSES:
            cases = [nt_xent.measure(backend, name, batch) for batch in batches]
            rows += [case for case in cases if case]
            figures = (
                f"{case['peak_mb']:.0f} ({case['seconds']:.3f})" if case else "failed"
                for case in cases
            )
            print(f"{name + ', ' + backend:26}" + "".join(f"{f:>18}" for f in figures), flush=True)
    return rows


if __name__ == "__main__":
    main(__doc__, LINES, run)
