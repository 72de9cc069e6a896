"""A few of the inputs of `tests/fuzz.py` on every run of the suite."""

import fuzz
import pytest


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return fuzz.Material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.__name__)
def test_taken_or_refused_in_clear_words(target, material):
    costly = target in (fuzz.presets, fuzz.folders, fuzz.preset_weights)
    fuzz.fuzz(target, material, examples=8 if costly else 60)
    assert sum(count for (name, _), count in fuzz.counts.items()) > 0
