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


PLANNED = b'{"plan": {"to": "hf", "dtype": null}}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n", r"line 1: \{\} is not the plan"),
        (b"[1]\n", "line 1: the JSON is not an object"),
        (b"\xff\n", "line 1: not valid JSON"),
        (b'{"plan": 7}\n', "is not the plan"),
        (PLANNED + PLANNED, "line 2: .* is not a tensor and its digest"),
        (PLANNED + b'{"tensor": "w"}\n', "is not a tensor and its digest"),
        (PLANNED + b'{"tensor": ["w"], "digest": ["a", 1]}\n', "is not a tensor and its digest"),
        (PLANNED + b'{"tensor": "w", "digest": [1, 2, 3]}\n', "is not a tensor and its digest"),
        (PLANNED + b"[" * 100_000 + b"\n", "line 2: nested more than 100 levels deep"),
    ],
)
def test_a_damaged_journal_is_refused_by_name_and_line(tmp_path, content, message):
    (tmp_path / "journal").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"journal, {message}|{message}") as caught:
        Journal(tmp_path / "journal", PLAN)
    assert f"delete {tmp_path} to start" in str(caught.value)
    assert (tmp_path / "journal").read_bytes() == content
