"""Stand-ins for files that were not downloaded are told from the files themselves."""

import os

import pytest

from jaxllm.errors import CheckpointError
from jaxllm.untrusted.substitutes import check_is_content, cut_short

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 1969216\n"
)
PAGE = b"<!doctype html>\n<html class=''>\n<head><title>Sign in</title></head></html>"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (POINTER, r"^a Git LFS pointer to 1,969 kB, not the file itself: run `git lfs pull`"),
        (PAGE, r"^a web page, not the file itself: download it again"),
        (b"\n  <HTML>", "^a web page"),
        (b"<!-- made by x -->\n<html>", "^a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "^a web page"),
    ],
)
def test_stand_ins_are_named(tmp_path, content, reason):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        check_is_content(tmp_path / "x")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x80\x02", b"PK\3\4", b"version 3\nsize 4\n", b"a <html> inside"]
)
def test_other_files_pass(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    check_is_content(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "^an empty file: download it again"),
        (b'{"error":"Invalid credentials"}', r'^the text .{"error":"Inv.*"}., not the file'),
        ("Zugriff verweigert: für Sie\n".encode(), "^the text 'Zugriff .* Sie', not the file"),
    ],
)
def test_what_a_server_answered_is_no_binary_file(tmp_path, content, reason):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        check_is_content(tmp_path / "x", is_binary=True)


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02", b"PK\3\4", b"GGUF\3\0", b"\2\0\0\0\0\0\0\0{}", b"L119547037146038801333356L\n."],
)
def test_binary_files_pass(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    check_is_content(tmp_path / "x", is_binary=True)


def test_a_text_in_place_of_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"{}")
    check_is_content(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="a text, which holds no tensors: give"):
        check_is_content(tmp_path / "config.json", is_binary=True)


def test_a_part_is_told_in_kilobytes():
    assert str(cut_short(983_040, 1_969_216)) == (
        "cut short: 983 of 1,969 kB are there; download it again"
    )
    assert "only its first 983 kB are there" in str(cut_short(983_040))
    assert "cut short: 40 of 100 bytes are there" in str(cut_short(40, 100))
    assert "only its first 40 bytes are there" in str(cut_short(40))


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"not a regular file.*pipe"):
        check_is_content(tmp_path / "pipe")
