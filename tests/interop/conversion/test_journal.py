"""A journal holds what is done, whatever cut it short, and one writer alone."""

import pytest

from jaxllm.interop import CheckpointError
from jaxllm.interop.conversion.journal import Journal
from jaxllm.interop.formats.file_writer import Digest

PLAN = {"to": "hf", "dtype": None}


def test_what_was_noted_is_there_again(tmp_path):
    with Journal(tmp_path / "journal", PLAN) as journal:
        journal.add("w", Digest("abc", 7))
        assert journal.done == {"w": Digest("abc", 7)}
    with Journal(tmp_path / "journal", PLAN) as journal:
        assert journal.done == {"w": Digest("abc", 7)}


def test_a_line_that_was_cut_short_does_not_count(tmp_path):
    with Journal(tmp_path / "journal", PLAN) as journal:
        journal.add("a", Digest("1", 0))
        journal.add("b", Digest("2", 0))
    data = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(data[:-5])
    with Journal(tmp_path / "journal", PLAN) as journal:
        assert journal.done == {"a": Digest("1", 0)}
        journal.add("b", Digest("2", 0))
    assert (tmp_path / "journal").read_bytes() == data


def test_another_plan_is_refused(tmp_path):
    Journal(tmp_path / "journal", PLAN).__exit__()
    with pytest.raises(CheckpointError, match="to was 'hf', now it is 'meta'"):
        Journal(tmp_path / "journal", {**PLAN, "to": "meta"})


def test_only_one_has_it_open(tmp_path):
    busy = pytest.raises(CheckpointError, match="is being written by another process")
    with Journal(tmp_path / "journal", PLAN), busy:
        Journal(tmp_path / "journal", PLAN)
    with Journal(tmp_path / "journal", PLAN) as journal:
        assert journal.done == {}
