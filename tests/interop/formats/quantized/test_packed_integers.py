"""Packed integers: any box of what a loop over bits unpacks."""

from pathlib import Path

import numpy as np
import pytest

from jaxllm.interop.formats.quantized.packed_integers import PackedIntegers, num_words
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import slices

ROWS, COUNT = 3, 70


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("axis", [0, 1])
def test_any_box_is_unpacked(tmp_path, bits, axis):
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 2**bits, (ROWS, COUNT), np.uint64)
    each_bit = (values[..., None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    stream = np.zeros((ROWS, 32 * num_words(COUNT, bits)), np.uint8)
    stream[:, : COUNT * bits] = each_bit.reshape(ROWS, -1)
    words = np.packbits(stream, axis=1, bitorder="little").view(np.int32)
    words, expected = (words, values) if axis else (words.T, values.T)
    packed = PackedIntegers(on_disk(tmp_path / "words", words), bits, axis)
    for box in ([(0, n) for n in expected.shape], [(1, 3), (1, 2)], [(2, 3), (2, 3)]):
        found = packed.read(box)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected[slices(box)])
    low, high = 33, 65
    box = [(0, ROWS), (low, high)] if axis else [(low, high), (0, ROWS)]
    np.testing.assert_array_equal(packed.read(box), expected[slices(box)])


def on_disk(path: Path, words: np.ndarray) -> StoredTensor:
    path.write_bytes(words.tobytes())
    return StoredTensor("words", words.dtype, words.shape, path, 0)
