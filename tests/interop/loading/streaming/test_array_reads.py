"""Array reads: dtypes and places of arrays, copies, and warnings on numbers that do not fit."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import save_file

from jaxllm.interop.families import RuleTable
from jaxllm.interop.formats.safetensors_file import read_header
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.streaming.array_reads import ArrayReads, plan_arrays, read_arrays
from jaxllm.interop.rules.rule import Rule

RULES = (
    Rule("{L}.w : A B", "w : L B A"),
    Rule("{R}.n : A", "n : A", replicated="R"),
    Rule("head : A", "head : A"),
)
SIZES = {"L": 2, "A": 3, "B": 4, "R": 2}
TABLE = RuleTable(RULES, SIZES, tied={"copy": "head"})


def draw(*shape, dtype=np.float32):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def make(tmp_path, dtype=None, **changes):
    norm = draw(3)
    arrays = {"0.w": draw(3, 4), "1.w": 2 * draw(3, 4), "0.n": norm, "1.n": norm}
    arrays |= {"head": 3 * norm, "copy": 3 * norm, **changes}
    save_file(arrays, tmp_path / "x.safetensors")
    tensors = read_header(tmp_path / "x.safetensors")
    bound = TABLE.bound({})
    device = jax.devices()[3]
    planned = plan_arrays(
        bound,
        tensors,
        lambda name: SingleDeviceSharding(device),
        lambda name, stored: np.dtype(dtype or {"w": np.float16}.get(name, stored)),
    )
    return arrays, ArrayReads(TABLE, bound, tensors, planned, 1 << 20)


def test_each_array_is_read_in_its_own_dtype_onto_its_own_device(tmp_path):
    arrays, plan = make(tmp_path)
    found = read_arrays(plan)
    expected = np.stack([arrays["0.w"].T, arrays["1.w"].T]).astype(np.float16)
    np.testing.assert_array_equal(found["w"], expected)
    np.testing.assert_array_equal(found["n"], arrays["0.n"])
    assert {x.devices().pop() for x in found.values()} == {jax.devices()[3]}
    assert plan.dtype_changes == {"w": ("float32", "float16")}
    assert plan.bytes_by_device == {str(jax.devices()[3]): 2 * 24 + 4 * 6}
    assert 0 < plan.window_bytes <= 1 << 20


def test_copies_are_listed_with_their_originals_and_not_read(tmp_path):
    _, plan = make(tmp_path)
    assert set(plan.copies()) == {("copy", "head"), ("1.n", "0.n")}
    assert {read.tensor.name for read in plan.reads()} == {"0.w", "1.w", "0.n", "head"}


def test_an_array_of_tensors_of_two_dtypes_is_refused(tmp_path):
    message = "w is stored partly as float16 and float32: choose one with dtype= (--dtype)"
    save_file({"0.w": draw(3, 4), "1.w": draw(3, 4, dtype=np.float16)}, tmp_path / "x.safetensors")
    tensors = read_header(tmp_path / "x.safetensors")
    bound = RuleTable(RULES[:1], SIZES).bound({})
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        plan_arrays(bound, tensors, lambda name: None, lambda name, stored: stored)


def test_numbers_beyond_the_range_are_counted_for_the_arrays_of_that_dtype(tmp_path, caplog):
    large = draw(3, 4)
    large[1, 2], large[2, 2] = 1e9, -1e9
    _, plan = make(tmp_path, **{"1.w": large, "head": draw(3) + 1e9, "copy": draw(3)})
    found = read_arrays(plan)
    assert np.isfinite(found["w"]).all()
    assert float(found["head"].max()) > 1e8  # float32, as stored
    (message,) = [record.getMessage() for record in caplog.records]
    assert "1.w: 2 of 12, up to 1e+09" in message
    assert "head" not in message
