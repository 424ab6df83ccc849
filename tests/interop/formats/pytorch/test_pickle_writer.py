"""Python's own unpickler reads the pickles that are written opcode by opcode."""

import collections
import io
import pickle
import pickletools

import pytest

from jaxllm.interop.formats.pytorch.pickle_writer import (
    ORDERED_DICT,
    Call,
    Dictionary,
    Instance,
    Name,
    StoredElsewhere,
    emit,
)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1, 255, 70000, -(2**31), 2**40, 1.5, "text", ""),
        *((), (1,), (1, "a", None, 4), [1, 2], [], {"a": {"b": 2}}, {1: (True, False)}),
    ],
)
def test_plain_values_round_trip(value):
    data = emit(value)
    assert pickle.loads(data) == value
    assert type(pickle.loads(data)) is type(value)
    pickletools.dis(data, io.StringIO())  # raises if the stack is unbalanced


def test_calls_and_class_names_are_written():
    called = Call(Name("builtins", "complex"), (1, 2))
    assert pickle.loads(emit(called)) == 1 + 2j
    assert pickle.loads(emit(Name("collections", "OrderedDict"))) is collections.OrderedDict
    ordered = pickle.loads(emit(Dictionary([("b", 1), ("a", 2)], ORDERED_DICT)))
    assert type(ordered) is collections.OrderedDict
    assert list(ordered.items()) == [("b", 1), ("a", 2)]


def test_instance_gets_its_state():
    made = pickle.loads(emit(Instance(Name("types", "SimpleNamespace"), {"x": 3})))
    assert made.x == 3


def test_external_record_is_requested_by_its_persistent_id():
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid):
            return f"found {pid}"

    data = emit([StoredElsewhere(("storage", 7))])
    assert Unpickler(io.BytesIO(data)).load() == ["found ('storage', 7)"]
