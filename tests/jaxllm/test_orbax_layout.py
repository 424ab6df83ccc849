"""Only complete steps are listed, oldest first, and their arrays open as Orbax wrote them."""

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxllm.orbax_layout import METADATA_FILE, array_spec, chunk_bytes, is_step, list_steps


def test_only_complete_numbered_steps_are_listed(tmp_path):
    for name in ("10", "9", "best", "11"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "11":  # it is still being written
            (tmp_path / "checkpoints" / name / METADATA_FILE).touch()
    assert list_steps(tmp_path) == {n: tmp_path / "checkpoints" / str(n) for n in (9, 10)}
    assert list(list_steps(tmp_path)) == [9, 10]
    assert list_steps(tmp_path / "nowhere") == {}


def test_array_written_by_orbax_opens(tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    step = tmp_path / "checkpoints" / "3"
    ocp.save_checkpointables(step, {"model": {"mlp": {"kernel": x}}})
    assert is_step(step)
    assert not is_step(tmp_path)
    store = tensorstore.open(array_spec(step, "model", "mlp.kernel"), read=True).result()
    np.testing.assert_array_equal(store.read().result(), x)
    assert chunk_bytes(store) == x.nbytes  # it was on one device
