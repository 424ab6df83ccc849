"""Unsigned integers of a few bits, packed without gaps into words of 32 bits along an axis."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box

WORD = 32  # bits


class PackedIntegers(NamedTuple):
    """A matrix of packed integers, of which any box can be read.

    Attributes:
        tensor: the words.
        bits: of an integer.
        axis: the axis along which integers are packed.
        order: the place of each integer in its word, if they are not in order.
    """

    tensor: StoredTensor
    bits: int
    axis: int
    order: Sequence[int] = ()

    def read(self, box: Box) -> np.ndarray:
        """Reads a box of the integers, as int32."""
        low, high = box[self.axis]
        count = len(self.order) or WORD  # integers that fill whole words
        begin = low // count * count
        end = -(-high // count) * count if self.order else high
        words = list(box)
        words[self.axis] = begin * self.bits // WORD, -(-end * self.bits // WORD)
        packed = np.moveaxis(self.tensor.read(words), self.axis, -1).view(np.uint32)
        found = _unpack(packed, self.bits, end - begin)
        if self.order:
            groups = found.reshape(*found.shape[:-1], -1, count)
            found = groups[..., list(self.order)].reshape(found.shape)
        return np.moveaxis(found[..., low - begin : high - begin], -1, self.axis)


def num_words(count: int, bits: int) -> int:
    """Returns how many words `count` integers fill."""
    return -(-count * bits // WORD)


def _unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpacks the first `count` integers of each row."""
    start = np.arange(count) * bits
    word, shift = start // WORD, (start % WORD).astype(np.uint32)
    found = words[..., word] >> shift
    (split,) = np.nonzero(shift + bits > WORD)  # its high bits are in the next word
    if split.size:
        found[..., split] |= words[..., word[split] + 1] << (WORD - shift[split])
    return (found & np.uint32((1 << bits) - 1)).astype(np.int32)
