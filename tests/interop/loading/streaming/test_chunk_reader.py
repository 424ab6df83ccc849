"""Strided views of storages are read chunk by chunk into a reused buffer."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest

from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.loading.streaming.chunk_reader import Reader, chunks
from jaxllm.interop.rules.boxes import slices

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def random_bits(shape: Sequence[int], seed: int) -> np.ndarray:
    """Returns random bits, which include NaNs."""
    return np.random.default_rng(seed).integers(0, 2**16, shape, np.uint16).view(BFLOAT16)


def strided_views() -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns shapes and strides, in elements, of views of a 6 x 8 PyTorch storage."""
    return {
        "contiguous": ((6, 8), (8, 1)),
        "transposed": ((8, 6), (1, 8)),
        "every second row": ((3, 8), (16, 1)),
        "columns": ((6, 3), (8, 1)),
        "expanded": ((5, 8), (0, 1)),
        "three, permuted": ((4, 2, 6), (2, 1, 8)),
        "a number": ((), ()),
        "nothing": ((0, 8), (8, 1)),
    }


@pytest.mark.parametrize("view", strided_views())
@pytest.mark.parametrize("max_bytes", [1, 10, 24, 1000])
def test_strided_views_are_read_in_chunks(tmp_path, view, max_bytes):
    shape, strides = strided_views()[view]
    storage = random_bits((6, 8), 0)
    (tmp_path / "file").write_bytes(b"1234" + storage.tobytes())
    tensor = StoredTensor("w", BFLOAT16, shape, tmp_path / "file", 4, strides)
    expected = tensor.read()
    found = np.zeros(shape, BFLOAT16)
    with Reader() as reader:
        for box in chunks(tensor, max_bytes):
            found[slices(box)] = reader.read(tensor, box)
            assert reader.memory.nbytes <= max(max_bytes, 2) or view in ("columns",)
    assert found.tobytes() == expected.tobytes()


def test_truncated_file_is_reported(tmp_path):
    (tmp_path / "file").write_bytes(b"1" * 30)
    tensor = StoredTensor("w", BFLOAT16, (16,), tmp_path / "file", 4)
    with Reader() as reader, pytest.raises(CheckpointError, match="'w': the file ends 6 bytes"):
        reader.read(tensor, [(0, 16)])
