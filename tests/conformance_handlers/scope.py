"""What the reference vectors hold and this package does not offer (yet), with the reason.

Each row is (pattern of "method/kind", pattern of keys, reason), shell patterns both. A row whose
key pattern is "*" puts whole files out of scope. A handler registered for the same (method, kind)
goes first: a method that arrives registers its handler and its row here is deleted; a row left by
mistake would be reported, since a compared key may not stand in this table as well.
"""

_LATER = "the method is not in the package yet"
_PROBE = "of the reference's linear probe; here a protocol and a callback"
_LOSS_STATISTICS = "moving statistics of the loss's standardisation, which nothing ever reads"
_STEM = "the convolutional stem of MoCo v3's repository, which its paper does not use: not offered"
_UNUSED_TARGET = "no loss reads the target's predictor and classifier: there are none here"

OUT_OF_SCOPE = [
    # Whole files.
    ("openclip/single", "*coca*", "CoCa's captioning loss: not offered"),
    # Parts of files that have a handler.
    ("barlow/barlow_loss", "out/after/bn.*", _LOSS_STATISTICS),
    ("barlow/barlow_loss", "out/off_diagonal_of_arange16", "a helper of the reference's indexing"),
    ("barlow/barlow_train", "step*/param/bn.*", _LOSS_STATISTICS),
    ("byol/functions", "*/softmax_cross_entropy", _PROBE),
    ("byol/functions", "out/topk2", _PROBE),
    ("byol/functions", "in/logits", _PROBE),
    ("byol/functions", "in/onehot", _PROBE),
    ("byol/training", "out/target/prediction_*", _UNUSED_TARGET),
    ("byol/training", "out/target/logits_*", _UNUSED_TARGET),
    ("byol/training", "step*/param/target/predictor/*", _UNUSED_TARGET),
    ("byol/training", "step*/param/target/classifier/*", _UNUSED_TARGET),
    ("mocov3/utils", "*/conv_stem.*", _STEM),
    ("mocov3/utils", "*/stem_*", _STEM),
    (
        "moco/two_process",
        "rank*/param/*.running_*",
        "every process has statistics of its own there; here one average sees all groups in turn",
    ),
    ("lightly/memory_bank", "step*/co2", "CO2's consistency term: not offered"),
    ("lightly/prototypes", "*msn*", "masked siamese networks (MSN, PMSN): not offered"),
    ("lightly/prototypes", "in/probs_logits", "of MSN's own sharpening and Sinkhorn: not offered"),
    ("lightly/pairwise", "*/HypersphereLoss/*", "alignment and uniformity loss: not offered"),
    ("lightly/pairwise", "*/TiCoLoss/*", "TiCo: not offered"),
    ("lightly/pairwise", "*/DirectCLRLoss/*", "DirectCLR: not offered"),
    ("lightly/pairwise", "*/MACLLoss/*", "model-aware contrastive loss: not offered"),
    ("lightly/pairwise", "*/MMCRLoss*", "MMCR: not offered"),
    ("lightly/pairwise", "*/FroSSLLoss*", "FroSSL: not offered"),
    ("lightly/pairwise", "*/EMPSSLLoss*", "EMP-SSL: not offered"),
]
