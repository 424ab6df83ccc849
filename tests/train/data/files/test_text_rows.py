"""Text files: documents, and the formats of lines and lists; test_reading has what all share."""

import sys

import pytest
import zstandard

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.train.data.files.text_rows import json_lines, text_file


def test_a_text_file_is_one_row_under_the_column_that_is_asked_for(tmp_path):
    (tmp_path / "a.txt").write_bytes("two\r\nlines ß".encode())
    (row,) = text_file(tmp_path / "a.txt", ("body", "other"))
    assert row.parse(row.raw) == {"body": "two\r\nlines ß"}
    assert row.place == str(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes("ß".encode("latin-1"))
    (row,) = text_file(tmp_path / "a.txt", ("body",))
    with pytest.raises(UserError, match="not UTF-8"):
        row.parse(row.raw)


def test_lines_are_counted_with_blank_ones(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n \n{"a": 2}')
    rows = list(json_lines(tmp_path / "a.jsonl", ()))
    assert [(row.number, row.parse(row.raw)) for row in rows] == [(1, {"a": 1}), (4, {"a": 2})]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    with pytest.raises(MissingPackageError, match=r"a\.jsonl\.zst needs zstandard.*jaxllm\[data\]"):
        list(json_lines(tmp_path / "a.jsonl.zst", ()))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("part", [0.3, 0.9, 1.0])
def test_a_compressed_file_that_is_cut_short_is_not_taken_for_a_shorter_one(frames, part, tmp_path):
    lines = [f'{{"a": {number}}}\n'.encode() for number in range(30_000)]
    each = len(lines) // frames
    parts = [b"".join(lines[i * each : (i + 1) * each]) for i in range(frames)]
    content = b"".join(map(zstandard.compress, parts))
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(content[: int(part * len(content))])
    if part == 1:
        rows = list(json_lines(file, ()))
        assert [row.raw for row in rows] == lines
        return
    with pytest.raises(
        UserError, match=r"a\.jsonl\.zst, line [\d,]+: it cannot be read: .* cut short"
    ):
        list(json_lines(file, ()))
