"""Only complete steps count, oldest first, and their arrays are where Orbax put them."""

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxllm.orbax_layout import METADATA_FILE, array_spec, chunk_bytes, is_step, list_steps


def test_complete_steps_are_found_by_their_numbers(tmp_path):
    for name in ("10", "9", "best", "11"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "11":  # it is still being written
            (tmp_path / "checkpoints" / name / METADATA_FILE).touch()
    assert list_steps(tmp_path) == {n: tmp_path / "checkpoints" / str(n) for n in (9, 10)}
    assert list(list_steps(tmp_path)) == [9, 10]
    assert list_steps(tmp_path / "nowhere") == {}


def test_what_orbax_wrote_is_opened(tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    step = tmp_path / "checkpoints" / "3"
    ocp.save_checkpointables(step, {"model": {"mlp": {"kernel": x}}})
    assert is_step(step)
    assert not is_step(tmp_path)
    store = tensorstore.open(array_spec(step, "model", "mlp.kernel"), read=True).result()
    np.testing.assert_array_equal(store.read().result(), x)
    assert chunk_bytes(store) == x.nbytes  # it was on one device
