"""Fills each device shard in place from streamed chunks; no full array is ever on the host."""

import math
import threading
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Sharding

from jaxllm.interop.rules.axis_ranges import Ranges, Sizes, select_ranges
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.strided_copy import copy_bits
from jaxllm.numerics.narrowing import clamp

from .device_shards import Shard, list_shards

ALIGNMENT = 64  # bytes; on a CPU, jax adopts memory with this alignment instead of copying it


class Part(NamedTuple):
    """Part of a shard, in a buffer that is reused as soon as the part has been written."""

    shard: int  # index of the shard
    region: Ranges  # the region of the shard that contains `ranges`
    ranges: Ranges  # the range of each axis
    axes: Sequence[str]  # the dimensions of `numbers`
    numbers: np.ndarray


class ShardBuffers(Protocol):
    """The shards of an array that are being filled, for its devices.

    Attributes:
        shards: the shards.
        overflows: positive if finite numbers were beyond the range of the dtype and were clamped.
        zeroed: how many numbers became zero in the dtype.
    """

    shards: Sequence[Shard]
    overflows: int
    zeroed: int

    def write(self, parts: Sequence[Part]) -> None:
        """Copies parts into the shards; several threads may call it at once."""

    def arrays(self) -> list[jax.Array]:
        """Returns the finished shards, one for each device."""


class HostShardBuffers:
    """An array on CPUs: each shard is filled in host memory, which jax then adopts."""

    def __init__(self, shards: Sequence[Shard], dtype: np.dtype):
        self.shards, self.dtype = shards, dtype
        self.overflows = self.zeroed = 0
        self.lock = threading.Lock()
        self.memory = [_aligned(shard.shape, dtype) for shard in shards]

    def write(self, parts: Sequence[Part]) -> None:
        """See `ShardBuffers`."""
        for part in parts:
            shard = self.shards[part.shard]
            held = self.memory[part.shard][shard.locate(part.region)]
            into = select_ranges(held, shard.side.array_axes, part.region, part.ranges, part.axes)
            if part.numbers.dtype == self.dtype:
                copy_bits(part.numbers, into)
            else:
                into[...], count, zeroed = clamp(_copy(part.numbers), self.dtype)
                with self.lock:
                    self.overflows, self.zeroed = self.overflows + count, self.zeroed + zeroed

    def arrays(self) -> list[jax.Array]:
        """See `ShardBuffers`."""
        return [
            jax.device_put(memory, device)
            for shard, memory in zip(self.shards, self.memory, strict=True)
            for device in shard.devices
        ]


class DeviceShardBuffers:
    """An array on accelerators: each part is transferred and written into its shard there."""

    def __init__(self, shards: Sequence[Shard], dtype: np.dtype):
        self.shards, self.dtype = shards, dtype
        self.overflows = self.zeroed = 0
        self.lock = threading.Lock()
        self.values: dict[jax.Device, jax.Array] = {}
        self.locks = [threading.Lock() for _ in shards]

    def write(self, parts: Sequence[Part]) -> None:
        """See `ShardBuffers`."""
        for part in parts:
            shard = self.shards[part.shard]
            numbers = _copy(part.numbers)  # jax may still use the buffer after the call returns
            if numbers.dtype != self.dtype:
                clamped, count, zeroed = clamp(numbers, self.dtype)
                # Without overflow the device casts by itself, which is faster.
                numbers = clamped if count else numbers
                with self.lock:
                    self.overflows, self.zeroed = self.overflows + count, self.zeroed + zeroed
            for ranges in shard.contiguous(part.ranges):
                place = shard.locate(ranges)
                inner = select_ranges(numbers, part.axes, part.ranges, ranges, part.axes)
                shape = tuple(to.stop - to.start for to in place)
                with self.locks[part.shard]:
                    self._write(shard, place, inner.reshape(shape))

    def arrays(self) -> list[jax.Array]:
        """See `ShardBuffers`."""
        return [self.values[device] for shard in self.shards for device in shard.devices]

    def _write(self, shard: Shard, place: Sequence[slice], block: np.ndarray) -> None:
        if block.shape != shard.shape and block.dtype == self.dtype:
            block = block.view(_bits(self.dtype))  # float ops may change the payload of a NaN
        starts = tuple(np.int32(to.start) for to in place)
        for device in shard.devices:
            sent = jax.device_put(block, device)
            if block.shape == shard.shape:
                self.values[device] = sent.astype(self.dtype)
                continue
            if device not in self.values:
                self.values[device] = jax.numpy.empty(shard.shape, self.dtype, device=device)
            self.values[device] = _written(self.values[device], sent, starts)
        # The block stays in host memory until it has been written, so wait to bound memory.
        jax.block_until_ready([self.values[device] for device in shard.devices])


def make_shard_buffers(
    side: Side, sizes: Sizes, dtype: np.dtype, sharding: Sharding
) -> ShardBuffers:
    """Returns the unfilled buffers of an array for the devices of `sharding`.

    Args:
        side: the array's name and dimensions.
        sizes: the size of each axis.
        dtype: of the array.
        sharding: where the array is to be placed.
    """
    shards = list_shards(side, sizes, sharding)
    on_cpu = all(device.platform == "cpu" for shard in shards for device in shard.devices)
    return (HostShardBuffers if on_cpu else DeviceShardBuffers)(shards, dtype)


@partial(jax.jit, donate_argnums=0)
def _written(whole: jax.Array, part: jax.Array, starts: tuple[int, ...]) -> jax.Array:
    bits = _bits(whole.dtype)
    if part.dtype != bits:
        part = jax.lax.bitcast_convert_type(part.astype(whole.dtype), bits)
    held = jax.lax.bitcast_convert_type(whole, bits)
    held = jax.lax.dynamic_update_slice(held, part, starts)
    return jax.lax.bitcast_convert_type(held, whole.dtype)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns memory that jax can adopt; the system allocates its pages when they are written."""
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)


def _copy(part: np.ndarray) -> np.ndarray:
    """Returns a copy in C order."""
    ordered = np.empty(part.shape, part.dtype)
    copy_bits(part, ordered)
    return ordered


def _bits(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"u{dtype.itemsize}")
