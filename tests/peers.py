"""The peers that tests compare with: transformers, timm and torchvision on a CPU build of torch."""

import sys

import torch


def import_torchvision():
    """torchvision, with the two operators that a CPU build of torch does not find declared."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision

        torchvision.library_of_missing_operators = library
    return torchvision


# transformers and timm look for it when they are imported, so it comes first.
torchvision = import_torchvision()

import timm as timm  # noqa: E402
