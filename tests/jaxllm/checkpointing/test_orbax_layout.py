"""Only complete steps are listed, oldest first, and their arrays open as Orbax wrote them."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxllm.checkpointing.orbax_layout import (
    METADATA_FILE,
    METADATA_KEY,
    TREE_FILE,
    array_spec,
    chunk_bytes,
    is_step,
    list_steps,
    read_step,
)
from jaxllm.errors import OTHER_VERSION, CheckpointError


def forbid(monkeypatch, method: str, path: Path) -> None:
    """Makes a method of Path fail for one path, as for a user without permission."""
    original = getattr(Path, method)

    def refuse(self, *args, **options):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **options)

    monkeypatch.setattr(Path, method, refuse)


def write_step(step: Path, about: object) -> Path:
    items = {"model": {"kernel": np.ones(3, np.float32)}}
    ocp.save_checkpointables(step, items, custom_metadata={METADATA_KEY: about})
    return step


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


def test_steps_that_cannot_be_listed_are_not_taken_as_none(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    forbid(monkeypatch, "iterdir", tmp_path / "checkpoints")
    with pytest.raises(PermissionError, match="checkpoints"):
        list_steps(tmp_path)


def test_metadata_of_a_step_are_read(tmp_path):
    step = write_step(tmp_path / "3", {"run": {"steps": 9}, "data": {}})
    about, items = read_step(step, "run", "data")
    assert about == {"run": {"steps": 9}, "data": {}}
    assert items == {"model": ("kernel",)}


@pytest.mark.parametrize(
    ("about", "problems"),
    [
        ({"run": []}, ["run is [], not a group of fields", "data is missing"]),
        ({"data": None, "run": {}}, ["data is None, not a group of fields"]),
        ([1], ["jaxllm is [1], not a group of fields"]),
    ],
)
def test_missing_groups_of_fields_are_listed(tmp_path, about, problems):
    step = write_step(tmp_path / "3", about)
    with pytest.raises(CheckpointError, match=str(step)) as error:
        read_step(step, "run", "data")
    assert error.value.problems == (*problems, OTHER_VERSION)


@pytest.mark.parametrize("text", ["{}", json.dumps({"custom_metadata": {"another": {}}})])
def test_a_checkpoint_of_somebody_else_is_refused(tmp_path, text):
    step = write_step(tmp_path / "3", {})
    (step / METADATA_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="not written by jaxllm, or it is damaged"):
        read_step(step)


def test_an_unreadable_file_is_not_taken_as_a_missing_one(tmp_path, monkeypatch):
    step = write_step(tmp_path / "3", {})
    for path in (step / METADATA_FILE, step / "model" / TREE_FILE):
        with monkeypatch.context() as patch:
            forbid(patch, "open", path)
            with pytest.raises(PermissionError, match=path.name):
                read_step(step)
