"""Run checkpoints: exact save and load, retention, and no duplicate writes."""

import dataclasses
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import chex
import jax
import jax.numpy as jnp
import pytest
from tiny import TINY

from jaxllm.checkpointing.orbax_layout import METADATA_FILE, read_step
from jaxllm.errors import CheckpointError, UserError
from jaxllm.params import read_model
from jaxllm.train import TrainConfig
from jaxllm.train.checkpoint import Checkpoints, load_state, open_checkpoints
from jaxllm.train.config import to_dict

RUN = TrainConfig(output="nowhere", steps=9, batch_size=8, seq_len=16, model=TINY)


def at_step(state, step: int):
    return state._replace(step=jnp.asarray(step, jnp.int32))


def test_save_and_load_are_bitwise_exact(saved_model, state, tmp_path):
    with open_checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(state, RUN, saved_model, {"train_tokens": "ab"})
    with open_checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest == 3
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
    found = load_state(tmp_path / "checkpoints" / "3", abstract)
    metadata = read_step(tmp_path / "checkpoints" / "3", "run", "data").about
    chex.assert_trees_all_equal(found, state, strict=True)
    assert metadata["data"] == {"train_tokens": "ab"}
    assert metadata["run"].keys() == to_dict(RUN).keys()
    assert metadata["run"]["steps"] == RUN.steps


def test_only_the_newest_checkpoints_are_kept_and_a_saved_step_is_skipped(
    saved_model, state, tmp_path
):
    folder = tmp_path / "checkpoints"
    with open_checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3, 3):
            run = dataclasses.replace(RUN, seed=step)
            checkpoints.save(at_step(state, step), run, saved_model, {})
    assert {path.name for path in folder.iterdir() if path.name.isdigit()} == {"2", "3"}


def test_metadata_of_another_version_are_explained(saved_model, state, tmp_path):
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, RUN, saved_model, {})
    file = tmp_path / "3" / METADATA_FILE
    metadata = json.loads(file.read_text())
    about = metadata["custom_metadata"]["jaxllm"]
    del about["run"], about["digests"]
    about |= {"data": None, "config": {**about["config"], "new_field": 1}}
    file.write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"3:\n  run is missing\n  data is None, not a"):
        read_step(tmp_path / "3", "run", "data")
    with pytest.raises(CheckpointError, match=r"3:\n  config: unknown field 'new_field'"):
        read_model(tmp_path / "3")


@contextmanager
def disk_of(most_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond a size: writing fails in the same calls as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(checkpoints: Checkpoints, state, model) -> None:
    """Saves a step and waits until it is written."""
    checkpoints.save(state, RUN, model, {})
    checkpoints.wait()


# TensorStore reports to an event loop that Orbax has closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_is_one_line_and_the_complete_checkpoints_are_kept(saved_model, state, tmp_path):
    folder = tmp_path / "checkpoints"
    message = r"/4: the checkpoint of [\d,]+ bytes cannot be written: File too large; [\d,]+ bytes"
    with open_checkpoints(folder, keep=2) as checkpoints:
        save(checkpoints, state, saved_model)
        with disk_of(2000), pytest.raises(UserError, match=message) as raised:
            save(checkpoints, at_step(state, 4), saved_model)
        assert "\n" not in str(raised.value)
    with open_checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest == 3
    assert [path.name for path in folder.iterdir()] == ["3"]
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    chex.assert_trees_all_equal(load_state(folder / "3", abstract), state, strict=True)


def test_folder_that_is_removed_or_replaced_is_not_made_anew(saved_model, state, tmp_path):
    folder, moved = tmp_path / "checkpoints", tmp_path / "moved"
    message = "cannot be written: the folder was removed or replaced during the run"
    for is_replaced in (False, True):
        with suppress(UserError), open_checkpoints(folder, keep=2) as checkpoints:
            save(checkpoints, state, saved_model)
            folder.rename(moved)
            if is_replaced:
                folder.mkdir()
            with pytest.raises(UserError, match=message):
                save(checkpoints, at_step(state, 4), saved_model)
        assert [path.name for path in moved.iterdir()] == ["3"]
        shutil.rmtree(moved)
        assert not list(tmp_path.rglob("4*"))
        shutil.rmtree(folder, ignore_errors=True)
