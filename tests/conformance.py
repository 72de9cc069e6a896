"""Run the package against reference vectors and print how far every number is from them.

    python tests/conformance.py --vectors DIR [--backend jax] [--only PATTERN] [--verbose]

DIR is searched for `.npz` files (also in sub-folders) written by the methods' official code. Each
carries a JSON string `meta` with `method` and `config`; those two choose the handler and set every
option. File names, sizes and seeds choose nothing. `tests/conformance_handlers/framework.py` says
how numbers are compared and what counts as a failure; one handler file holds one method.

The exit status is 0 only if every key of every selected file was compared within its bound, was an
input that was used, or stands in the table of what is out of scope.
"""

import argparse
import os
import pathlib
import sys

BACKENDS = ("jax", "tensorflow", "torch")


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="conformance.py", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--vectors", required=True, metavar="DIR", help="folder with .npz files")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="Keras backend (default: the variable KERAS_BACKEND, else torch)",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        help="only files whose path below DIR matches this shell pattern or holds this text",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also list the inputs and the keys out of scope"
    )
    return parser.parse_args(argv)


def main(argv=None) -> int:
    arguments = parse_arguments(argv)
    # Keras reads its backend once, when it is imported: so the choice comes before any import.
    if arguments.backend:
        os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    here = pathlib.Path(__file__).resolve().parent
    for folder in (here.parent, here):  # the checkout itself, not some installed copy
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    import conformance_handlers

    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another
    return conformance_handlers.run(
        arguments.vectors, only=arguments.only, verbose=arguments.verbose
    )


if __name__ == "__main__":
    sys.exit(main())
