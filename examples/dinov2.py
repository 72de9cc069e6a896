"""DINOv2 on small pictures: say of views, and of the patches that are hidden, what a teacher says.

Paper: Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023.
Data: the shipped emoji, or any folder or archive with train/ and test/; no labels in training.
Command: KERAS_BACKEND=tensorflow python examples/dinov2.py --data cifar10.tar.gz --epochs 5
Result: k-NN and linear accuracy beside raw pixels and the untrained network: table in the README.
"""

from common import run

import keras_ssl


def build(image_shape, args):
    # Patches are hidden, so this must be a ViT; so small that CIFAR-10 takes minutes.
    backbone = keras_ssl.backbones.ViTBackbone(
        image_shape,
        patch_size=8,
        hidden_dim=96,
        num_layers=3,
        num_heads=3,
        use_mask_token=True,
        position_embedding="sincos",
        initializer="mae",
    )
    return keras_ssl.models.DINOv2.small(
        backbone, output_dim=512, hidden_dim=256, bottleneck_dim=64, seed=args.seed
    )


if __name__ == "__main__":
    run(build, __doc__, batch_size=64)
