"""Shards are the boxes that devices hold, split into ranges of a rule's axes."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxllm.interop.loading.streaming.device_shards import list_shards
from jaxllm.interop.rules.pattern import Side

SIDE, SIZES = Side.parse("w : D (N H)"), {"D": 8, "N": 4, "H": 6}


def sharding(*spec) -> NamedSharding:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec(*spec))


@pytest.mark.parametrize(
    ("spec", "count", "shape"),
    [
        ((), 1, (8, 24)),
        (("a",), 4, (2, 24)),
        (("b", "a"), 8, (4, 6)),
        ((None, ("a", "b")), 8, (8, 3)),
    ],
)
def test_shards_are_distinct_and_cover_the_array(spec, count, shape):
    shards = list_shards(SIDE, SIZES, sharding(*spec))
    assert len(shards) == count
    assert sum(len(shard.devices) for shard in shards) == 8
    covered = np.zeros((8, 24), int)
    for shard in shards:
        assert shard.shape == shape
        covered[tuple(slice(*bounds) for bounds in shard.box)] += 1
    assert (covered == 1).all()


def test_ranges_overlap_only_the_shards_that_hold_them():
    shards = list_shards(SIDE, SIZES, sharding(None, "a"))  # a head each
    wanted = {"D": (2, 5), "N": (1, 3), "H": (0, 6)}
    met = {shard.box[1]: [common for _, common in shard.overlaps(wanted)] for shard in shards}
    assert met == {
        (0, 6): [],
        (6, 12): [{"D": (2, 5), "N": (1, 2), "H": (0, 6)}],
        (12, 18): [{"D": (2, 5), "N": (2, 3), "H": (0, 6)}],
        (18, 24): [],
    }


def test_ranges_are_split_until_contiguous():
    [shard] = list_shards(SIDE, SIZES, sharding())
    parts = list(shard.contiguous({"D": (0, 8), "N": (1, 3), "H": (2, 5)}))
    assert [shard.locate(part) for part in parts] == [
        (slice(0, 8), slice(8, 11)),
        (slice(0, 8), slice(14, 17)),
    ]
