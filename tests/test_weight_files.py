"""Files of presets and of others that ask for too much, lead elsewhere, or are damaged."""

import io
import json
import os
import shutil
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
import torch
import toy

from keras_ssl import converters
from keras_ssl.backbones import ViTBackbone
from keras_ssl.models import MAE, ImageClassifier, SimCLR
from keras_ssl.presets import clear_errors, resolve_preset
from keras_ssl.safe_files import check_links
from keras_ssl.weight_files import no_more_than


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A preset, and an encoder in the transformers layout."""
    folder = tmp_path_factory.mktemp("made")
    toy.simclr().save_to_preset(folder / "own")
    model = toy.mae(toy.vit(position_embedding="sincos", initializer="mae"))
    model.save_to_preset(folder / "mae")
    converters.to_transformers(toy.vit(), folder / "hf")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return lambda kind: shutil.copytree(made / kind, tmp_path / kind)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# === Sizes ===

OWN_SIZES = [
    ("own", {"hidden_dim": 12000}),
    ("own", {"num_layers": 100_000}),
    ("own", {"mlp_dim": 10**6}),
    ("mae", {"image_shape": [400_000, 400_000, 3]}),  # of a table that is computed
]
THEIR_SIZES = [
    {"hidden_size": 400_000},
    {"intermediate_size": 10**9},
    {"num_hidden_layers": 10**6},
    {"image_size": 10**7},
]


@pytest.mark.parametrize("kind, change", OWN_SIZES)
def test_sizes_that_the_weights_do_not_have(copy, kind, change):
    folder = copy(kind)
    edit(folder / "config.json", lambda c: c["config"].update(change))
    edit(folder / "task.json", lambda c: c["config"]["backbone"]["config"].update(change))
    (name, size), begin = *change.items(), time.perf_counter()
    size = size[0] if isinstance(size, list) else size
    for cls in (ViTBackbone, MAE if kind == "mae" else SimCLR, ImageClassifier):
        with pytest.raises(ValueError, match=f"far larger than its weights.*{name}={size}"):
            cls.from_preset(str(folder), **({"num_classes": 2} if cls is ImageClassifier else {}))
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize("change", THEIR_SIZES)
def test_sizes_of_transformers_that_the_weights_do_not_have(copy, change):
    folder = copy("hf")
    edit(folder / "config.json", lambda c: c.update(change))
    ((name, size),) = change.items()
    with pytest.raises(ValueError, match=f"far larger than its weights.*{name}={size}"):
        converters.from_transformers(folder)


def test_what_the_weights_have_and_new_parts_are_built(made):
    add_weight = keras.Layer.add_weight
    classifier = ImageClassifier.from_preset(str(made / "own"), num_classes=100_000)
    assert classifier.num_classes == 100_000
    wide = ViTBackbone.from_preset(str(made / "own"), load_weights=False, hidden_dim=2048)
    assert wide.count_params() > 2**26  # new weights may have any size that is asked for
    with pytest.raises(ValueError, match="far larger"), no_more_than(0, 0, {}, "nothing"):
        keras.layers.Dense(2**13).build((None, 2**13))
    assert keras.Layer.add_weight is add_weight


# === HDF5 ===


def bias(file):
    """The path of a bias that all networks here have."""
    names = []
    file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
    return next(n for n in names if "projection/" in n and file[n].ndim == 1)


def replaced(value):
    def change(file, name, other):
        del file[name]
        file[name] = value

    return change


def external_link(file, name, other):
    del file[name]
    file[name] = h5py.ExternalLink(other, "/x")


def external_group(file, name, other):
    del file["blocks"]
    file["blocks"] = h5py.ExternalLink(other, "/")


def soft_link(file, name, other):
    file.move(name, "/moved")
    file[name] = h5py.SoftLink("/moved")


def virtual(file, name, other):
    del file[name]
    layout = h5py.VirtualLayout((16,), "float32")
    layout[:] = h5py.VirtualSource(other, "x", (16,))
    file.create_virtual_dataset(name, layout)


def raw_file(file, name, other):
    del file[name]
    file.create_dataset(name, (16,), "float32", external=[(other, 0, 64)])


def cycle(file, name, other):
    file["blocks/again"] = file["blocks"]


def sparse(file, name, other):
    del file[name]
    file.create_dataset(name, (2**30,), "float32", chunks=(2**20,), compression="gzip")


def missing(file, name, other):
    del file[name]


def not_finite(file, name, other):
    file[name][3] = np.nan


HDF5 = {
    external_link: "{name}' is a link",
    external_group: "/blocks' is a link",
    soft_link: "{name}' is a link",
    virtual: "{name}' keeps its numbers in another file",
    raw_file: "{name}' keeps its numbers in another file",
    cycle: "/blocks(/again)?' is a group under two names",
    sparse: r"would unpack to 4,29\d,\d+,\d+ bytes",
    missing: r"tensor '/{name}' is missing, the model needs \(16,\)",
    not_finite: "tensor '/{name}' holds NaN or infinity",
    replaced(np.zeros(8, "float32")): r"'/{name}' has shape \(8,\), the model needs \(16,\)",
    replaced(np.array([b"abc"] * 16)): "{name}' holds no numbers",
}


@pytest.mark.parametrize("change", HDF5, ids=[change.__name__ for change in HDF5])
def test_tensors_that_are_not_the_model_s_are_named(copy, tmp_path, change):
    folder, other = copy("own"), str(tmp_path / "other.h5")
    with h5py.File(other, "w") as file:
        file["x"] = np.ones(16, "float32")
    with h5py.File(folder / "model.weights.h5", "a") as file:
        name = bias(file)
        change(file, name, other)
    for cls in (ViTBackbone, SimCLR):
        with pytest.raises(ValueError, match=HDF5[change].format(name=name)) as error:
            cls.from_preset(str(folder))
        assert "model.weights.h5" in str(error.value)


def test_tensors_of_the_rest_of_a_model_are_named(copy, tmp_path):
    folder = copy("own")
    with h5py.File(folder / "task.weights.h5", "a") as file:
        name = "layers/projection_head/linears/dense/vars/0"
        name = name if name in file else next(n for n in paths(file) if file[n].ndim == 2)
        replaced(np.zeros((3, 3), "float32"))(file, name, None)
    with pytest.raises(ValueError, match=rf"task.weights.h5 does not fit.*\n.*'/{name}' has shape"):
        SimCLR.from_preset(str(folder))
    ViTBackbone.from_preset(str(folder))
    classifier = ImageClassifier(toy.vit(), 3)
    classifier.save_to_preset(tmp_path / "classifier")
    with h5py.File(tmp_path / "classifier" / "task.weights.h5", "a") as file:
        name = next(n for n in paths(file) if file[n].ndim == 2)
        replaced(np.zeros((3, 5), "float32"))(file, name, None)
    with pytest.raises(
        ValueError, match=rf"task.weights.h5 does not fit.*\n  tensor '/{name}' has shape"
    ):
        ImageClassifier.from_preset(str(tmp_path / "classifier"))


def paths(file):
    names = []
    file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
    return names


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_presets_of_other_dtypes(tmp_path, dtype):
    model = toy.vit(dtype=dtype)
    model.save_to_preset(tmp_path / "preset")
    loaded = ViTBackbone.from_preset(str(tmp_path / "preset"))
    for one, two in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(toy.to_numpy(one), toy.to_numpy(two).astype("float32"))


def test_many_files(made, tmp_path):
    """A sharded preset: the tensors of all of its files together."""
    model = toy.vit(num_layers=6, hidden_dim=64)
    model.save_to_preset(tmp_path / "sharded", max_shard_size=5e-4)
    assert len(list((tmp_path / "sharded").glob("*.h5"))) > 1
    loaded = ViTBackbone.from_preset(str(tmp_path / "sharded"))
    for one, two in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(toy.to_numpy(one), toy.to_numpy(two))
    path = sorted((tmp_path / "sharded").glob("*.h5"))[-1]
    with h5py.File(path, "a") as file:
        name = paths(file)[0]
        replaced(np.zeros((3, 3, 3), "float32"))(file, name, None)
    with pytest.raises(ValueError, match=f"'/{name}' has shape"):
        ViTBackbone.from_preset(str(tmp_path / "sharded"))


# === Safetensors, npz, PyTorch ===


def safetensors(path, entries, data):
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(shape=(4,), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


TWICE = b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2)
SAFETENSORS = {
    "dtype": ({"a": entry(dtype=["F32"])}, 16, "dtype that is not supported"),
    "deep": (b"[" * 200_000, 0, "not a JSON object"),
    "wraps to nothing": ({"a": entry((2**32, 2**32), (0, 0))}, 0, "'a' of shape .* does not fit"),
    "nothing, but huge": ({"a": entry((2**62, 4, 0), (0, 0))}, 0, "'a' has an impossible shape"),
    "axes": ({"a": entry((1,) * 100, (0, 4))}, 4, "'a' has an impossible shape"),
    "fraction": ({"a": entry((4.5,))}, 16, "'a' is malformed"),
    "truth": ({"a": entry((True, 4))}, 16, "'a' is malformed"),
    "overlap": ({"a": entry(), "b": entry(offsets=(8, 24))}, 24, "'b' does not begin where"),
    "hole": ({"a": entry(), "b": entry(offsets=(20, 36))}, 36, "'b' does not begin where"),
    "twice": (TWICE, 16, "not a JSON object with a name for each"),
    "trailing": ({"a": entry()}, 20, "bytes are left over"),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_safetensors_are_read_strictly(tmp_path, kind):
    entries, size, message = SAFETENSORS[kind]
    with pytest.raises(ValueError, match=message):
        converters.read_state_dict(safetensors(tmp_path / "a.safetensors", entries, bytes(size)))


def test_good_safetensors(tmp_path):
    entries = {
        "__metadata__": {"format": "pt"},
        "b": entry((2, 2), (16, 32)),
        "none": entry((0, 3), (16, 16)),
        "a": entry(),
    }
    data = np.arange(8, dtype="<f4").tobytes()
    found = converters.read_state_dict(safetensors(tmp_path / "a.safetensors", entries, data))
    np.testing.assert_array_equal(found["b"], [[4, 5], [6, 7]])
    assert found["none"].shape == (0, 3)


def npy_header(shape):
    file = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def test_npz_that_would_fill_the_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as file:
            file.write(npy_header((2**28 + 2**20,)))
            for _ in range(257):
                file.write(bytes(2**22))
    with pytest.raises(ValueError, match="would unpack to 1,07.*bytes from 1,0"):
        converters.read_state_dict(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("a.npy", npy_header((2**38,)) + bytes(64))
    with pytest.raises(ValueError, match="a.npy is shorter than its header says"):
        converters.read_state_dict(tmp_path / "lie.npz")
    np.savez_compressed(tmp_path / "zeros.npz", a=np.zeros(2**20, "float32"))
    assert converters.read_state_dict(tmp_path / "zeros.npz")["a"].size == 2**20


TENSORS = {
    "a sparse_coo": lambda: torch.sparse_coo_tensor([[0]], [1.0], (4,)),
    "a meta": lambda: torch.zeros(4, device="meta"),
    "a nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    r"shape=\(34359738368,\)": lambda: torch.zeros(1, dtype=torch.bfloat16).expand(2**35),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("kind", TENSORS)
def test_strange_tensors(tmp_path, kind):
    torch.save({"good": torch.ones(2), "odd": TENSORS[kind]()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"Entry 'odd' of .*a.pth .*Received: {kind}"):
        converters.read_state_dict(tmp_path / "a.pth")


OFFICIAL = {
    "pos_embed": [np.zeros(128), np.zeros((0, 0, 0))],
    "patch_embed.proj.weight": [np.zeros((128, 3))],
    "norm.weight": [np.full(128, 1e300), np.zeros((1, 128, 1))],
    "blocks.0.mlp.fc1.weight": [np.zeros(())],
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_tensors_of_other_shapes(tmp_path, name):
    encoder = toy.vit(hidden_dim=128, num_layers=1, num_heads=4)
    state = converters.to_official(encoder, "timm_vit")
    for array in OFFICIAL[name]:
        np.savez(tmp_path / "a.npz", **{**state, name: array})
        with pytest.raises(ValueError, match=f"(?s)'{name}'.*Received"):
            converters.from_official(tmp_path / "a.npz")


# === Configurations of transformers ===

VALUES = [
    ("hidden_size", "32"),
    ("hidden_size", -32),
    ("num_attention_heads", 0),
    ("num_hidden_layers", 1.5),
    ("image_size", [16]),
    ("image_size", {"height": 16}),
    ("layer_norm_eps", "x"),
    ("layer_norm_eps", float("nan")),
    ("qkv_bias", "no"),
    ("model_type", ["vit"]),
    ("hidden_act", ["gelu"]),
]


@pytest.mark.parametrize("name, value", VALUES)
def test_values_of_a_wrong_type(copy, name, value):
    folder = copy("hf")
    edit(folder / "config.json", lambda c: c.update({name: value}))
    with pytest.raises(ValueError, match=f"Received: {name}="):
        converters.from_transformers(folder)


@pytest.mark.parametrize(
    "described",
    [
        {"size": "big"},
        {"size": {"height": 10**7, "width": 10**7}},
        {"size": {"shortest_edge": -1}},
        {"image_mean": "x"},
        {"image_std": [0, 0, 0]},
        {"rescale_factor": "1/255"},
    ],
)
def test_preprocessing_that_is_none(copy, described):
    folder = copy("hf")
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="preprocessor_config.json: .*Received"):
        converters.from_transformers(folder)


def test_shards_that_are_no_names(copy):
    folder = copy("hf")
    os.remove(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    for shard in (["a"], 3, "../a.safetensors", "none.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(ValueError, match="Received"):
            converters.from_transformers(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"{"])
def test_configurations_that_are_no_json(copy, content):
    for kind in ("own", "hf"):
        folder = copy(kind)
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match="config.json is damaged.*Received"):
            ViTBackbone.from_preset(str(folder))


# === Links ===


@pytest.mark.parametrize("kind", ["own", "hf"])
def test_links_to_files_outside(copy, tmp_path, kind):
    folder = copy(kind)
    for name in ("config.json", "model.weights.h5" if kind == "own" else "model.safetensors"):
        shutil.move(folder / name, tmp_path / "outside")
        (folder / name).symlink_to(tmp_path / "outside")
        with pytest.raises(ValueError, match=f"{name} is a link to '.*outside'"):
            ViTBackbone.from_preset(str(folder))
        os.remove(folder / name)
        shutil.move(tmp_path / "outside", folder / name)
    (folder / "assets").symlink_to("/")
    with pytest.raises(ValueError, match="assets is a link to '/'"):
        resolve_preset(str(folder))


def test_links_inside_and_in_the_hub_s_cache(made, tmp_path):
    """A folder that is itself reached by a link; a link to a neighbour; the hub's own storage."""
    version = tmp_path / "models--us--own" / "snapshots" / "abc"
    shutil.copytree(made / "own", version)
    (version.parent.parent / "blobs").mkdir()
    for i, path in enumerate(sorted(version.iterdir())):
        if path.is_file():
            path.rename(version.parent.parent / "blobs" / str(i))
            path.symlink_to(f"../../blobs/{i}")
    (version / "again.json").symlink_to("config.json")
    (tmp_path / "short").symlink_to(version)
    assert ViTBackbone.from_preset(str(tmp_path / "short")).num_layers == 2
    (version / "other.json").symlink_to("../../../secret")
    with pytest.raises(ValueError, match="other.json is a link"):
        check_links(version)


# === What is said ===


def test_what_does_not_fit_is_said_first(made):
    with pytest.raises(ValueError) as error, clear_errors("name"):
        raise ValueError("these do not fit")
    assert str(error.value) == "these do not fit. Received: preset='name'"
    with pytest.raises(ValueError, match=r"damaged.*KeyError: 'a'.*Received: path='name'"):
        with clear_errors("name", "path"):
            {}["a"]
    with pytest.raises(ValueError) as error:
        ViTBackbone.from_preset(str(made / "own"), num_heads=3)
    assert "damaged" not in str(error.value)
    assert str(error.value).startswith("`num_heads` must divide `hidden_dim`")
