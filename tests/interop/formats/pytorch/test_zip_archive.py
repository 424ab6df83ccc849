"""Zip archives: records are found where they lie in the file, and damaged ones are refused."""

import io
import zipfile

import pytest

from jaxllm.interop.formats.pytorch.zip_archive import Archive
from jaxllm.interop.formats.stored_tensor import CheckpointError

RECORDS = {"data.pkl": b"a pickle", "data/0": bytes(range(40)), "byteorder": b"little"}


def archive(records=RECORDS, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in records.items():
            file.writestr(f"top/{name}", data)
    return io.BytesIO(stream.getvalue())


def test_records_are_located_and_read_without_their_top_folder():
    stream = archive()
    found = Archive(stream)
    assert found.records.keys() == RECORDS.keys()
    for name, data in RECORDS.items():
        start, size = found.locate(name)
        assert stream.getvalue()[start : start + size] == data == found.read(name)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (io.BytesIO(b"PK\3\4 and no directory"), "cut short: only its first 21 bytes are there"),
        (archive(compression=zipfile.ZIP_DEFLATED), "is compressed or encrypted, not stored"),
        (archive({"byteorder": b"big"}), "the byte order is not little-endian"),
        (io.BytesIO(b"{}"), "not a zip file"),
    ],
    ids=["no directory", "compressed", "big-endian", "text"],
)
def test_what_pytorch_does_not_write_is_refused(stream, message):
    with pytest.raises(CheckpointError, match=message):
        Archive(stream).read("data.pkl")


def test_a_record_with_other_bytes_than_its_checksum_says_is_refused():
    stream = archive()
    damaged = stream.getvalue().replace(b"a pickle", b"b pickle")
    with pytest.raises(CheckpointError, match=r"'data\.pkl' does not match its checksum"):
        Archive(io.BytesIO(damaged)).read("data.pkl")
