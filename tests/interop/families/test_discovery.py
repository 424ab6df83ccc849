"""The families of a package are found wherever its modules define them, in the wanted order."""

import sys
from importlib import import_module

import pytest

from jaxllm.interop.families.discovery import families_in

MODULE = """
import dataclasses
from jaxllm.interop import families
ONE, TWO = (dataclasses.replace(families.FAMILIES[0], name=name) for name in {names!r})
SEVERAL, OTHER = (TWO,), ("text", 3)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    for path, names in {"zebra": ("z1", "z2"), "inner/ant": ("a1", "a2")}.items():
        file = tmp_path / "planted" / f"{path}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(MODULE.format(names=names))
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("planted")
    for name in [name for name in sys.modules if name.partition(".")[0] == "planted"]:
        del sys.modules[name]


def test_families_are_found_in_order(package):
    assert [family.name for family in families_in(package)] == ["a1", "a2", "z1", "z2"]
    assert [family.name for family in families_in(package, ["z2", "a2"])][:3] == ["z2", "a2", "a1"]


def test_a_first_family_that_does_not_exist_is_an_error(package):
    with pytest.raises(ValueError, match="no family of planted is named a9"):
        families_in(package, ["a9"])
