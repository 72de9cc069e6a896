"""Every Python block of the README and of docs/ runs, in order, as a reader would run it.

A fence opened with ```python notest is for what needs a network or hours; it is only compiled.
"""

import pathlib
import re
import tarfile

import keras
import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(python[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder such as a reader has: photos in class folders, and an archive of small ones."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 256, (40, 48, 3), "uint8")
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    with tarfile.open("cifar10.tar.gz", "w:gz") as archive:
        for part in ("train", "test"):
            archive.add(tmp_path / "photos" / part, part)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks(page, reader):
    keras.utils.set_random_seed(0)
    namespace = {"__name__": "__main__"}
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    for kind, code in blocks:
        program = compile(code, f"{page.name}: {code.strip().splitlines()[0]}", "exec")
        if "notest" not in kind:
            exec(program, namespace)


def test_there_are_pages_with_code():
    assert (ROOT / "README.md").exists() and len(PAGES) > 1
    assert all(FENCE.search(page.read_text(encoding="utf-8")) for page in PAGES)


def test_pictures_and_links_exist():
    for page in PAGES + [ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"
