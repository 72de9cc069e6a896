"""Where presets are: shipped with the package, released by others, in folders, files and hubs."""

import contextlib
import hashlib
import json
import os
import re
import warnings

from keras_ssl.safe_files import check_links, inside, replacing

# What is fetched of a hub's repository: weights without code, and what describes them.
_WANTED = [
    "*.json",
    "*.weights.h5",
    "*.md",
    "model*.safetensors",
    "assets/*",
    "merges.txt",
    "*.model",
]
_OLD_WEIGHTS = ["pytorch_model*.bin"]


# === Names ===


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


def _released() -> dict[str, dict]:
    """The registry of released weights, `released.json`."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "released.json")
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _figures_of(folder: str) -> dict:
    """What was measured on a shipped preset, `figures.json`."""
    path = os.path.join(folder, "figures.json")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        facts = json.load(file)
    return {key: facts[key] for key in ("data", "parameters", "bytes", "figures", "command")}


def list_presets(shipped: bool = True, released: bool = False) -> dict[str, dict]:
    """Presets by name.

    Args:
        shipped: those that come with keras_ssl and load offline.
        released: weights that others released, which are fetched on first use.

    Returns:
        A dict from name to a description. Of shipped ones: `"method"`, `"path"`, `"data"`,
        `"parameters"` (`"backbone"` and `"all"`), `"bytes"` and `"figures"` in [0, 1] by name, as
        they were measured on the shipped file (`"command"` repeats it). Of released ones:
        `"method"`, `"source"` (a handle `hf://...` or the address of a file), `"architecture"`,
        `"parameters"`, `"image_size"`, `"normalization"`, `"licence"`, and `"figure"` with
        `"figure_source"`, a published number and where it stands, or `None`.

    Example:

    >>> keras_ssl.list_presets(shipped=False, released=True)["dino_vit_small_16"]["source"]
    'hf://facebook/dino-vits16'
    """
    presets = {}
    folder = _shipped_folder()
    for name in sorted(os.listdir(folder)) if folder and shipped else ():
        path = os.path.join(folder, name)
        task = os.path.join(path, "task.json")
        if os.path.isfile(task):
            with open(task, encoding="utf-8") as file:
                method = json.load(file)["class_name"]
            presets[name] = {"method": method, "path": path, **_figures_of(path)}
    if released:
        presets.update(_released())
    return presets


# === From a name to a folder ===


def resolve_preset(preset) -> str:
    """The local folder of a preset, in the form that keras-hub reads.

    Released weights and official files are converted once and kept in the cache
    (`$KERAS_HOME/keras_ssl`, by default below `~/.keras`), so that the folder can be given to any
    `from_preset`, of keras-hub as well.

    Args:
        preset: name of a shipped preset or of a released one (`list_presets(released=True)`), a
            folder (of keras-hub's kind, or in the layout of transformers or timm), the path of an
            official file, `hf://user/name` or `kaggle://user/model/keras/variant`. Hub presets are
            downloaded once; a broken download resumes.

    Returns:
        Path of a folder.

    Raises:
        ValueError: nothing of that name is found, it cannot be fetched, or it is damaged.
    """
    if not isinstance(preset, (str, os.PathLike)):
        raise ValueError(f"A preset is named by a string. Received: preset={preset!r}")
    preset = os.fspath(preset)
    if preset.startswith("hf://"):
        return _folder(_from_hub(preset), preset)
    if preset.startswith("kaggle://"):
        return _folder(_from_kaggle(preset), preset)
    shipped = list_presets()
    if preset in shipped:
        return shipped[preset]["path"]
    released = _released()
    if preset in released:
        return _released_folder(preset, released[preset])
    if os.path.isdir(preset):
        return _folder(preset, preset)
    if os.path.isfile(preset) or os.path.isfile(preset + ".index"):
        return _converted(preset, {})
    raise ValueError(
        "Unknown preset. Pass the name of a shipped one, of a released one "
        "(keras_ssl.list_presets(released=True)), a folder made by save_to_preset(), the path of "
        f"an official file, hf://... or kaggle://... Shipped: {sorted(shipped)}. "
        f"Received: preset={preset!r}"
    )


def _from_hub(handle: str) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = handle.removeprefix("hf://").partition("@")
    options = dict(
        repo_id=repository,
        revision=revision or None,
        # huggingface_hub reads both when it is imported; here they may be set later.
        endpoint=os.environ.get("HF_ENDPOINT"),
        cache_dir=os.environ.get("HF_HUB_CACHE"),
    )
    try:
        folder = huggingface_hub.snapshot_download(**options, allow_patterns=_WANTED)
        names = " ".join(os.listdir(folder))
        if not re.search(r"\.safetensors|\.weights\.", names):
            # Only where there is nothing safer: it is read as weights only.
            folder = huggingface_hub.snapshot_download(
                **options, allow_patterns=[*_WANTED, *_OLD_WEIGHTS]
            )
        return folder
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{handle} is given out by its owners on request: ask on its page, then log in with "
            f"`hf auth login`. Received: preset={handle!r}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ValueError(
            f"The hub has no such repository, or not for this account. Received: preset={handle!r}"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(
            f"A hub handle has the form hf://user/name or hf://user/name@revision. "
            f"Received: preset={handle!r}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ValueError(
            f"{handle} is not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is "
            "set). Load it once with a connection, or copy a folder with its files here and pass "
            f"its path. Received: preset={handle!r} ({_first_line(error)})"
        ) from error
    except Exception as error:  # of sockets, of the disk, and of the client's own kinds
        raise ValueError(
            f"The download of {handle} broke off. What has arrived is kept: call again, and it "
            f"resumes. Received: preset={handle!r} ({_first_line(error)})"
        ) from error


def _from_kaggle(handle: str) -> str:
    try:
        import kagglehub
    except ImportError as error:
        raise ValueError(
            "Presets on Kaggle are fetched by kagglehub: `pip install kagglehub`. "
            f"Received: preset={handle!r}"
        ) from error
    try:
        return kagglehub.model_download(handle.removeprefix("kaggle://"))
    except Exception as error:  # of sockets, of the disk, and of the client's own kinds
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            raise ValueError(
                "A handle of Kaggle has the form kaggle://user/model/keras/variant, maybe with "
                f"/version. Received: preset={handle!r}"
            ) from error
        raise ValueError(
            f"{handle} cannot be fetched: Kaggle has no such model, gives it to accounts that "
            "asked for it (log in with `kagglehub.login()`), or cannot be reached. What is in its "
            f"cache loads. Received: preset={handle!r} ({_first_line(error)})"
        ) from error


def _first_line(error) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]


def _released_folder(name: str, entry: dict) -> str:
    source = entry["source"]
    if source.startswith("hf://"):
        return _folder(_from_hub(source), name, entry)
    if "how" in entry:  # archives and pickles, which are nothing to open unseen
        raise ValueError(
            f"{name} must be fetched by hand: {entry['how']} Then pass the path of the file. "
            f"Received: preset={name!r}"
        )
    path = os.path.join(_cache(), "files", name, source.rsplit("/", 1)[1])
    if not os.path.isfile(path):
        _fetched(name, source, path)
    known = entry.get("md5_prefix")
    if known:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if not found.startswith(known):
            os.remove(path)
            raise ValueError(
                f"The file of {name} arrived damaged and was removed: its MD5 does not begin with "
                f"{known!r}. Call again. Received: preset={name!r}, MD5 {found}"
            )
    return _converted(path, entry)


def _fetched(name: str, source: str, path: str) -> None:
    from huggingface_hub import constants

    from keras_ssl.downloads import download

    missing = f"{name} is not in the cache"
    away = "Fetch the file where there is a connection and pass its path."
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"{missing}, and HF_HUB_OFFLINE is set. {away} "
            f"Received: preset={name!r}, whose file is {source}"
        )
    try:
        download(source, path)
    except OSError as error:  # of sockets, of HTTP and of the disk
        if os.path.isfile(path + ".part"):
            raise ValueError(
                f"The download of {name} broke off. What has arrived is kept: call again, and it "
                f"resumes. Received: preset={name!r} ({_first_line(error)})"
            ) from error
        raise ValueError(
            f"{missing}, and {source} cannot be reached. {away} "
            f"Received: preset={name!r} ({_first_line(error)})"
        ) from error


# === Folders ===


def _folder(folder: str, preset: str, entry: dict | None = None) -> str:
    """A folder of keras-hub's kind, checked; one of transformers or timm is converted."""
    check_links(folder)
    config = os.path.join(folder, "config.json")
    if os.path.isfile(config):
        with open(config, encoding="utf-8") as file:
            try:
                content = json.load(file)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"config.json is damaged: it is not valid JSON ({error}). "
                    f"Received: preset={preset!r}"
                ) from error
        # transformers names a type of models, timm an architecture.
        theirs = isinstance(content, dict) and {"model_type", "architecture"} & content.keys()
        if theirs and "class_name" not in content:
            return _converted(folder, entry or {})
    check_folder(folder)
    return folder


