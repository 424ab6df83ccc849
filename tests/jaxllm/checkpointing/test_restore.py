"""Restoring puts stored arrays onto any mesh, with the stored bits or an error."""

import json

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxllm.checkpointing.orbax_layout import METADATA_FILE, step_metadata
from jaxllm.checkpointing.restore import digest_items, restore
from jaxllm.errors import CheckpointError
from jaxllm.sharding import named_sharding

ITEMS = {
    "model": {"kernel": np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)},
    "optimizer": ({"count": np.array(7, np.int32)}, (), {"mu": np.arange(8.0, dtype=np.float32)}),
}


def target(x: np.ndarray, mesh) -> jax.ShapeDtypeStruct:
    sharding = named_sharding("DF"[: x.ndim], x.shape, mesh)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@pytest.fixture
def step(tmp_path):
    digests = digest_items(jax.tree.map(jax.numpy.asarray, ITEMS))
    assert {item: set(names) for item, names in digests.items()} == {
        "model": {"kernel"},
        "optimizer": {"0.count", "2.mu"},
    }
    metadata = step_metadata({}, digests)
    ocp.save_checkpointables(tmp_path / "3", ITEMS, custom_metadata=metadata)
    return tmp_path / "3"


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (2, 4)])
def test_the_same_bits_on_every_mesh(step, shape):
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"))
    targets = jax.tree.map(lambda x: target(x, mesh), ITEMS)
    found = restore(step, targets)
    assert jax.tree.structure(found) == jax.tree.structure(ITEMS)
    for ours, wanted, stored in zip(*map(jax.tree.leaves, (found, targets, ITEMS)), strict=True):
        assert (ours.sharding, ours.dtype) == (wanted.sharding, wanted.dtype)
        np.testing.assert_array_equal(np.asarray(ours), stored)


def test_other_arrays_and_other_bits_are_refused(step):
    mesh = jax.make_mesh((1,), ("fsdp",))
    wrong = target(np.zeros((8, 5), np.float32), mesh)
    with pytest.raises(CheckpointError, match=r"kernel is float32\[8, 6\], not float32\[8, 5\]"):
        restore(step, {"model": {"kernel": wrong}})
    file = step / METADATA_FILE
    metadata = json.loads(file.read_text())
    digests = metadata["custom_metadata"]["jaxllm"]["digests"]
    del digests["metadata"]
    digests["model"]["kernel"] = digests["model"]["kernel"][::-1]
    file.write_text(json.dumps({**metadata, "custom_metadata": step_metadata({}, digests)}))
    with pytest.raises(CheckpointError, match=r"3:\n  model kernel is damaged: its digest"):
        restore(step, {"model": {"kernel": target(ITEMS["model"]["kernel"], mesh)}})
