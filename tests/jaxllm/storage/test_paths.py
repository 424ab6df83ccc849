"""Paths: which are addresses, and what is said about those that cannot be used."""

from pathlib import Path

import pytest
from etils import epath
from etils.epath import backend
from memory_store import memory_store

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.storage.paths import (
    absolute_path,
    check_output,
    is_remote,
    kvstore,
    open_path,
    to_address,
)


@pytest.mark.parametrize("path", ["gs://b-1/x", "s3://bucket", Path("gs://b-1/x"), "ftp://x/y"])
def test_addresses_are_recognized_also_after_pathlib(path):
    assert is_remote(path)


@pytest.mark.parametrize("path", ["runs/x", "/a/b", "hf://org/name", "a:b", "C:/x", Path("a")])
def test_other_paths_are_local(path):
    assert not is_remote(path)


def test_both_slashes_come_back():
    assert to_address(Path("gs://bucket/a/b")) == "gs://bucket/a/b"
    assert to_address(epath.Path("s3://bucket/a")) == "s3://bucket/a"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://host/x", r"ftp://host/x: addresses are read from gs:// and s3://, not ftp://"),
        ("gs://B/x", r"gs://B/x has no bucket: write gs://BUCKET/FOLDER"),
    ],
)
def test_other_addresses_are_refused_in_one_line(path, message):
    with pytest.raises(UserError, match=message):
        open_path(path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def missing(*_: object) -> None:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(backend.fsspec_backend), "fs", missing)
    with pytest.raises(MissingPackageError, match=r"pip install 'jaxllm\[gcs\]'"):
        open_path("gs://bucket/x")
    with pytest.raises(MissingPackageError, match=r"pip install 'jaxllm\[s3\]'"):
        open_path("s3://bucket/x")


def test_paths_are_those_of_pathlib_or_of_epath(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_path("a/b") == Path("a/b")
    assert absolute_path("a") == tmp_path / "a"
    with memory_store():
        found = absolute_path("gs://bucket/a")
        (found / "x.txt").write_text("hello")
        assert (str(found / "x.txt"), (found / "x.txt").read_text()) == (
            "gs://bucket/a/x.txt",
            "hello",
        )


def test_specs_of_tensorstore_name_the_bucket():
    assert kvstore(Path("/a/b")) == {"driver": "file", "path": "/a/b/"}
    path = epath.Path("gs://bucket") / "a" / "b"
    assert kvstore(path) == {"driver": "gcs", "bucket": "bucket", "path": "a/b/"}


def test_what_is_written_locally_says_how_to_copy_it():
    assert check_output("a") == Path("a")
    with pytest.raises(UserError, match="gcloud storage cp -r FOLDER gs://bucket/x"):
        check_output("gs://bucket/x")
    with pytest.raises(UserError, match="aws s3 cp --recursive FOLDER s3://bucket/x"):
        check_output(Path("s3://bucket/x"))


def test_native_checkpoints_need_paths_of_utf8():
    with pytest.raises(UserError, match="is not UTF-8, as Orbax needs paths to be"):
        kvstore("runs/\udcff/checkpoints")
