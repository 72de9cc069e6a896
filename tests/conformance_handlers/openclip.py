"""The losses of open_clip: CLIP with and without bias, distillation, SigLIP whole and in chunks;
and their forms for several processes.

Several processes are one global batch here: a rank's loss is the mean over its rows, its gradient
its rows of the gradient of what the processes compute together. On PyTorch they are processes.
"""

import keras
import numpy as np
from gradients import input_gradients
from keras import ops
from replica_losses import on_processes

from conformance_handlers.framework import BOUNDS, Case, UnknownOption, handler
from keras_ssl.losses import CLIPDistillationLoss, CLIPLoss, SigLIPLoss

_NAMES = ("image_features", "text_features", "log_logit_scale", "logit_bias")


@handler("openclip", "single")
def single(case: Case):
    config = case.config
    config.generator_only("seed", "dim", "noise", "cap_len", "vocab", "caption_weight")
    config.generator_only("clip_weight")
    values = [case.input(f"in/{name}") for name in _NAMES]
    case.check("batch", len(values[0]) == config["batch"])
    case.check("scale", np.isclose(float(values[2]), config["log_scale"]))
    case.check("bias", np.isclose(float(values[3]), config["bias"]))
    teacher = [case.input(f"in/dist_{name}") for name in _NAMES[:2]]
    teacher.append(np.float32(np.log(config["dist_scale"])))
    clip, distill = CLIPLoss(normalize=False), CLIPDistillationLoss(normalize=False)
    siglip = {
        "siglip": SigLIPLoss(normalize=False, block_size=None),
        "siglip_chunked": SigLIPLoss(normalize=False, block_size=max(1, len(values[0]) // 4)),
    }
    functions = {
        "clip": (clip, 3),
        "clip_bias": (clip, 4),
        **{name: (loss, 4) for name, loss in siglip.items()},
    }
    for name, (function, count) in functions.items():
        loss, gradients = input_gradients(function, *values[:count])
        _compare(case, name, loss, gradients)
    # Distillation comes in two parts there, CLIP's loss and the teacher's; their sum is optimised.
    parts = [clip(*values[:3]), distill(*values[:3], *teacher)]
    for i, part in enumerate(parts):
        case.compare(f"out/distill/part{i}", part)
    loss, gradients = input_gradients(lambda *v: clip(*v) + distill(*v, *teacher), *values[:3])
    _compare(case, "distill", loss, gradients)


def _compare(case, name, loss, gradients):
    case.compare(f"out/{name}/loss", loss)
    # A bias moves all logits alike: CLIP's softmax gives it a gradient of rounding errors only.
    for key, gradient in zip(_NAMES, gradients, strict=False):
        if name == "clip_bias" and key == "logit_bias":
            case.compare(
                f"grad/{name}/{key}",
                gradient,
                because="zero but for rounding: against 1",
                floor=1.0,
            )
        else:
            case.compare(f"grad/{name}/{key}", gradient)


@handler("openclip", "multi")
def multi(case: Case):
    config = case.config
    config.generator_only("seed", "dim", "noise")
    world, batch = config["world"], config["batch"]
    values = [case.input(f"in/{name}") for name in _NAMES]
    case.check("batch", len(values[0]) == world * batch)
    case.check("scale", np.isclose(float(values[2]), config["log_scale"]))
    case.check("bias", np.isclose(float(values[3]), config["bias"]))
    bias = values[3]
    labels = np.arange(world * batch, dtype="int32")
    processes = on_processes(world, values) if keras.backend.backend() == "torch" else None
    options = case.meta.get("variants", {})
    clip = CLIPLoss(normalize=False)
    siglip = SigLIPLoss(normalize=False, block_size=max(1, batch // 2))

    def mean_of(rows, own):
        return ops.mean(rows[own])

    for variant in config["variants"]:
        loss_name, variant_options = options.get(variant, (None, None))
        for rank in range(world):
            own = slice(rank * batch, (rank + 1) * batch)

            def siglip_of(x, y, s, rank=rank):
                part = slice(rank * batch, (rank + 1) * batch)
                return siglip(x[part], y, s, bias, positives=(labels[part], labels))

            def local_of(x, y, s, own=own):
                images, texts = clip.row_losses(x, y, s)
                return (mean_of(images, own) + mean_of(texts, own)) / 2

            def one_sided(x, y, s, own=own):
                # What was gathered carries no gradient: only the own rows ask.
                images, _ = clip.row_losses(x, ops.stop_gradient(y), s)
                _, texts = clip.row_losses(ops.stop_gradient(x), y, s)
                return (mean_of(images, own) + mean_of(texts, own)) / 2

            if loss_name == "SigLipLoss":
                # Images stay where they are, texts travel and bring their gradients home.
                own_loss = siglip_of
                loss, (by_image, _, by_scale) = input_gradients(own_loss, *values[:3])
                _, (_, by_text, _) = input_gradients(
                    lambda *v: sum(siglip_of(*v, rank=r) for r in range(world)), *values[:3]
                )
            elif loss_name == "ClipLoss":
                local = variant_options["local_loss"]
                gathers_gradients = variant_options["gather_with_grad"]
                own_loss = clip
                if local:
                    own_loss = local_of if gathers_gradients else one_sided
                loss, (by_image, by_text, by_scale) = input_gradients(own_loss, *values[:3])
                if gathers_gradients:
                    # Every process's loss sends its gradient: the sum of all ranks' losses.
                    _, (by_image, by_text, _) = input_gradients(
                        lambda *v: world * clip(*v), *values[:3]
                    )
            else:
                raise UnknownOption(f"meta.variants[{variant!r}] = {loss_name!r}")
            if processes and (loss_name == "SigLipLoss" or gathers_gradients):
                loss, (by_image, by_text, by_scale) = _of_process(
                    processes, rank, loss_name, loss_name == "SigLipLoss" or local
                )
                own = slice(None)
            case.compare(f"rank{rank}/out/{variant}/loss", loss)
            prefix = f"rank{rank}/grad/{variant}/"
            gradients = (by_image[own], by_text[own], by_scale)
            for name, gradient in zip(_NAMES, gradients, strict=False):
                bound = BOUNDS["gradient"]
                case.compare(prefix + name, gradient, bound=bound, because="a gradient")


def _of_process(processes, rank, loss_name, local):
    """Loss and gradients of a process. The whole loss on every rank is the mean of the ranks'."""
    key = "siglip" if loss_name == "SigLipLoss" else "clip"
    loss, by_image, by_text, by_scale = processes[rank][key]
    if not local:
        loss, by_scale = (np.mean([p[key][i] for p in processes], axis=0) for i in (0, 3))
    return loss, (by_image, by_text, by_scale)
