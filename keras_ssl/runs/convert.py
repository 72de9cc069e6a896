"""Released weights into presets, and presets into the transformers layout."""

import os
import pathlib

from keras_ssl import presets
from keras_ssl.converters import load_official, read_state_dict, recognise, to_transformers
from keras_ssl.runs.builders import build_backbone, build_model
from keras_ssl.runs.evaluate import load_model


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    layout: str | None = None,
    method: str | None = None,
    backbone: str | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    options: dict | None = None,
    backbone_options: dict | None = None,
    to: str = "preset",
    strict: bool = True,
    say=print,
) -> None:
    """Reads released weights and writes a preset; or a preset, and writes it for transformers.

    A folder in the layout of transformers or timm says what it holds. Of a file of weights alone
    (`.safetensors`, `.npz`, a PyTorch file read as weights only, a checkpoint of TensorFlow) the
    model is found as `from_preset` finds it: the layout by its names, the sizes by its shapes,
    the pictures' preprocessing by its source. With `method`, `backbone`, `image_size`,
    `patch_size` or `options` the model is built as these say.

    Args:
        source: a folder in the layout of transformers or timm, or a file of weights; with
            `to="transformers"` a preset.
        output: folder to write.
        layout: of a file: a key of `keras_ssl.converters.LAYOUTS`; None to recognise it.
        method: whose model a file holds, with heads and all; None for the encoder alone.
        backbone, image_size, patch_size: of the model of a file: `"vit_base"` and 224 where only
            another of these arguments is given.
        options: of the method's class.
        backbone_options: of the backbone's class. Alone they are for what a file does not tell,
            such as `num_heads`.
        to: `"preset"` or `"transformers"`.
        strict: of a model built by arguments: refuse missing and unexpected tensors of the file.
        say: called with what was loaded and what was not.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: something does not fit; the message names it.

    Example:

    ```python
    keras_ssl.runs.convert("dinov2-small", "presets/dinov2_small")
    keras_ssl.runs.convert("vit-s-300ep.pth.tar", "presets/moco_v3_small")
    ```
    """
    if to not in ("preset", "transformers"):
        raise ValueError(f'`to` must be "preset" or "transformers". Received: to={to!r}')
    if to == "transformers":
        model = load_model(source)
        try:
            to_transformers(model, output)
        except ValueError:
            to_transformers(model.backbone, output, model.preprocessor)
        say(f"Written: {output}")
        return
    path = pathlib.Path(source)
    if not path.exists() and not path.with_name(path.name + ".index").exists():
        raise FileNotFoundError(f"There is no such file or folder. Received: {source}")
    if path.is_dir() and layout is not None:
        raise ValueError(
            "A folder in the layout of transformers or timm says itself what it holds; `layout` is "
            f"for files. Received: layout={layout!r}"
        )
    source, output = os.fspath(source), os.fspath(output)
    if path.is_dir() or not (method or backbone or image_size or patch_size or options):
        report = presets.convert_official(source, output, layout, backbone_options)
    else:
        state = read_state_dict(path)
        sizes = (backbone or "vit_base", image_size or 224, patch_size)
        if method is None:
            model = build_backbone(*sizes, **(backbone_options or {}))
        else:
            model = build_model(
                method, *sizes, backbone_options=backbone_options, **(options or {})
            )
        report = load_official(model, state, layout or recognise(state), strict=strict)
        presets.save_converted(model, output, source, report)
    say(str(report))
    say(f"Written: {output}")
