"""A journal survives truncation, rejects other plans and admits one writer."""

import pytest

from jaxllm.interop import CheckpointError
from jaxllm.interop.conversion.journal import Journal
from jaxllm.interop.formats.file_writer import Digest

PLAN = {"to": "hf", "dtype": None}


def test_recorded_tensors_are_read_back(tmp_path):
    with Journal(tmp_path / "journal", PLAN) as journal:
        journal.add("w", Digest("abc", 7))
        assert journal.done == {"w": Digest("abc", 7)}
    with Journal(tmp_path / "journal", PLAN) as journal:
        assert journal.done == {"w": Digest("abc", 7)}


def test_truncated_last_line_is_ignored(tmp_path):
    with Journal(tmp_path / "journal", PLAN) as journal:
        journal.add("a", Digest("1", 0))
        journal.add("b", Digest("2", 0))
    data = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(data[:-5])
    with Journal(tmp_path / "journal", PLAN) as journal:
        assert journal.done == {"a": Digest("1", 0)}
        journal.add("b", Digest("2", 0))
    assert (tmp_path / "journal").read_bytes() == data


def test_other_plan_is_rejected(tmp_path):
    Journal(tmp_path / "journal", PLAN).__exit__()
    with pytest.raises(CheckpointError, match="to was 'hf', now it is 'meta'"):
        Journal(tmp_path / "journal", {**PLAN, "to": "meta"})


def test_only_one_process_can_open_the_journal(tmp_path):
    busy = pytest.raises(CheckpointError, match="is being written by another process")
    with Journal(tmp_path / "journal", PLAN), busy:
        Journal(tmp_path / "journal", PLAN)
    with Journal(tmp_path / "journal", PLAN) as journal:
        assert journal.done == {}
