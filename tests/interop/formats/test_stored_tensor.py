"""Places of tensors in files, and the text of checkpoint errors."""

from pathlib import Path

import chex
import numpy as np
import pytest

from jaxllm.interop.formats.stored_tensor import (
    CheckpointError,
    StoredTensor,
    checked_shape,
    parse_json,
)

ARRAY = np.arange(24, dtype=np.int16).reshape(4, 6)


@pytest.fixture
def tensor(tmp_path) -> StoredTensor:
    (tmp_path / "x").write_bytes(b"head" + ARRAY.tobytes())
    return StoredTensor("w", ARRAY.dtype, ARRAY.shape, tmp_path / "x", 4)


def test_box_is_read_from_the_tensor_place(tensor):
    assert tensor.nbytes == 48
    assert tensor.element_strides == (6, 1)
    chex.assert_trees_all_equal(np.array(tensor.read([(1, 3), (2, 6)])), ARRAY[1:3, 2:6])


def test_strides_count_elements(tensor):
    turned = StoredTensor("t", tensor.dtype, (6, 4), tensor.path, 4, strides=(1, 6))
    chex.assert_trees_all_equal(np.array(turned.open()), ARRAY.T)
    chex.assert_trees_all_equal(np.array(turned.rows("t#k", 2, 3).open()), ARRAY.T[2:5])


def test_rows_form_a_tensor(tensor):
    rows = tensor.rows("w#k", 1, 2)
    assert (rows.name, rows.shape) == ("w#k", (2, 6))
    chex.assert_trees_all_equal(np.array(rows.open()), ARRAY[1:3])


def test_opened_tensor_is_read_only(tensor):
    with pytest.raises(ValueError, match="read-only"):
        tensor.open()[0] = 1


@pytest.mark.parametrize("shape", ["23", [1.0], [-1], [True], [1] * 65, [2**40, 2**40], None])
def test_invalid_shape_is_rejected(shape):
    with pytest.raises(CheckpointError):
        checked_shape(shape, np.dtype(np.float32))
    assert checked_shape([2, 0, 3], np.dtype(np.float32)) == (2, 0, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "the JSON is not an object"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' occurs more than once"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_text_that_is_not_a_json_object_is_rejected(text, expected):
    with pytest.raises(CheckpointError, match=expected):
        parse_json(text)


def test_error_prints_one_problem_per_line():
    assert str(CheckpointError(["a", "b"])) == "a\nb"
    assert str(CheckpointError(["a", "b"], Path("x"))) == "x:\n  a\n  b"
    assert CheckpointError("a").problems == ("a",)
