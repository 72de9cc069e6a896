"""Prompt templates for zero-shot classification."""

# "a photo of a {}." alone: Radford et al. 2021, section 3.1.4.
SIMPLE = ("a photo of a {}.",)

# The 80 templates of Radford et al. 2021, section 3.1.4, as published in openai/CLIP,
# notebooks/Prompt_Engineering_for_ImageNet.ipynb: phrases that occur there with "a" and with "the",
# and four others. Order has no meaning: they are averaged.
_A_AND_THE = (
    "art of {} {}.|graffiti of {} {}.|itap of {} {}.|{} {} in a video game.|"
    "a sculpture of {} {}.|a rendering of {} {}.|a rendition of {} {}.|a tattoo of {} {}.|"
    "a drawing of {} {}.|a painting of {} {}.|a sketch of {} {}.|a doodle of {} {}.|"
    "a photo of {} {}.|a bad photo of {} {}.|a good photo of {} {}.|a cropped photo of {} {}.|"
    "a bright photo of {} {}.|a dark photo of {} {}.|a close-up photo of {} {}.|"
    "a black and white photo of {} {}.|a pixelated photo of {} {}.|a blurry photo of {} {}.|"
    "a low resolution photo of {} {}.|a jpeg corrupted photo of {} {}."
).split("|")
_ADJECTIVES = "embroidered plastic origami toy cartoon plushie".split()
_PHOTO_ADJECTIVES = "hard-to-see clean dirty cool large nice weird small".split()

IMAGENET_80 = (
    *(t.replace("{}", article, 1) for t in _A_AND_THE for article in ("a", "the")),
    *(f"{article} {word} {{}}." for word in _ADJECTIVES for article in ("a", "the")),
    *(
        f"a photo of {article} {word.replace('-', ' ')} {{}}."
        for word in _PHOTO_ADJECTIVES
        for article in ("a", "the")
    ),
    "a photo of many {}.",
    "a photo of my {}.",
    "a photo of one {}.",
    "itap of my {}.",
)

# Seven of them do as well on ImageNet; found there by forward selection (same notebook).
IMAGENET_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

TEMPLATES = {
    "name": ("{}",),
    "simple": SIMPLE,
    "imagenet_7": IMAGENET_7,
    "imagenet_80": IMAGENET_80,
}
