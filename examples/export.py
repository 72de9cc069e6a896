"""Export an encoder for use without Keras: SavedModel, LiteRT, ONNX, a PyTorch program.

`model.export` of Keras writes what `predict` computes: preparation of pictures, encoder, pooling.
The file is then run by its own runtime on the same pictures, and compared.
Data: the shipped emoji.
Command: KERAS_BACKEND=tensorflow python examples/export.py --formats tf_saved_model litert onnx
Result (PyTorch): ONNX differs by 2.4e-7, the PyTorch program not at all; 12 s for both.
Printed: for each format the size of the file and the largest relative difference to `predict`.
"""

import argparse
import pathlib

import keras
import numpy as np

import keras_ssl
from keras_ssl.runs import load_model, model_image_size

# What Keras writes on which backend, and the packages that this and running it take.
FORMATS = {
    "tf_saved_model": {"tensorflow": ["tensorflow"], "jax": ["tensorflow"]},
    "litert": {"tensorflow": ["tensorflow"], "torch": ["litert_torch", "ai_edge_litert"]},
    "onnx": {
        "tensorflow": ["tf2onnx", "onnxruntime"],
        "jax": ["tf2onnx", "onnxruntime"],
        "torch": ["onnx", "onnxscript", "onnxruntime"],
    },
    "torch": {"torch": ["torch"]},
}
SUFFIXES = {"tf_saved_model": "saved_model", "litert": "tflite", "onnx": "onnx", "torch": "pt2"}


def run_file(format: str, path: str, images: np.ndarray) -> np.ndarray:
    """Embeddings of pictures by the exported file alone."""
    if format == "tf_saved_model":
        import tensorflow as tf

        program = tf.saved_model.load(path)  # its variables live as long as it is held
        return program.serve(images).numpy()
    if format == "litert":
        if keras.backend.backend() == "tensorflow":
            from tensorflow import lite as interpreter
        else:
            from ai_edge_litert import interpreter
        run = interpreter.Interpreter(model_path=path).get_signature_runner()
        return next(iter(run(**dict.fromkeys(run.get_input_details(), images)).values()))
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return session.run(None, {session.get_inputs()[0].name: images})[0]
    import torch

    program = torch.export.load(path).module()
    return program(torch.from_numpy(images)).detach().numpy()


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mae_vit_nano_cifar10", help="of any method")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--batch-size", type=int, default=16, help="of the file; fixed")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/export"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    backend = keras.backend.backend()
    model = load_model(args.preset)
    size = model_image_size(model)
    emoji = keras_ssl.datasets.load_emoji("noto", size[0], background=(255, 255, 255))
    images = emoji.images[: args.batch_size].astype("float32")
    expected = model.predict(images, batch_size=args.batch_size, verbose=0)
    signature = [keras.InputSpec(shape=(args.batch_size, *size, 3), dtype="float32")]
    result = {}
    for format in args.formats:
        if backend not in FORMATS[format]:
            others = " or ".join(FORMATS[format])
            print(f"{format}: Keras writes it on {others}: set KERAS_BACKEND.")
            continue
        path = args.output / f"encoder.{SUFFIXES[format]}"
        try:
            model.export(path, format=format, input_signature=signature, verbose=False)
            found = run_file(format, str(path), images)
        except Exception as error:
            # PyTorch raises an error of its own where onnx is missing.
            if not isinstance(error, ImportError) and "not installed" not in str(error):
                raise
            packages = " ".join(FORMATS[format][backend]).replace("_", "-")
            print(f"{format}: needs `pip install {packages}` ({error}).")
            continue
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        print(f"{format}: {path}, {megabytes:.1f} MB, largest relative difference {difference:.1e}")
        result[format] = difference
    return result


if __name__ == "__main__":
    main()
