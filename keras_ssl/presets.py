"""Where presets are: those that ship with the package, folders, and hubs."""

import json
import os


def _shipped_folder() -> str | None:
    """The folder of shipped presets: inside an installed wheel, or in the repository."""
    package = os.path.dirname(os.path.abspath(__file__))
    for folder in (
        os.path.join(package, "_presets"),
        os.path.join(os.path.dirname(package), "presets"),
    ):
        if os.path.isdir(folder):
            return folder
    return None


def list_presets() -> dict[str, dict]:
    """Presets that ship with keras_ssl.

    Returns:
        A dict from name to a description: `"method"`, `"path"` and what its `metadata.json` says.

    Example:

    >>> sorted(keras_ssl.list_presets())  # doctest: +SKIP
    ['mae_vit_nano_cifar10', ...]
    """
    presets = {}
    folder = _shipped_folder()
    for name in sorted(os.listdir(folder)) if folder else ():
        path = os.path.join(folder, name)
        task = os.path.join(path, "task.json")
        if os.path.isfile(task):
            with open(task, encoding="utf-8") as file:
                method = json.load(file)["class_name"]
            presets[name] = {"method": method, "path": path}
    return presets


def resolve_preset(preset: str) -> str:
    """The local folder of a preset.

    Args:
        preset: name of a shipped preset, a folder, `hf://user/name` or
            `kaggle://user/model/keras/variant`. Hub presets are downloaded once and cached.

    Returns:
        Path of a folder.

    Raises:
        ValueError: nothing of that name is found.
    """
    if not isinstance(preset, (str, os.PathLike)):
        raise ValueError(f"A preset is named by a string. Received: preset={preset!r}")
    preset = os.fspath(preset)
    if preset.startswith("hf://"):
        import huggingface_hub

        return huggingface_hub.snapshot_download(
            preset.removeprefix("hf://"), allow_patterns=["*.json", "*.weights.h5", "*.md"]
        )
    if preset.startswith("kaggle://"):
        import kagglehub

        return kagglehub.model_download(preset.removeprefix("kaggle://"))
    shipped = list_presets()
    if preset in shipped:
        return shipped[preset]["path"]
    if os.path.isdir(preset):
        return preset
    raise ValueError(
        "Unknown preset. Pass the name of a shipped one, a folder made by save_to_preset(), "
        f"hf://... or kaggle://... Shipped: {sorted(shipped)}. Received: preset={preset!r}"
    )
