"""The checkpoint to continue from: the newest sound one; the others are moved aside, not lost."""

import logging
from pathlib import Path

import pytest

from jaxllm.checkpointing.orbax_layout import METADATA_FILE
from jaxllm.errors import CheckpointError
from jaxllm.train.config import ConfigError
from jaxllm.train.restarts.sound_step import ASIDE, find_steps, load_chosen, load_newest


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints of steps 2 to 10, and other things among them."""
    for step in (2, 8, 10):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / METADATA_FILE).touch()
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").touch()
    return tmp_path


def loading(*damaged: str):
    def load(path: Path) -> str:
        if path.name in damaged:
            raise CheckpointError(["model x is damaged", "model y is damaged"], path)
        return path.name

    return load


def left(run: Path) -> tuple[set[str], set[str]]:
    folders = (run / "checkpoints", run / ASIDE)
    return tuple({p.name for p in f.glob("*") if p.name.isdecimal()} for f in folders)


def test_numbered_entries_are_found_in_order(run, tmp_path):
    assert list(find_steps(run)) == [2, 8, 10]
    assert find_steps(tmp_path / "nowhere") == {}


def test_the_newest_sound_one_is_loaded_and_damaged_ones_are_kept_aside(run, caplog):
    (run / "checkpoints" / "8" / METADATA_FILE).unlink()
    (run / "checkpoints" / "11").touch()  # a foreign file
    with caplog.at_level(logging.INFO, "jaxllm"):
        assert load_newest(run, loading("10")) == "2"
    assert left(run) == ({"2"}, {"8", "10", "11"})
    kept = run / ASIDE
    assert caplog.messages == [
        f"checkpoint 11  damaged: it is not a folder  kept in {kept / '11'}  resuming from step 2",
        f"checkpoint 10  damaged: model x is damaged  kept in {kept / '10'}  resuming from step 2",
        f"checkpoint 8  damaged: {METADATA_FILE} is missing  kept in {kept / '8'}  "
        "resuming from step 2",
    ]


def test_nothing_is_moved_if_nothing_is_sound_or_another_error_occurs(run):
    with pytest.raises(CheckpointError, match="no sound checkpoint:\n  10: model x") as error:
        load_newest(run, loading("2", "8", "10"))
    assert len(error.value.problems) == 6
    with pytest.raises(ZeroDivisionError):
        load_newest(run, lambda _: 1 // 0)
    assert left(run) == ({"2", "8", "10"}, set())


def test_a_chosen_step_is_loaded_and_newer_ones_are_kept_aside(run):
    (run / ASIDE / "10").mkdir(parents=True)
    assert load_chosen(run, 8, loading()) == "8"
    assert left(run) == ({"2", "8"}, {"10"})
    assert (run / ASIDE / "10.2" / METADATA_FILE).exists()
    with pytest.raises(ConfigError, match="has no checkpoint of step 10; it has 2, 8"):
        load_chosen(run, 10, loading())
    with pytest.raises(CheckpointError, match="model x is damaged"):
        load_chosen(run, 2, loading("2"))
    assert left(run)[0] == {"2", "8"}
