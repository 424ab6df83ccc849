"""Overrides are undone at the end of their block, also after an error."""

import os

import pytest
from torch import nn

from jaxllm.interop.parity.alignment.references.overrides import attribute, environment


class Parent:
    size = 1

    @staticmethod
    def name():
        return "parent"


class Child(Parent):
    pass


def test_an_attribute_of_an_object_is_restored():
    linear = nn.Linear(2, 3)
    with attribute(linear, "in_features", 7):
        assert linear.in_features == 7
    assert linear.in_features == 2


def test_a_new_attribute_is_deleted():
    linear = nn.Linear(2, 3)
    with attribute(linear, "note", "mine"):
        assert linear.note == "mine"
    assert not hasattr(linear, "note")


def test_an_inherited_attribute_stays_inherited():
    with attribute(Child, "size", 2):
        assert (Child.size, Parent.size) == (2, 1)
    assert "size" not in vars(Child)
    assert Child.size == 1


def test_a_static_method_stays_a_static_method():
    with attribute(Parent, "name", lambda: "other"):
        assert Parent.name() == "other"
    assert isinstance(vars(Parent)["name"], staticmethod)
    assert Parent().name() == "parent"


def test_an_attribute_is_restored_after_an_error():
    with pytest.raises(RuntimeError), attribute(Parent, "size", 5):
        raise RuntimeError
    assert Parent.size == 1


@pytest.mark.parametrize("before", [None, "0"])
def test_an_environment_variable_is_restored(before, monkeypatch):
    monkeypatch.delenv("JAXLLM_SOME", raising=False)
    if before is not None:
        monkeypatch.setenv("JAXLLM_SOME", before)
    with environment("JAXLLM_SOME", "1"):
        assert os.environ["JAXLLM_SOME"] == "1"
    assert os.environ.get("JAXLLM_SOME") == before
