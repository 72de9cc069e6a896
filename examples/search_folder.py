"""Search a folder of pictures by picture, and by text with a CLIP, SigLIP or ALIGN preset.

The folder is embedded once and kept in a file; a search is then a product of unit vectors, exact,
in NumPy, or in faiss where that is installed and there are 100,000 pictures or more.
Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
Data: --data, a folder or archive; without it, the emoji, written out as a folder.
Command: python examples/search_folder.py --data photos --preset clip_vit_base_32 --text "a red car"
         python examples/search_folder.py --picture photos/cat.jpg --data photos
         python examples/search_folder.py --text "red apple"   (the emoji, by a shipped preset)
Result: the six nearest to a medal, of 3,632 emoji in two styles, are medals of both; 10 s.
Printed: a table of files; written: found.png, the query and what was found, best first.
"""

import argparse
import pathlib

import keras_ssl
from keras_ssl import runs


def open_index(args, model) -> runs.Embeddings:
    """The folder's embeddings: from the file of an earlier search by the same preset, or new."""
    path = args.output / "index.npz"
    if path.exists():
        found = runs.Embeddings.load(path)
        if found.model == args.preset and pathlib.Path(found.root).samefile(args.data):
            print(f"{len(found)} pictures, embedded before ({path}; --again after changes)")
            return found
    found = runs.embed_folder(model, args.data, model_name=args.preset, say=print)
    found.save(path)
    return found


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder; default: the emoji, written out")
    parser.add_argument("--preset", default="clip_resnet_emoji", help="of any method")
    parser.add_argument("--text", help="find pictures of this; needs an image-text preset")
    parser.add_argument("--picture", help="find pictures like this one; default: the first")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--again", action="store_true", help="embed the folder anew")
    parser.add_argument("--styles", nargs="+", default=["noto", "twemoji"], help="of the emoji")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/search_folder"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.again:
        (args.output / "index.npz").unlink(missing_ok=True)
    if args.data is None:
        args.data = str(args.output / "emoji")
        if not pathlib.Path(args.data).exists():
            emoji = keras_ssl.datasets.load_emoji(args.styles, background=(255, 255, 255))
            emoji.save_to_folder(args.data)

    model = runs.load_model(args.preset)
    index = open_index(args, model)
    if args.text is not None:
        query = runs.embed_text(model, args.text)
    else:
        args.picture = args.picture or index.path(0)
        query = runs.embed_pictures(model, [args.picture])
    rows, similarity = index.search(query, args.count)
    print(f"Like {args.text or args.picture}:")
    for row, value in zip(rows[0], similarity[0], strict=True):
        print(f"  {value:.3f}  {index.names[row]}")
    grid = runs.result_grid(index, rows[0], None if args.text else args.picture)
    grid.save(args.output / "found.png")
    return {"names": [index.names[row] for row in rows[0]], "similarity": similarity[0]}


if __name__ == "__main__":
    main()
