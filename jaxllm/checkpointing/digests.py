"""Digests of arrays, as sums over their elements: equal on every mesh, and computed in parts.

Each 32-bit word of an array is mixed with its position by the finalizer of MurmurHash3 (Appleby,
2011), which is a bijection of 32 bits, and the results are added modulo 2^32. So a change of a
single word is always noticed. Two such sums with different positions make 64 bits, so any other
change is missed with a probability of about 2^-64.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from jaxllm.sharding import to_host

POSITION_FACTORS = (0x9E3779B1, 0x7FEB352D)  # odd, one for each sum
BLOCK_WORDS = 1 << 16  # words at a time on the host, so that intermediate results stay in the cache

Box = Sequence[tuple[int, int]]  # a (start, stop) range per dimension
Sums = np.ndarray  # uint32, one sum for each of POSITION_FACTORS


def digest_arrays(arrays: Mapping[str, Array]) -> dict[str, str]:
    """Returns the digests of arrays; if they span processes, all processes must call this.

    Devices other than CPUs add up their own elements, so that nothing is copied to the host.
    """
    sums = {name: _sums(x) for name, x in arrays.items()}  # all are dispatched before a wait
    own = np.array([to_host(pair) for pair in sums.values()], np.uint32)
    shared = [name for name, x in arrays.items() if _is_summed_by_processes(x)]
    if shared:
        rows = [list(arrays).index(name) for name in shared]
        own[rows] = np.sum(multihost_utils.process_allgather(own[rows]), axis=0, dtype=np.uint32)
    return {name: to_text(pair) for name, pair in zip(arrays, own, strict=True)}


def _sums(x: Array) -> Any:
    return _shard_sums(x) if x.platform() == "cpu" else _device_sums(x)


def _is_summed_by_processes(x: Array) -> bool:
    return x.platform() == "cpu" and not x.is_fully_addressable


def _shard_sums(x: Array) -> Sums:
    """Returns what the shards of this process contribute; of replicas, only the first does."""
    total = zero_sums()
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            ranges = zip(shard.index, x.shape, strict=True)
            box = [part.indices(size)[:2] for part, size in ranges]
            total += part_sums(np.asarray(shard.data), box, x.shape)
    return total


def part_sums(part: np.ndarray, box: Box, shape: Sequence[int]) -> Sums:
    """Returns what a part of an array contributes to the sums of the whole.

    Args:
        part: the elements in the box.
        box: where they are in the array.
        shape: the shape of the whole array.
    """
    words, starts = _host_words(part), [start for start, _ in box]
    shape = (*shape, *words.shape[part.ndim :])
    words, starts = np.atleast_1d(words), [*starts, *[0] * (words.ndim - len(starts))] or [0]
    strides = [math.prod(shape[dim + 1 :]) for dim in range(words.ndim)]
    total = zero_sums()
    for block in _blocks(words.shape):
        position = np.zeros((1,) * len(block), np.uint32)
        for dim, along in enumerate(block):
            index = np.arange(along.start, along.stop, dtype=np.uint64) + starts[dim]
            spread = (-1, *(1,) * (len(block) - 1 - dim))
            position = position + (index * strides[dim]).astype(np.uint32).reshape(spread)
        mixed = _mix(words[block].astype(np.uint32), position)
        total += np.stack([np.sum(each, dtype=np.uint32) for each in mixed])
    return total


def _blocks(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yields the blocks of an array, each of at most BLOCK_WORDS elements."""
    # The first dimension whose slices fit is cut into ranges; those before it, into single indices.
    cut = next(dim for dim in range(len(shape)) if math.prod(shape[dim + 1 :]) <= BLOCK_WORDS)
    step = BLOCK_WORDS // max(math.prod(shape[cut + 1 :]), 1)
    for index in np.ndindex(*shape[:cut]):
        for start in range(0, shape[cut], step):
            rows = slice(start, min(start + step, shape[cut]))
            whole = (slice(0, size) for size in shape[cut + 1 :])
            yield *(slice(i, i + 1) for i in index), rows, *whole


def zero_sums() -> Sums:
    """Returns the sums of an array without elements."""
    return np.zeros(len(POSITION_FACTORS), np.uint32)


def to_text(sums: Sums) -> str:
    """Returns sums as a digest: 16 hexadecimal digits."""
    return "".join(f"{int(value):08x}" for value in sums)


def digest_json(data: Any) -> str:
    """Returns the BLAKE2b hash of plain data, which is the same after a round trip through JSON."""
    text = json.dumps(json.loads(json.dumps(data)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@jax.jit
def _device_sums(x: Array) -> Array:
    words = _device_words(x)
    position = jnp.zeros((), jnp.uint32)
    for dim in range(words.ndim):
        stride = jnp.uint32(math.prod(words.shape[dim + 1 :]) % 2**32)
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim) * stride
    return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32) for mixed in _mix(words, position)])


def _mix(words: Any, position: Any) -> Iterator[Any]:
    """Yields the mixed words for each sum; the same for JAX and for NumPy."""
    for factor in POSITION_FACTORS:
        x = words + position * np.uint32(factor)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x85EBCA6B)
        x ^= x >> np.uint32(13)
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
        yield x


def _device_words(x: Array) -> Array:
    """Returns the bits of each element as one 32-bit word, or as several along a last dimension."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.kind == "c":
        x = jnp.stack([x.real, x.imag], axis=-1)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}"))
    return bits.astype(jnp.uint32)


def _host_words(x: np.ndarray) -> np.ndarray:
    """Returns the same words as `_device_words`, narrow ones not yet as 32 bits."""
    size = x.dtype.itemsize
    words = np.ascontiguousarray(x).reshape(-1).view(np.dtype(f"<u{min(size, 4)}"))
    return words.reshape((*x.shape, size // 4)[: None if size > 4 else x.ndim])
