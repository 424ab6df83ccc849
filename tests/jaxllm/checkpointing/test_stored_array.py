"""Stored arrays are read in parts, and only after their digest was found right."""

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxllm.checkpointing.digests import part_sums, to_text
from jaxllm.checkpointing.stored_array import StoredArray, StoredLayer, open_arrays
from jaxllm.errors import CheckpointError

X = np.random.default_rng(0).standard_normal((3, 6, 5)).astype(np.float32)
DIGEST = to_text(part_sums(X, [(0, 3), (0, 6), (0, 5)], X.shape))


@pytest.fixture
def step(tmp_path):
    ocp.save_checkpointables(tmp_path / "3", {"model": {"mlp": {"kernel": X}}})
    return tmp_path / "3"


@pytest.mark.parametrize("digest", [DIGEST, None])
def test_parts_are_read(step, digest):
    array = StoredArray(step, "model", "mlp.kernel", digest)
    assert (array.dtype, array.shape, array.chunk_bytes) == (X.dtype, X.shape, X.nbytes)
    np.testing.assert_array_equal(array.read([(1, 3), (0, 6), (2, 4)]), X[1:3, :, 2:4])
    np.testing.assert_array_equal(array.read(), X)
    layer = StoredLayer(array, 2)
    assert (layer.dtype, layer.shape) == (X.dtype, (6, 5))
    np.testing.assert_array_equal(layer.read(), X[2])
    np.testing.assert_array_equal(layer.read([(1, 2), (0, 5)]), X[2, 1:2])


def test_nothing_of_an_array_with_another_digest_is_returned(step):
    digest = "0" + DIGEST[1:] if DIGEST[0] != "0" else "1" + DIGEST[1:]
    about = {"digests": {"model": {"mlp.kernel": digest}}}
    [array] = open_arrays(step, about, "model", ["mlp.kernel"]).values()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"3:\n  model mlp.kernel is damaged: its digest"):
            array.read([(0, 1), (0, 1), (0, 1)])


def test_an_array_that_is_not_there_is_named(step):
    with pytest.raises(
        CheckpointError, match=r"3:\n  model mlp.bias cannot be read: .*mlp.bias.*/3/model/\"$"
    ):
        StoredArray(step, "model", "mlp.bias", None)
