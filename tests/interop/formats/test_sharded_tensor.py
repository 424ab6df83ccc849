"""A chunked tensor reads like one in a single place; chunks that do not fit are rejected."""

import chex
import numpy as np
import pytest

from jaxllm.interop.formats.sharded_tensor import Chunk, join
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.loading.streaming.chunk_reader import Reader
from jaxllm.interop.loading.streaming.chunk_reader import chunks as boxes_of

WHOLE = np.arange(48, dtype=np.float32).reshape(6, 8)


@pytest.fixture
def chunks(tmp_path):
    """Returns the four chunks of a 2 x 2 split after row 4 and column 3, each in its own file."""
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


def test_any_box_is_assembled_from_the_chunks(chunks, tmp_path):
    tensor = join("w", (6, 8), tmp_path, chunks)
    assert tensor.nbytes == WHOLE.nbytes
    for box in ([(0, 6), (0, 8)], [(3, 5), (2, 4)], [(5, 6), (7, 8)]):
        chex.assert_trees_all_equal(tensor.read(box), WHOLE[tuple(slice(*b) for b in box)])


def test_a_reader_reads_its_chunks(chunks, tmp_path):
    """Chunks of the reader are boxes of the whole tensor, whatever file they come from."""
    tensor = join("w", (6, 8), tmp_path, chunks)
    assert (tensor.offset, tensor.element_strides, tensor.is_collective) == (0, (8, 1), False)
    with Reader() as reader:
        parts = [reader.read(tensor, box) for box in boxes_of(tensor, 64)]
    chex.assert_trees_all_equal(np.concatenate(parts), WHOLE)


def test_rows_form_a_tensor(chunks, tmp_path):
    rows = join("w", (6, 8), tmp_path, chunks).rows("w#k", 3, 2)
    chex.assert_trees_all_equal(rows.read([(0, 2), (0, 8)]), WHOLE[3:5])


def test_chunks_that_do_not_form_a_tensor_are_rejected(chunks, tmp_path):
    with pytest.raises(CheckpointError, match="have 38 of 48 elements"):
        join("w", (6, 8), tmp_path, chunks[:3])
    with pytest.raises(CheckpointError, match="overlap"):
        join("w", (6, 8), tmp_path, [*chunks, chunks[0]])
    with pytest.raises(CheckpointError, match="reaches beyond"):
        join("w", (6, 7), tmp_path, chunks)
    far = chunks[0]._replace(offsets=(2**63 - 1, 0))  # where it ends is no 64-bit number
    with pytest.raises(CheckpointError, match="reaches beyond"):
        join("w", (6, 8), tmp_path, [far, *chunks[1:]])
    with pytest.raises(CheckpointError, match="one dtype, not none"):
        join("w", (6, 8), tmp_path, [])
