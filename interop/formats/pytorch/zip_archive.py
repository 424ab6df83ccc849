"""Zip archives that PyTorch writes: finds their records, which are stored without compression."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO

from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.untrusted.substitutes import cut_short

_LOCAL_HEADER = b"PK\3\4"
# What may follow a record: a local header, the directory, or a data descriptor.
_ZIP_SIGNATURES = (_LOCAL_HEADER, b"PK\1\2", b"PK\7\x08")
_LOCAL_HEADER_BYTES = 30
_MOST_END_BYTES = 22 + 0xFFFF  # of the last record, with its comment
# Views may repeat the numbers of a storage: tied weights do so once, and small masks often.
_MOST_REPEATS, _SMALL = 2, 64 << 20


class Archive:
    """The uncompressed records of a zip file, named without their top folder."""

    def __init__(self, stream: IO[bytes], start: int = 0):
        _check_is_zip(stream)
        try:
            infos = zipfile.ZipFile(stream).infolist()
        except Exception as error:  # a damaged directory raises nearly anything
            if (size := stream.seek(0, os.SEEK_END)) > 0 and not _has_end(stream, size):
                raise cut_short(size) from None
            raise CheckpointError(f"truncated or damaged zip: {error}") from None
        self.stream, self.start = stream, start  # `start`: where the stream begins in its file
        self.records = {info.filename.partition("/")[2]: info for info in infos}
        if len(self.records) < len(infos):
            raise CheckpointError("the zip has several records with the same name")
        # Old PyTorch versions write no byteorder record; their files are taken as little-endian.
        if "byteorder" in self.records and self.read("byteorder") != b"little":
            raise CheckpointError("the byte order is not little-endian")

    def locate(self, name: str) -> tuple[int, int]:
        """Returns the first byte of a record in the stream, and its number of bytes.

        Raises:
            CheckpointError: the record is missing, compressed, or not where the directory says.
        """
        info = self.records.get(name)
        if info is None:
            raise CheckpointError(f"record {name!r} is missing")
        is_encrypted = info.flag_bits & 1
        if is_encrypted or info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"record {name!r} is compressed or encrypted, not stored")
        start = self._data_start(info)
        if start is None or not self._is_followed_by_zip(start + info.file_size):
            raise CheckpointError(f"record {name!r} is not where the zip's directory says")
        return start, info.file_size

    def read(self, name: str) -> bytes:
        """Reads a small record. Raises CheckpointError if its checksum is wrong."""
        start, size = self.locate(name)
        self.stream.seek(start)
        data = self.stream.read(size)
        # PyTorch writes 0 when checksums are turned off.
        if self.records[name].CRC not in (0, zlib.crc32(data)):
            raise CheckpointError(f"record {name!r} does not match its checksum")
        return data

    def check_repeats(self, tensors: Iterable[StoredTensor]) -> None:
        """Raises CheckpointError if views make far more numbers of the records than these hold."""
        check_repeats(tensors, sum(info.file_size for info in self.records.values()))

    def _data_start(self, info: zipfile.ZipInfo) -> int | None:
        """Returns where a record's local header ends, or None if there is no such header."""
        if info.header_offset < 0:
            return None
        self.stream.seek(info.header_offset)
        header = self.stream.read(_LOCAL_HEADER_BYTES)
        if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(_LOCAL_HEADER):
            return None
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:])
        encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
        if self.stream.read(name_bytes).decode(encoding, "replace") != info.orig_filename:
            return None
        return info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes

    def _is_followed_by_zip(self, end: int) -> bool:
        """Returns whether a record can end here: a cheap check that does not read the storage."""
        self.stream.seek(end)
        return self.stream.read(4) in _ZIP_SIGNATURES


def check_repeats(tensors: Iterable[StoredTensor], stored: int) -> None:
    """Raises CheckpointError if views make far more numbers than the bytes that are stored."""
    viewed = sum(tensor.nbytes for tensor in tensors)
    if viewed > max(_MOST_REPEATS * stored, _SMALL):
        raise CheckpointError(
            f"the tensors have {viewed} bytes in all, but the file stores only {stored}: "
            "they repeat the same numbers, as `expand` makes them"
        )


def _has_end(stream: IO[bytes], size: int) -> bool:
    """Whether a zip has its last record, which a file that was cut short lacks."""
    stream.seek(max(size - _MOST_END_BYTES, 0))
    return b"PK\5\6" in stream.read()


def _check_is_zip(stream: IO[bytes]) -> None:
    start = stream.read(512)
    is_pickle, is_tar = start.startswith(b"\x80"), start[257:262] == b"ustar"
    if is_pickle or is_tar:
        raise CheckpointError(
            f"a {'pickle' if is_pickle else 'tar'} file, as PyTorch wrote before 1.6, is not "
            "supported: load it with PyTorch and save it again"
        )
    if not start.startswith(_LOCAL_HEADER):
        raise CheckpointError("not a zip file, which is what PyTorch writes")