# Where keras and keras-hub keep what may stand in a configuration.
_MODULES = ("keras", "keras_hub", "keras_ssl", "builtins")


def check_folder(folder: str) -> None:
    """Refuses a preset whose files name other code or files outside their folder.

    Raises:
        ValueError: the message names the file and the entry.
    """
    from keras_ssl import weight_files

    check_links(folder)
    for path in weight_files.weight_paths(folder):
        weight_files.tensors(path)
    for name, content in read_json_files(folder):
        if name.endswith(".weights.json"):
            shard_map = content.get("weight_map") if isinstance(content, dict) else None
            for shards in shard_map.values() if isinstance(shard_map, dict) else ():
                for shard in shards if isinstance(shards, list) else [shards]:
                    inside(folder, shard)
        _check_config(content, folder, name)
        if name in ("config.json", "task.json"):
            _check_sizes(content, folder, name)


def read_json_files(folder: str):
    """Names and contents of a folder's JSON files; the loader that needs a damaged one says so."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(".json") and os.path.isfile(path):
            with contextlib.suppress(ValueError, RecursionError):
                with open(path, encoding="utf-8") as file:
                    content = json.load(file)
                yield name, content


def _check_sizes(value, folder: str, name: str) -> None:
    """Refuses sizes that the folder's files cannot hold, before anything is allocated for them."""
    held = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
    for key, number in _numbers(value, ""):
        if abs(number) > max(held, 2**20) and "seed" not in key:
            raise ValueError(
                f"{name} is damaged: {key} is larger than all files of the preset. "
                f"Received: {key}={number} in folder {folder!r}"
            )


