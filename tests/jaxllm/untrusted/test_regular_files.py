"""Only regular files are read, and only as many bytes as asked for."""

import os

import pytest

from jaxllm.untrusted.regular_files import check_is_regular, is_named, read_bytes


def test_a_regular_file_is_read(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    (tmp_path / "link").symlink_to(file)
    check_is_regular(tmp_path)
    assert read_bytes(file) == read_bytes(tmp_path / "link", 7) == b"content"


def test_a_link_that_leads_nowhere_is_named_and_cannot_be_read(tmp_path):
    assert not is_named(tmp_path / "link")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert is_named(tmp_path / "link")
    with pytest.raises(FileNotFoundError, match="link"):
        read_bytes(tmp_path / "link")


def test_pipes_and_devices_are_refused_by_name(tmp_path):
    """Reading the pipe would wait for a writer for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (pipe, tmp_path / "zero"):
        with pytest.raises(OSError, match=rf"not a regular file.*{path.name}"):
            read_bytes(path)


def test_a_file_that_is_too_large_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(OSError, match=r"has 11 bytes; at most 10 are read.*file"):
        read_bytes(tmp_path / "file", 10)
