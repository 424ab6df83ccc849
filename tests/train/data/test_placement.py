"""Batch placement: the rows that a process reads and their sharding over a mesh."""

import jax
import numpy as np
import pytest

from jaxllm.train.data import placement
from jaxllm.train.data.placement import on_mesh, own_rows
from jaxllm.train.mesh import make_mesh


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "tensor": 4}, {"tensor": 8}])
def test_a_single_process_reads_every_row(sizes):
    np.testing.assert_array_equal(own_rows(make_mesh(**sizes), 16), np.arange(16))


class OneOfTwo:
    """A sharding of rows as the first of two processes sees it: its devices hold some parts."""

    def __init__(self, *parts: slice):
        self.parts = dict(enumerate([(part,) for part in parts]))

    def addressable_devices_indices_map(self, _: object) -> dict:
        return self.parts


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        ([slice(0, 2), slice(2, 4)], [0, 1, 2, 3]),
        ([slice(6, 8), slice(0, 2)], [0, 1, 6, 7]),  # the mesh may order devices in any way
        ([slice(0, 4), slice(0, 4)], [0, 1, 2, 3]),  # replicated over the tensor axis
        ([slice(None)], list(range(8))),
    ],
)
def test_a_process_reads_the_rows_that_its_devices_hold(monkeypatch, parts, rows):
    monkeypatch.setattr(placement, "named_sharding", lambda *_: OneOfTwo(*parts))
    np.testing.assert_array_equal(own_rows(make_mesh(data=8), 8), rows)


def test_the_expert_axis_splits_rows_where_it_divides_them():
    mesh = make_mesh(fsdp=2, expert=4)
    for batch_size, rows in ((8, 1), (4, 2)):
        placed = on_mesh({"mask": np.arange(batch_size)}, mesh, batch_size)["mask"]
        assert {shard.data.shape for shard in placed.addressable_shards} == {(rows,)}
        np.testing.assert_array_equal(jax.device_get(placed), np.arange(batch_size))


def test_rows_are_sharded_over_data_and_fsdp_and_replicated_over_tensor():
    batch = {"tokens": np.arange(40).reshape(8, 5), "mask": np.ones((8, 4), bool)}
    placed = on_mesh(batch, make_mesh(data=2, fsdp=2, tensor=2), 8)
    assert placed.keys() == batch.keys()
    for name, array in placed.items():
        np.testing.assert_array_equal(jax.device_get(array), batch[name])
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {2}
    starts = [shard.index[0].start for shard in placed["tokens"].addressable_shards]
    assert sorted(starts) == [0, 0, 2, 2, 4, 4, 6, 6]