def largest_numbers(config, most: int = 4) -> str:
    """The largest sizes of a configuration, for a message."""
    found = {pair for pair in _numbers(config, "") if "seed" not in pair[0]}
    largest = sorted(found, key=lambda pair: -pair[1])[:most]
    return ", ".join(f"{key}={number}" for key, number in largest)


def _numbers(value, key):
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else ((key, child) for child in value)
        for inner, child in pairs:
            yield from _numbers(child, inner)
    elif isinstance(value, int):
        yield key, value


def _check_config(value, folder: str, name: str) -> None:
    if isinstance(value, list):
        for child in value:
            _check_config(child, folder, name)
    if not isinstance(value, dict):
        return
    if "class_name" in value and isinstance(value.get("module"), str):
        module = value["module"].split(".")[0]
        registered = str(value.get("registered_name") or "")
        if module not in _MODULES or value["class_name"] == "Lambda":
            import keras

            if keras.saving.get_registered_object(registered) is None:
                raise ValueError(
                    f"{name} names the class {value['class_name']!r} of the module "
                    f"{value['module']!r}: a preset may name classes of keras, keras_hub and "
                    "keras_ssl, and those that you have registered. "
                    f"Received: folder {folder!r}"
                )
    for key in ("config_file", "weights_file"):
        if isinstance(value.get(key), str):
            inside(folder, value[key])
    for child in value.values():
        _check_config(child, folder, name)


# === Conversion ===


def _cache() -> str:
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    return os.path.join(home, "keras_ssl")


# What is kept of older ones is made again. Raise it where a conversion would come out otherwise.
CONVERSION = 2


