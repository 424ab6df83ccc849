"""Files from before PyTorch 1.6 are read without PyTorch, and nothing in them is run."""

import pickle

import numpy as np
import pytest
import torch

from jaxllm.interop.formats.pytorch.saved import legacy_file
from jaxllm.interop.formats.pytorch.torch_zip import read_value as read_zip_value
from jaxllm.interop.formats.stored_tensor import CheckpointError

OLD = {"_use_new_zipfile_serialization": False}


def save(path, value):
    torch.save(value, path, **OLD)
    return path


@pytest.fixture
def state():
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    return {
        "whole": base,
        "view": base[1:4, 2:],
        "transposed": base.T,
        "half": torch.randn(7).half(),
        "bfloat16": torch.randn(3, 2).bfloat16(),
        "double": torch.randn(4, dtype=torch.float64),
        "long": torch.arange(9),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


def test_every_tensor_has_its_bits(tmp_path, state):
    path = save(tmp_path / "x", {**state, "step": 3})
    assert legacy_file.is_legacy(path)
    found = legacy_file.read_header(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        read = found[name].read()
        expected = tensor.detach()
        assert (read.shape, read.dtype.name) == (tuple(expected.shape), str(expected.dtype)[6:])
        bits = expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert np.ascontiguousarray(read).tobytes() == bits, name
    assert found["view"].path == path


def test_a_trainers_dictionary_is_unwrapped(tmp_path, state):
    path = save(tmp_path / "x", {"epoch": 3, "state_dict": state})
    assert list(legacy_file.read_header(path)) == list(state)


def test_a_whole_value_is_read_as_from_a_zip(tmp_path):
    value = {"state": {0: {"exp_avg": torch.randn(3), "step": 5}}, "param_groups": [{"lr": 0.1}]}
    torch.save(value, tmp_path / "new")
    with (tmp_path / "new").open("rb") as stream:
        new = read_zip_value(stream, tmp_path / "new")
    path = save(tmp_path / "old", value)
    with path.open("rb") as stream:
        old = legacy_file.read_value(stream, path)
    assert old["param_groups"] == new["param_groups"]
    one, other = (found["state"][0]["exp_avg"].read() for found in (old, new))
    np.testing.assert_array_equal(one, other)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_is_run(tmp_path, capsys):
    path = save(tmp_path / "x", {"a": torch.ones(2), "b": Evil()})
    with pytest.raises(CheckpointError, match=r"names (__builtin__|builtins)\.print.*was executed"):
        legacy_file.read_header(path)
    assert capsys.readouterr().out == ""


def problem(path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        legacy_file.read_header(path)
    return str(error.value)


def test_damage_is_described(tmp_path):
    path = save(tmp_path / "x", {"a": torch.ones(300)})
    data = path.read_bytes()
    assert (
        f"cut short: {len(data) - 900:,} of {len(data):,} bytes are there; download it again"
        in problem(path, data[:-900])
    )
    assert "damaged pickle" in problem(path, data[:60])
    size = (300).to_bytes(8, "little")
    assert "has 299 elements, but should have 300" in problem(
        path, data.replace(size, (299).to_bytes(8, "little"))
    )
    big = pickle.dumps({"protocol_version": 1001, "little_endian": False, "type_sizes": {}}, 2)
    assert "byte order is not little-endian" in problem(path, legacy_file.MAGIC + big)
    torch.save({}, path)
    assert not legacy_file.is_legacy(path)
