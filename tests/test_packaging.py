"""The wheel holds presets, data and licences, and works where it is installed."""

import os
import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest

import keras_ssl
from keras_ssl import presets

ROOT = pathlib.Path(__file__).parent.parent

CHECK = """
import os, keras_ssl, numpy as np
home = os.path.dirname(os.path.abspath(keras_ssl.__file__))
assert home.startswith({home!r}), home
names = keras_ssl.list_presets()
assert names and all(p["path"].startswith(home) for p in names.values()), names
model = keras_ssl.models.SSLTask.from_preset(sorted(names)[0])
print(model.predict(np.zeros((2, 32, 32, 3), "uint8"), verbose=0).shape)
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


def test_installed_in_a_clean_environment(wheel, tmp_path):
    """An own environment that sees this one's libraries, but not the repository."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:  # what pip does with a pure wheel
        archive.extractall(site)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # Behind its own packages, and without the .pth files that lead to the repository.
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *libraries])
    result = subprocess.run(
        [home / "bin" / "python", "-c", CHECK.format(home=str(site))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "(2," in result.stdout


def test_shipped_presets_load_here():
    shipped = keras_ssl.list_presets()
    assert shipped
    for name, description in shipped.items():
        assert presets.resolve_preset(name) == description["path"]
        model = getattr(keras_ssl.models, description["method"]).from_preset(name)
        assert model.count_params() > 0
