"""Layout of a zip file with uncompressed records, before the content of large records is known."""

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 64  # bytes; PyTorch aligns records the same way

_VERSION = 45  # of the zip format: the first with 64-bit sizes
_DATE = 0x21  # 1980-01-01, so that equal content gives equal files
LIMIT = 0xFFFFFFFF  # a size or offset from here on is stored in a separate 64-bit field
_ELSEWHERE = 0xFFFFFFFF  # marks a 32-bit field whose value is in the 64-bit field
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


class ZipLayout(NamedTuple):
    """The layout of a zip file. Offsets count bytes."""

    size: int
    frame: dict[int, bytes]  # everything but the large records, by offset
    starts: dict[str, int]  # the offset of each large record
    checksums: dict[str, tuple[int, int]]  # the offsets for the CRC-32 of each large record


def lay_out(
    folder: str, records: Sequence[tuple[str, bytes | int]], *, limit: int = LIMIT
) -> ZipLayout:
    """Lays out the records of a zip file.

    Args:
        folder: the zip's top folder.
        records: the name of each record and its content; for a large record, to be filled in
            later, its size instead.
        limit: the size or offset from which on 64-bit fields are used.
    """
    frame: dict[int, bytes] = {}
    starts: dict[str, int] = {}
    checksums: dict[str, tuple[int, int]] = {}
    directory = b""
    position = 0
    for name, content in records:
        size = content if isinstance(content, int) else len(content)
        crc32 = 0 if isinstance(content, int) else zlib.crc32(content)
        path = f"{folder}/{name}".encode()
        local = _local_header(path, size, crc32, position)
        start = position + len(local)
        frame[position] = local if isinstance(content, int) else local + content
        if isinstance(content, int):
            starts[name] = start
            checksums[name] = (position + 14, len(directory) + 16)
        directory += _central_header(path, size, crc32, position, limit)
        position = start + size
    frame[position] = directory + _end(len(records), len(directory), position, limit)
    placed = {name: (local, position + central) for name, (local, central) in checksums.items()}
    return ZipLayout(position + len(frame[position]), frame, starts, placed)


def _local_header(path: bytes, size: int, crc32: int, position: int) -> bytes:
    """Returns a record's local header, with a padding field that aligns the record."""
    sizes = struct.pack("<2H2Q", 1, 16, size, size)
    padding = -(position + _LOCAL.size + len(path) + len(sizes) + 4) % ALIGNMENT
    extra = sizes + struct.pack("<2sH", b"FB", padding) + bytes(padding)
    fixed = (_VERSION, 0, 0, 0, _DATE, crc32, _ELSEWHERE, _ELSEWHERE, len(path), len(extra))
    return _LOCAL.pack(b"PK\3\4", *fixed) + path + extra


def _central_header(path: bytes, size: int, crc32: int, position: int, limit: int) -> bytes:
    """Returns a record's entry in the directory."""
    wide = [value for value in (size, size, position) if value >= limit]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    fixed = (_VERSION, _VERSION, 0, 0, 0, _DATE, crc32, *(_narrow(size, limit),) * 2)
    rest = (len(path), len(extra), 0, 0, 0, 0, _narrow(position, limit))
    return _CENTRAL.pack(b"PK\1\2", *fixed, *rest) + path + extra


def _end(count: int, size: int, position: int, limit: int) -> bytes:
    """Returns the end records of the directory at `position`, with 64-bit ones where needed."""
    wide = b""
    if count >= 0xFFFF or size >= limit or position >= limit:
        totals = (count, count, size, position)
        wide = _END64.pack(b"PK\6\6", _END64.size - 12, _VERSION, _VERSION, 0, 0, *totals)
        wide += _LOCATOR.pack(b"PK\6\7", 0, position + size, 1)
    counts = (min(count, 0xFFFF),) * 2
    return wide + _END.pack(
        b"PK\5\6", 0, 0, *counts, _narrow(size, limit), _narrow(position, limit), 0
    )


def _narrow(value: int, limit: int) -> int:
    return value if value < limit else _ELSEWHERE
