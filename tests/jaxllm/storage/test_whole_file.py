"""Small files are whole or not there, and what cannot be written is named with its size."""

import errno

import pytest

from jaxllm.storage.whole_file import naming, write_whole


def test_text_and_bytes_replace_what_was_there(tmp_path):
    file = tmp_path / "file"
    write_whole(file, "größer")
    assert file.read_bytes() == "größer".encode()
    write_whole(str(file), b"\xff")
    assert file.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_whole(file, "before")

    def fill(path, data):
        path.write_text("par")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(file), "write_bytes", fill)
    with pytest.raises(OSError, match=r"No space left on device \(6 bytes to write, .*/file'"):
        write_whole(file, "behind")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone/file"):
        write_whole(tmp_path / "gone" / "file", "x")


def test_errors_of_writing_name_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/file'"),
        naming(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="other"), naming(tmp_path / "file"):
        (tmp_path / "other").read_text()
