"""Batch placement: the rows that a process reads and their sharding over a mesh."""

import jax
import numpy as np
import pytest

from jaxllm.train.data.placement import on_mesh, share_of
from jaxllm.train.mesh import make_mesh


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "tensor": 4}, {"tensor": 8}])
def test_a_single_process_reads_every_row(sizes):
    assert share_of(make_mesh(**sizes)) == {"rank": 0, "world": 1}


def test_rows_are_sharded_over_data_and_fsdp_and_replicated_over_tensor():
    batch = {"tokens": np.arange(40).reshape(8, 5), "mask": np.ones((8, 4), bool)}
    placed = on_mesh(batch, make_mesh(data=2, fsdp=2, tensor=2), 8)
    assert placed.keys() == batch.keys()
    for name, array in placed.items():
        np.testing.assert_array_equal(jax.device_get(array), batch[name])
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {2}
    starts = [shard.index[0].start for shard in placed["tokens"].addressable_shards]
    assert sorted(starts) == [0, 0, 2, 2, 4, 4, 6, 6]
