"""Old names of modules: each can be imported, and has what the present ones have."""

import importlib
import sys

import pytest

from jaxllm import interop
from jaxllm.compatibility import moved_modules
from jaxllm.compatibility.moved_modules import MOVED
from jaxllm.interop.loading import plan as loading_plan


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_present_modules(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=rf"{old} is now {MOVED[old][0]}"):
        module = importlib.import_module(old)
    for present in MOVED[old]:
        contents = vars(importlib.import_module(present))
        public = {name: value for name, value in contents.items() if not name.startswith("_")}
        assert public
        assert {name: getattr(module, name) for name in public} == public


def test_no_old_name_hides_a_present_module():
    for old in MOVED:
        package, _, name = old.rpartition(".")
        folder = importlib.import_module(package).__path__[0]
        assert not importlib.machinery.PathFinder.find_spec(name, [folder])


def test_an_old_name_does_not_replace_the_function_of_that_name():
    sys.modules.pop("jaxllm.interop.plan", None)
    with pytest.warns(DeprecationWarning, match="is now jaxllm.interop.loading.plan"):
        from jaxllm.interop.plan import Plan
    assert interop.plan is loading_plan.plan
    assert interop.Plan is Plan


def test_a_divided_module_can_be_imported_from():
    sys.modules.pop("jaxllm.train.text", None)
    with pytest.warns(DeprecationWarning, match="is now jaxllm.train.data.text and jaxllm.tok"):
        from jaxllm.train.text import load_tokenizer, text_documents

    assert load_tokenizer(None).vocab_size == 256
    assert callable(text_documents)


def test_other_names_are_still_missing():
    moved_modules.install()
    assert sum(type(finder).__name__ == "_Finder" for finder in sys.meta_path) == 1
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("jaxllm.train.nothing")
