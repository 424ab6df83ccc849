"""Places of tensors in files, and the text of checkpoint errors."""

import os
from pathlib import Path

import chex
import numpy as np
import pytest

from jaxllm.interop.formats.stored_tensor import (
    CheckpointError,
    StoredTensor,
    checked_shape,
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
    chex.assert_trees_all_equal(np.array(turned.read()), ARRAY.T)
    chex.assert_trees_all_equal(np.array(turned.rows("t#k", 2, 3).read()), ARRAY.T[2:5])


def test_rows_form_a_tensor(tensor):
    rows = tensor.rows("w#k", 1, 2)
    assert (rows.name, rows.shape) == ("w#k", (2, 6))
    chex.assert_trees_all_equal(np.array(rows.read()), ARRAY[1:3])


def test_every_box_of_any_layout_is_read(tmp_path):
    """Also where rows of the box are pages apart in the file, and where strides skip elements."""
    wide = np.arange(7 * 9000, dtype=np.int16).reshape(7, 9000)
    (tmp_path / "wide").write_bytes(b"head" + wide.tobytes())
    tensor = StoredTensor("w", wide.dtype, wide.shape, tmp_path / "wide", 4)
    turned = StoredTensor("t", wide.dtype, wide.T.shape, tmp_path / "wide", 4, strides=(1, 9000))
    sparse = StoredTensor("s", wide.dtype, (7, 4500), tmp_path / "wide", 4, strides=(9000, 2))
    for box in ([(0, 7), (0, 9000)], [(1, 6), (3, 5)], [(6, 7), (8999, 9000)], [(2, 2), (0, 5)]):
        (a, b), (c, d) = box
        np.testing.assert_array_equal(tensor.read(box), wide[a:b, c:d])
        np.testing.assert_array_equal(turned.read(box[::-1]), wide.T[c:d, a:b])
    np.testing.assert_array_equal(sparse.read(), wide[:, ::2])


def test_a_file_that_was_truncated_is_an_error(tensor):
    """A memory map would end the process with SIGBUS."""
    os.truncate(tensor.path, 40)
    with pytest.raises(CheckpointError, match=r"x: tensor 'w': the file ends 12 bytes early"):
        tensor.read()
    assert tensor.read([(0, 3), (0, 6)]).tolist() == ARRAY[:3].tolist()


@pytest.mark.parametrize("shape", ["23", [1.0], [-1], [True], [1] * 65, [2**40, 2**40], None])
def test_invalid_shape_is_rejected(shape):
    with pytest.raises(CheckpointError):
        checked_shape(shape, np.dtype(np.float32))
    assert checked_shape([2, 0, 3], np.dtype(np.float32)) == (2, 0, 3)


def test_error_prints_one_problem_per_line():
    assert str(CheckpointError(["a", "b"])) == "a\nb"
    assert str(CheckpointError(["a", "b"], Path("x"))) == "x:\n  a\n  b"
    assert CheckpointError("a").problems == ("a",)
