"""Released weights into presets, and presets into the transformers layout."""

import os
import pathlib

from keras_ssl.converters import from_transformers, load_official, to_transformers
from keras_ssl.runs.builders import build_backbone, build_model
from keras_ssl.runs.evaluate import load_model


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    layout: str | None = None,
    method: str | None = None,
    backbone: str = "vit_base",
    image_size: int = 224,
    patch_size: int | None = None,
    options: dict | None = None,
    backbone_options: dict | None = None,
    to: str = "preset",
    strict: bool = True,
    say=print,
) -> None:
    """Reads released weights and writes a preset; or a preset, and writes it for transformers.

    A folder in the transformers layout says what it holds. A file of weights alone (`.safetensors`,
    `.npz`, a PyTorch file read as weights only) needs `layout` and the sizes of the model.

    Args:
        source: a folder in the transformers layout, or a file of weights; with
            `to="transformers"` a preset.
        output: folder to write.
        layout: of a file: a key of `keras_ssl.converters.LAYOUTS`.
        method: whose model a file holds, with heads and all; None for the encoder alone.
        backbone, image_size, patch_size: of the model of a file.
        options: of the method's class.
        backbone_options: of the backbone's class.
        to: `"preset"` or `"transformers"`.
        strict: refuse missing and unexpected tensors of a file.
        say: called with what was loaded and what was not.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: something does not fit; the message names it.

    Example:

    ```python
    keras_ssl.runs.convert("dinov2-small", "presets/dinov2_small")
    keras_ssl.runs.convert(
        "mae_pretrain_vit_base.pth",
        "presets/mae_base_encoder",
        layout="mae",
        backbone_options={"position_embedding": "sincos"},
    )
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
    if not path.exists():
        raise FileNotFoundError(f"There is no such file or folder. Received: {source}")
    if path.is_dir():
        if layout is not None:
            raise ValueError(
                "A folder in the transformers layout says itself what it holds; `layout` is for "
                f"files. Received: layout={layout!r}"
            )
        model, preprocessor, report = from_transformers(path)
        if hasattr(model, "preprocessor") and preprocessor is not None:
            model.preprocessor, preprocessor = preprocessor, None
    else:
        if layout is None:
            from keras_ssl.converters import LAYOUTS

            raise ValueError(
                f"A file of weights needs its `layout`: one of {sorted(LAYOUTS)}. "
                f"Received: {source}"
            )
        preprocessor = None
        if method is None:
            model = build_backbone(backbone, image_size, patch_size, **(backbone_options or {}))
        else:
            model = build_model(
                method,
                backbone,
                image_size,
                patch_size,
                backbone_options=backbone_options,
                **(options or {}),
            )
        report = load_official(model, path, layout, strict=strict)
    model.save_to_preset(os.fspath(output))
    if preprocessor is not None:
        preprocessor.save_to_preset(os.fspath(output))
    say(str(report))
    say(f"Written: {output}")
