"""Shards filled part by part equal the array, on CPUs and on accelerators."""

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxllm.interop.loading.streaming.device_buffers import (
    DeviceShardBuffers,
    HostShardBuffers,
    Part,
    make_shard_buffers,
)
from jaxllm.interop.loading.streaming.device_shards import list_shards
from jaxllm.interop.rules.pattern import Side

SIDE, SIZES = Side.parse("w : D (N H)"), {"D": 4, "N": 2, "H": 3}
WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.fixture
def sharding() -> NamedSharding:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec("a", "b"))


@pytest.mark.parametrize("kind", [HostShardBuffers, DeviceShardBuffers])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_are_filled_part_by_part(sharding, kind, dtype):
    shards = list_shards(SIDE, SIZES, sharding)
    buffers = kind(shards, np.dtype(dtype))
    for number, shard in enumerate(shards):
        for region in shard.regions:
            for h in range(3):  # an element of each head at a time
                ranges = {**region, "H": (h, h + 1)}
                at = tuple(slice(*ranges[axis]) for axis in ("D", "N", "H"))
                numbers = WHOLE.reshape(4, 2, 3)[at]
                buffers.write([Part(number, region, ranges, ("D", "N", "H"), numbers)])
    found = jax.make_array_from_single_device_arrays((4, 6), sharding, buffers.arrays())
    assert found.dtype == dtype
    chex.assert_trees_all_equal(np.asarray(found, np.float32), WHOLE)


@pytest.mark.parametrize("kind", [HostShardBuffers, DeviceShardBuffers])
def test_overflow_is_clamped_and_counted(sharding, kind):
    shards = list_shards(SIDE, SIZES, sharding)
    buffers, given = kind(shards, np.dtype(np.float16)), WHOLE.copy()
    given[1, 2], given[3, 0], given[2, 5], given[0, 1] = 7e4, -1e30, np.inf, np.nan
    for number, shard in enumerate(shards):
        for region in shard.regions:
            at = tuple(slice(*region[axis]) for axis in ("D", "N", "H"))
            numbers = given.reshape(4, 2, 3)[at]
            buffers.write([Part(number, region, region, ("D", "N", "H"), numbers)])
    found = jax.make_array_from_single_device_arrays((4, 6), sharding, buffers.arrays())
    expected = given.copy()
    expected[1, 2], expected[3, 0] = 65504, -65504
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)
    assert buffers.overflows == 2


def test_cpu_arrays_are_assembled_on_the_host(sharding):
    assert isinstance(
        make_shard_buffers(SIDE, SIZES, np.dtype(np.float32), sharding), HostShardBuffers
    )