def _fingerprint(source: str, entry: dict) -> str:
    """What a conversion depends on: which files, their sizes and times, and how they are read."""
    real = os.path.realpath(source)
    paths = [source, source + ".index"]
    if os.path.isdir(source):
        paths = [os.path.join(source, name) for name in sorted(os.listdir(source))]
    facts = [CONVERSION, real, sorted(_how(entry).items())]
    for path in paths:
        if os.path.isfile(path):
            stat = os.stat(path)
            facts.append((os.path.basename(path), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _converted(source: str, entry: dict) -> str:
    """The folder that a released folder or file becomes, made on first use."""
    name = re.sub(r"[^\w.-]+", "_", os.path.basename(os.path.normpath(source)))
    folder = os.path.join(_cache(), "converted", f"{name}-{_fingerprint(source, entry)}")
    if not os.path.isfile(os.path.join(folder, "source.json")):
        try:
            convert_official(source, folder, **_how(entry))
        except OSError as error:
            raise ValueError(
                f"The preset that {source!r} becomes cannot be written to {folder!r}. Make room "
                "there, or set the environment variable KERAS_HOME to a folder that can be "
                f"written to. Received: KERAS_HOME={os.environ.get('KERAS_HOME')!r} "
                f"({_first_line(error)})"
            ) from error
    return folder


def _how(entry: dict) -> dict:
    """What of a registry's entry a conversion depends on."""
    return {key: entry[key] for key in ("layout", "options", "preprocessing") if key in entry}


def convert_official(
    source: str,
    folder: str,
    layout: str | None = None,
    options: dict | None = None,
    preprocessing: dict | None = None,
):
    """Writes the preset that a released folder or file becomes.

    Args:
        source: a folder in the layout of transformers or of timm, or a file as for
            `keras_ssl.converters.from_official`.
        folder: where to write.
        layout: of a file; recognised when `None`.
        options: of a file's backbone, where the file does not tell.
        preprocessing: of `preprocessor_for`, where the source has none of its own; the layout's
            when `None`.

    Returns:
        The `LoadReport`.

    Raises:
        ValueError: the source is nothing known or does not fit, or no preset can hold it.
    """
    from keras_ssl import converters
    from keras_ssl.converters.transformers import read_json
    from keras_ssl.layers.image_converter import preprocessor_for

    preprocessor = None
    if os.path.isdir(source):
        of_timm = "architecture" in (read_json(source, "config.json") or {})
        read = converters.from_timm if of_timm else converters.from_transformers
        model, preprocessor, report = read(source)
    else:
        model, report = converters.from_official(source, layout, **options or {})
    if preprocessor is None and preprocessing is not None:
        preprocessor = preprocessor_for(**preprocessing)
    save_converted(model, folder, source, report, preprocessor)
    return report


def save_converted(model, folder: str, source: str, report, preprocessor=None) -> None:
    """Writes a model with loaded weights as a preset that knows what its source lacked.

    Args:
        model: a method, or an encoder alone.
        folder: where to write; it also gets a `source.json`, which says what came from where.
        source: what the weights were read from.
        report: the `LoadReport`.
        preprocessor: how the source makes pictures ready; as its layout does when `None`.

    Raises:
        ValueError: no preset can hold the model.
    """
    from keras_ssl import converters
    from keras_ssl.layers.image_converter import (
        default_preprocessor,
        hub_preprocessor,
        preprocessor_for,
    )
    from keras_ssl.models.preset_io import check_room_for

    if not hasattr(model, "save_to_preset"):
        raise ValueError(
            "The file holds an encoder that no class of keras_hub expresses, so it cannot be a "
            "preset by itself: model, report = keras_ssl.converters.from_official(path), then "
            f"build a method over it. Received: {source!r}"
        )
    if preprocessor is None:
        known = converters.official_preprocessing(model, report.layout)
        preprocessor = known and preprocessor_for(**known)
    whole = hasattr(model, "backbone")  # a method, not an encoder alone
    if whole and preprocessor is not None:
        model.preprocessor = preprocessor
    with replacing(folder) as new:
        check_room_for(model, os.path.dirname(os.path.abspath(folder)))
        model.save_to_preset(new)
        if not whole:
            preprocessor = preprocessor or default_preprocessor(model)
            hub_preprocessor(model, preprocessor).save_to_preset(new)
        described = {
            "source": source,
            "missing": report.missing,
            "ignored": report.ignored,
            "left": report.left,
        }
        with open(os.path.join(new, "source.json"), "w", encoding="utf-8") as file:
            json.dump(described, file, indent=2)


def warn_of_new_parts(parts: list[str], preset) -> None:
    """Says which parts of a model the preset did not have."""
    if parts:
        shown = ", ".join(parts[:12]) + (f" and {len(parts) - 12} more" if len(parts) > 12 else "")
        warnings.warn(
            f"The preset {os.fspath(preset)!r} does not hold these parts, which are new: {shown}. "
            "Train them with the encoder frozen first (docs/presets.md).",
            stacklevel=3,
        )


@contextlib.contextmanager
def clear_errors(source, name: str = "preset"):
    """What is raised of damaged files by whatever reads them, as a ValueError that names them.

    Args:
        source: the preset or file.
        name: of the argument that it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (ValueError, OSError)) and "Received" in str(error):
            raise
        what = str(error).rstrip()
        if not isinstance(error, ValueError):  # of something that no one checked
            what = (
                f"A file is damaged, or an argument does not fit ({type(error).__name__}: {what})"
            )
        if not isinstance(source, (str, os.PathLike)):
            source = type(source).__name__
        raise ValueError(
            f"{what}{'' if what.endswith('.') else '.'} Received: {name}={os.fspath(source)!r}"
        ) from error
