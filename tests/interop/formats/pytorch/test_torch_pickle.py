"""Pickled state dicts are parsed without importing anything, and written for PyTorch."""

import os
import pickle

import numpy as np
import pytest

from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array
from jaxllm.interop.formats.pytorch.pickle_reader import Record
from jaxllm.interop.formats.pytorch.pickle_writer import Instance, Name, emit
from jaxllm.interop.formats.pytorch.storage_views import WRITABLE_DTYPES
from jaxllm.interop.formats.pytorch.torch_pickle import (
    Placed,
    as_view,
    emit_value,
    parse,
    parse_value,
)
from jaxllm.interop.formats.pytorch.torch_pickle import emit as emit_state_dict
from jaxllm.interop.formats.stored_tensor import CheckpointError


def source(dtype: object, shape: tuple[int, ...]) -> TensorSource:
    return from_array(np.zeros(shape, dtype))


def test_written_state_dict_is_parsed_in_order():
    tensors = {"b": source(np.float32, (2, 3)), "a": source(np.int64, ()), "c": source(bool, (0,))}
    views = {name: as_view(entry) for name, entry in parse(emit_state_dict(tensors)).items()}
    assert list(views) == ["b", "a", "c"]
    assert [view.storage.key for view in views.values()] == ["0", "1", "2"]
    for name, view in views.items():
        assert (view.dtype, view.shape, view.offset) == (
            tensors[name].dtype,
            tensors[name].shape,
            0,
        )
        assert view.is_contiguous
        assert view.storage.nbytes == tensors[name].nbytes


@pytest.mark.parametrize("dtype", sorted(WRITABLE_DTYPES, key=str), ids=str)
def test_every_writable_dtype_round_trips(dtype):
    view = as_view(parse(emit_state_dict({"w": source(dtype, (3, 5))}))["w"])
    assert (view.dtype, view.storage.nbytes) == (dtype, 15 * dtype.itemsize)


def test_tensors_take_their_places_inside_a_value():
    value = {"state": {0: {"step": Placed("s")}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]}
    found = parse_value(emit_value(value, {"s": source(np.float32, ())}))
    assert found["groups"] == value["groups"]
    assert as_view(found["state"][0]["step"]).shape == ()


class Call:
    """Pickles as the call of a function."""

    def __init__(self, *call: object):
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


def test_names_that_no_state_dict_needs_are_listed_and_not_called(tmp_path):
    marker = tmp_path / "executed"
    data = pickle.dumps({"a": Call(os.system, f"touch {marker}"), "b": Call(os.getcwd)})
    with pytest.raises(CheckpointError) as error:
        parse_value(data)
    assert [problem.split(",")[0].rpartition(".")[2] for problem in error.value.problems] == [
        "system",
        "getcwd",
    ]
    assert not marker.exists()


def test_known_names_become_the_given_records():
    class Kept(Record):
        state: object = None

        def __setstate__(self, state: object) -> None:
            self.state = state

    data = emit(Instance(Name("somewhere", "Thing"), {"x": 3}))
    found = parse_value(data, {("somewhere", "Thing"): Kept})
    assert type(found) is Kept
    assert found.state == {"x": 3}
    with pytest.raises(CheckpointError, match=r"the pickle names somewhere\.Thing"):
        parse_value(data)


@pytest.mark.parametrize("value", [[], 3, None, {1: None}])
def test_pickle_of_something_else_is_not_a_state_dict(value):
    with pytest.raises(CheckpointError, match="the pickle is not a state dict"):
        parse(pickle.dumps(value))


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps({"a": "text"})[:-3]])
def test_damaged_pickle_is_rejected(data):
    with pytest.raises(CheckpointError, match="damaged pickle: "):
        parse_value(data)


def test_integers_that_would_exhaust_memory_are_rejected():
    with pytest.raises(CheckpointError, match="integer too large at byte 3"):
        parse_value(b"\x80\x02Nr\xff\xff\xff\x7f.")


@pytest.mark.parametrize("entry", [None, True, 3, 0.1, "text", b"raw", Record()])
def test_entries_that_cannot_hold_tensors_have_no_view(entry):
    assert as_view(entry) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"wq": None, "wk": None}, "is a dictionary of 'wq', 'wk'"), ([1], "is a list, not a tensor")],
)
def test_nested_entries_are_rejected(entry, message):
    with pytest.raises(CheckpointError, match=message):
        as_view(entry)
