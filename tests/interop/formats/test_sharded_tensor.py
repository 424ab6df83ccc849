"""A tensor in chunks reads as if it lay in one place; chunks that do not make one are refused."""

import chex
import numpy as np
import pytest

from jaxllm.interop.formats.sharded_tensor import Chunk, join
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

WHOLE = np.arange(48, dtype=np.float32).reshape(6, 8)


@pytest.fixture
def chunks(tmp_path):
    """Four chunks of 4 x 3 and what is left, each in a file of its own."""
    found = []
    for number, (rows, columns) in enumerate(
        (rows, columns) for rows in ((0, 4), (4, 6)) for columns in ((0, 3), (3, 8))
    ):
        part = np.ascontiguousarray(WHOLE[slice(*rows), slice(*columns)])
        path = tmp_path / str(number)
        path.write_bytes(part.tobytes())
        stored = StoredTensor(str(number), part.dtype, part.shape, path, 0)
        found.append(Chunk((rows[0], columns[0]), stored))
    return found


def test_any_box_is_read_from_the_chunks_that_have_it(chunks, tmp_path):
    tensor = join("w", (6, 8), tmp_path, chunks)
    assert tensor.nbytes == WHOLE.nbytes
    for box in ([(0, 6), (0, 8)], [(3, 5), (2, 4)], [(5, 6), (7, 8)]):
        chex.assert_trees_all_equal(tensor.read(box), WHOLE[tuple(slice(*b) for b in box)])


def test_rows_are_a_tensor_of_their_own(chunks, tmp_path):
    rows = join("w", (6, 8), tmp_path, chunks).rows("w#k", 3, 2)
    chex.assert_trees_all_equal(rows.read([(0, 2), (0, 8)]), WHOLE[3:5])


def test_what_is_no_tensor_is_refused(chunks, tmp_path):
    with pytest.raises(CheckpointError, match="have 38 of 48 elements"):
        join("w", (6, 8), tmp_path, chunks[:3])
    with pytest.raises(CheckpointError, match="overlap"):
        join("w", (6, 8), tmp_path, [*chunks, chunks[0]])
    with pytest.raises(CheckpointError, match="reaches beyond"):
        join("w", (6, 7), tmp_path, chunks)
    with pytest.raises(CheckpointError, match="one dtype, not none"):
        join("w", (6, 8), tmp_path, [])
