"""Python's zipfile reads a zip that was laid out before its large records were known."""

import io
import zipfile
import zlib

import pytest

from jaxllm.interop.formats.pytorch import zip_layout

DATA = bytes(range(200))


@pytest.mark.parametrize("limit", [zip_layout.LIMIT, 100])
def test_zipfile_reads_a_filled_layout(limit):
    records = [("head", b"small"), ("data/0", len(DATA)), ("tail", b"")]
    layout = zip_layout.lay_out("archive", records, limit=limit)
    content = bytearray(layout.size)
    for offset, data in layout.frame.items():
        content[offset : offset + len(data)] = data
    start = layout.starts["data/0"]
    assert start % zip_layout.ALIGNMENT == 0
    content[start : start + len(DATA)] = DATA
    for offset in layout.checksums["data/0"]:
        content[offset : offset + 4] = zlib.crc32(DATA).to_bytes(4, "little")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        read = {name: archive.read(name) for name in archive.namelist()}
    assert read == {"archive/head": b"small", "archive/data/0": DATA, "archive/tail": b""}
    assert (b"PK\6\6" in content) == (limit == 100)
