"""Sort a folder of pictures by class names that no one trained on: zero-shot classification.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
section 3.1 (prompts, and averaging over several).
Data: --data, a folder or archive. Where it has class folders, their names are the classes and the
accuracy is printed; --classes names others. Without it, emoji that examples/clip.py keeps away
from its training are written out, a folder for each of their names.
Preset: --preset, of CLIP, SigLIP or ALIGN: shipped ("clip_resnet_emoji", which knows drawings
only), released ("clip_vit_base_32"), or one's own.
Command: python examples/zero_shot_folder.py --data photos --preset clip_vit_base_32
Result: to be compared with the zero-shot accuracy that examples/clip.py prints.
Written: answers.csv (file, class, probability), answers.png: of each class the surest pictures.
"""

import argparse
import csv
import pathlib

import numpy as np

import keras_ssl
from keras_ssl import runs
from keras_ssl.evaluation import zero_shot_classifier
from keras_ssl.visualization import picture_grid


def emoji_folder(path):
    """Things that examples/clip.py never sees, in a style that it never sees, a folder each."""
    emoji = keras_ssl.datasets.load_emoji(background=(255, 255, 255))
    unseen = np.isin(emoji.captions, np.unique(emoji.captions)[::5])
    return emoji.select(unseen & (emoji.styles == "twemoji")).save_to_folder(path, by="captions")


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder or archive; default: emoji, written out")
    parser.add_argument("--preset", default="clip_resnet_emoji", help="CLIP, SigLIP or ALIGN")
    parser.add_argument("--classes", nargs="+", help="default: the names of the class folders")
    parser.add_argument("--templates", default="imagenet_7", help="name, simple, imagenet_7 or _80")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/zero_shot"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    model = runs.load_model(args.preset)
    if not hasattr(model, "encode_text"):
        parser.error(f"--preset must be of CLIP, SigLIP or ALIGN; this is {type(model).__name__}")
    folder = args.data or emoji_folder(args.output / "emoji")
    images = keras_ssl.datasets.FolderImages(folder, runs.model_image_size(model))
    names = args.classes or list(images.class_names)
    if not names:
        parser.error("the pictures lie in no class folders: name the classes by --classes")
    prompts = [name.replace("_", " ") for name in names]

    embeddings = model.encode_image(images[:], batch_size=128)
    for templates in dict.fromkeys(("name", args.templates)):
        classify = zero_shot_classifier(model, prompts, templates, batch_size=128)
        odds = classify.from_embeddings(embeddings)
        answers = odds.argmax(axis=1)
        accuracy = None
        if images.labels is not None and args.classes is None:
            accuracy = float((answers == images.labels).mean())
            print(f"{len(images)} pictures, {len(names)} classes, {templates}: {accuracy:.1%}")

    with open(args.output / "answers.csv", "w", encoding="utf-8", newline="") as file:
        rows = zip(images.file_names, answers, odds.max(axis=1), strict=True)
        lines = [(name, names[answer], f"{value:.4f}") for name, answer, value in rows]
        csv.writer(file).writerows([("file", "class", "probability"), *lines])
    best = odds.argsort(axis=0)[::-1][:8].T[:12]  # of each of the first classes, the surest
    grid = picture_grid(images[best.reshape(-1)], columns=best.shape[1], zoom=2)
    grid.save(args.output / "answers.png")
    for name, row in zip(names, best, strict=False):
        print(f"{name:24} " + ", ".join(images.file_names[i] for i in row[:3]))
    return {"accuracy": accuracy, "lines": lines}


if __name__ == "__main__":
    main()
