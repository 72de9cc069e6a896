"""The wheel holds presets, data and licences, and works where it is installed."""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import venv
import zipfile

import h5py
import numpy as np
import pytest

import keras_ssl
from keras_ssl import presets

ROOT = pathlib.Path(__file__).parent.parent

CHECK = """
import json, os, keras, keras_ssl, numpy as np
home = os.path.dirname(os.path.abspath(keras_ssl.__file__))
assert home.startswith({home!r}), home
names = keras_ssl.list_presets()
assert names and all(p["path"].startswith(home) for p in names.values()), names
picture, found = np.load("picture.npy"), {{}}
for name in names:  # no network is reached: HF_HUB_OFFLINE, and no proxy leads anywhere
    model = keras_ssl.models.SSLTask.from_preset(name)
    assert all(v.dtype != "float16" for v in model.weights), name
    assert type(model).__name__ == names[name]["method"]
    found[name] = keras.ops.convert_to_numpy(model(picture))[0].tolist()
json.dump(found, open("found.json", "w"))
assert len(keras_ssl.datasets.load_emoji(styles=["noto"]).images) > 1000
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture
def train_zoo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("train_zoo")


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("keras_ssl/_presets/") and "task.json" in name for name in names)
    assert "keras_ssl/datasets/data/emoji64.zip" in names
    assert "keras_ssl_cli/main.py" in names
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"keras-ssl = keras_ssl_cli.main:main" in zipfile.ZipFile(wheel).read(entry)
    assert "keras_ssl/datasets/data/ATTRIBUTION.md" in names
    assert sum("license" in name.lower() for name in names) >= 3
    assert not any(name.startswith(("tests/", "benchmarks/", "examples/")) for name in names)


def test_installed_in_a_clean_environment(wheel, train_zoo, tmp_path):
    """An own environment that sees this one's libraries, but not the repository: every preset loads
    by its name and gives the embedding that the backend gave by which it was measured."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:  # what pip does with a pure wheel
        archive.extractall(site)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # Behind its own packages, and without the .pth files that lead to the repository.
    nowhere = "http://127.0.0.1:1"
    environment |= {"HF_HUB_OFFLINE": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *libraries])
    np.save(tmp_path / "picture.npy", train_zoo.ramps())
    result = subprocess.run(
        [home / "bin" / "python", "-c", CHECK.format(home=str(site))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == train_zoo.shipped().keys()
    for name, facts in train_zoo.shipped().items():
        expected = facts["embedding"]
        assert len(expected) == 16 and np.std(expected) > 0.01
        np.testing.assert_allclose(found[name][:16], expected, atol=1e-4, err_msg=name)


def test_what_ships_is_small_and_has_a_card():
    """What is there, how large it is, and that the cards say what was measured."""
    shipped = keras_ssl.list_presets()
    methods = "MAE DINO DINOv2 SimCLR MoCo MoCoV3 BYOL SimSiam BarlowTwins VICReg CLIP SigLIP ALIGN"
    assert {about["method"] for about in shipped.values()} >= set(methods.split())
    total = 0
    for name, about in shipped.items():
        folder = pathlib.Path(about["path"])
        assert presets.resolve_preset(name) == about["path"]
        total += sum(file.stat().st_size for file in folder.iterdir())
        card = (folder / "README.md").read_text()
        facts = json.loads((folder / "figures.json").read_text())
        assert facts["method"] == about["method"] and facts["name"] == name
        for figure, value in facts["figures"].items():
            assert f"**{100 * value:.1f} %**" in card, figure
            assert value > facts["untrained"][figure], figure  # it has learned
        assert {protocol["version"] for protocol in facts["protocols"]} == {"1"}
        with h5py.File(folder / "model.weights.h5") as file:
            kinds = set()
            file.visititems(
                lambda _, item, kinds=kinds: kinds.add(str(getattr(item, "dtype", "float16")))
            )
        assert kinds <= {"float16", "int32", "int64", "uint32"}, name
        assert (folder / "log.png").exists()
    assert total < 40e6


def test_the_table_of_presets(train_zoo):
    table = "\n".join(train_zoo.table(train_zoo.shipped()))
    for name, about in keras_ssl.list_presets().items():
        row = next(line for line in table.splitlines() if f"`{name}`" in line)
        assert about["method"] in row and f"{100 * about['figures']['knn']:.1f} %" in row
        assert name in train_zoo.ZOO
