"""Writing and reading preset folders: whole or not at all, and nothing but plain data."""

import contextlib
import json
import os

import h5py
import keras
import keras_hub
import numpy as np

from keras_ssl.presets import clear_errors, resolve_preset, warn_of_new_parts
from keras_ssl.safe_files import check_room, replacing
from keras_ssl.training.replicas import alone
from keras_ssl.training.saving import file_size, saved_variables
from keras_ssl.training.subclassed import without_optimizer
from keras_ssl.weight_files import load_preset, load_task_weights, within_files

_WEIGHTS = (".weights.h5", ".weights.json")


def save(model, preset_dir, write, storage_dtype=None, **kwargs) -> None:
    """Writes a preset beside its folder and lets it take the folder's place.

    Args:
        model: what is saved; its optimizer is left out.
        preset_dir: the folder. Its other files (a model card) are kept.
        write: `write(folder, **kwargs)`, keras-hub's own `save_to_preset`.
        storage_dtype: see `SSLTask.save_to_preset`.
        **kwargs: of `write`.

    Raises:
        OSError: there is no room for the preset.
    """
    if storage_dtype not in (None, "float16"):
        raise ValueError(
            f'`storage_dtype` must be "float16" or None. Received: storage_dtype={storage_dtype!r}'
        )
    with replacing(preset_dir, stale=_WEIGHTS) as new, without_optimizer(model), alone():
        check_room_for(model, os.path.dirname(os.path.abspath(preset_dir)))
        write(new, **kwargs)
        encoder = getattr(model, "embedding_backbone", model)
        if encoder not in (model, model.backbone):
            _write_encoder(encoder, new, **kwargs)
        for name in os.listdir(new) if storage_dtype else ():
            if name.endswith(".weights.h5"):
                _halve(os.path.join(new, name))


def _write_encoder(encoder, folder, max_shard_size) -> None:
    """Puts the weights of an encoder in the place of the backbone's."""
    whole = os.path.join(folder, "model.weights.h5")
    if os.path.exists(whole):
        encoder.save_weights(whole)
    else:
        encoder.save_weights(whole.replace(".h5", ".json"), max_shard_size=max_shard_size)


def check_room_for(model, folder) -> None:
    """Sees to it that the preset of a model or a backbone has room in a folder.

    Raises:
        OSError: it has none.
    """
    backbone = getattr(model, "backbone", None)
    parts = [saved_variables(model, without=backbone)]
    parts += [] if backbone is None else [saved_variables(backbone)]
    check_room(folder, *map(file_size, parts))


def _halve(path: str) -> None:
    """Rewrites a weight file with its float32 tensors rounded to float16.

    What Keras loads is cast to the dtype of the variable, so nothing else need know. A tensor that
    float16 cannot hold stays as it is. One that is there under several names, as a model with a
    teacher has them, is stored once.
    """
    largest, stored = np.finfo("float16").max, {}

    def copy(source, target):
        target.attrs.update(source.attrs)
        for name, item in source.items():
            if isinstance(item, h5py.Group):
                copy(item, target.create_group(name))
                continue
            array = item[()]
            if array.dtype == "float32" and not (np.abs(array) > largest).any():
                array = array.astype("float16")
            content = (str(array.dtype), array.shape, array.tobytes(), repr(dict(item.attrs)))
            if content in stored:
                target[name] = stored[content]  # a link: HDF5 has the tensor once
                continue
            stored[content] = target.create_dataset(name, data=array)
            stored[content].attrs.update(item.attrs)

    check_room(os.path.dirname(path), os.path.getsize(path))
    with h5py.File(path, "r") as source, h5py.File(path + ".half", "w") as target:
        copy(source, target)
    os.replace(path + ".half", path)


def load_task(cls, preset, load_weights: bool, kwargs: dict):
    """The self-supervised model of a preset, with its whole state; see `SSLTask.from_preset`."""
    folder = resolve_preset(preset)
    source = {}
    if os.path.isfile(os.path.join(folder, "source.json")):
        source = read_json(folder, "source.json", preset)
    if source and not os.path.exists(os.path.join(folder, "task.json")):
        return _around_encoder(cls, folder, preset, load_weights, kwargs)
    config = read_json(folder, "task.json", preset)
    saved_cls = keras.saving.get_registered_object(str(config.get("registered_name")))
    if not isinstance(saved_cls, type) or not issubclass(saved_cls, cls):
        raise ValueError(
            f"The preset holds a {config.get('class_name')}, which is not a {cls.__name__}. "
            f"Load it with that class, or take its backbone: "
            f"{cls.__name__}(backbone=keras_hub.models.Backbone.from_preset(...)). "
            f"Received: preset={preset!r}"
        )
    if "backbone" in kwargs:
        raise ValueError(
            "`backbone` cannot be replaced while a preset is loaded; build "
            f"{saved_cls.__name__}(backbone=...) instead."
        )
    dtype = kwargs.pop("dtype", None)
    if dtype is not None:
        dtype = keras.dtype_policies.serialize(keras.dtype_policies.get(dtype))
    with clear_errors(preset):
        for key in ("backbone", "text_backbone"):
            if dtype is not None and key in config["config"]:
                config["config"][key]["config"]["dtype"] = dtype
        # With new weights, arguments may make the model as large as they like.
        limited = load_weights or not kwargs
        with within_files(folder) if limited else contextlib.nullcontext():
            task = saved_cls.from_config({**config["config"], **kwargs})
    if load_weights:
        asked = getattr(task, "predict_with", None)
        if asked is not None:  # whose weights were written as the encoder's
            task.predict_with = config["config"]["predict_with"]
        load_task_weights(task, folder)
        if asked is not None:
            task.predict_with = asked
        warn_of_new_parts(source.get("missing", []), preset)
    return task


def _around_encoder(cls, folder, preset, load_weights, kwargs):
    """A method over released weights that are an encoder alone: everything else is new."""
    if "backbone" in kwargs:
        raise ValueError(
            f"`backbone` cannot be replaced while a preset is loaded; build "
            f"{cls.__name__}(backbone=...) instead."
        )
    if cls.__name__ == "SSLTask":
        raise ValueError(
            "The preset holds an encoder alone. Load it with a method's class, or with "
            f"keras_hub.models.Backbone. Received: preset={preset!r}"
        )
    options = {"dtype": kwargs.pop("dtype")} if "dtype" in kwargs else {}
    backbone = load_preset(keras_hub.models.Backbone.from_preset, folder, load_weights, **options)
    if "preprocessor" not in kwargs:
        with clear_errors(preset):
            read = keras_hub.models.ImageClassifierPreprocessor.from_preset
            kwargs["preprocessor"] = read(folder)
    task = cls(backbone, **kwargs)
    if load_weights:
        known = {id(v) for v in backbone.weights}
        teacher = getattr(task, "teacher_backbone", None)  # copied from the encoder
        known |= {id(v) for v in teacher.weights} if teacher is not None else set()
        new = [v.path for v in task.trainable_variables if id(v) not in known]
        warn_of_new_parts(new, preset)
    return task


def load_preprocessor(folder, preset):
    """The preprocessor that lies in a folder, of whatever class, or None."""
    if not os.path.exists(os.path.join(folder, "preprocessor.json")):
        return None
    return keras.saving.deserialize_keras_object(read_json(folder, "preprocessor.json", preset))


def read_json(folder, name, preset):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        raise ValueError(
            f"This is no preset of a self-supervised model: {name} is missing. "
            f"Received: preset={preset!r}"
        )
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} is damaged: it is not valid JSON. Received: preset={preset!r} ({error})"
        ) from error
