"""A zip file of stored records, laid out before the content of its large records is known."""

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 64  # of records, as PyTorch writes them

_VERSION = 45  # of the format: the first with sizes of 64 bits
_DATE = 0x21  # 1980-01-01, so that equal content gives equal files
LIMIT = 0xFFFFFFFF  # from which on a size or an offset takes 64 bits, elsewhere
_ELSEWHERE = 0xFFFFFFFF
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


class ZipLayout(NamedTuple):
    """Where everything stands. Offsets count bytes."""

    size: int
    frame: dict[int, bytes]  # by offset: all but the large records
    starts: dict[str, int]  # by large record: where it begins
    checksums: dict[str, tuple[int, int]]  # by large record: where its CRC-32 is wanted


def lay_out(
    folder: str, records: Sequence[tuple[str, bytes | int]], *, limit: int = LIMIT
) -> ZipLayout:
    """Lays out records, each a name and its content, or its size if it is to be filled in.

    Sizes and offsets from `limit` on take 64 bits.
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
    """What precedes a record; a field without meaning moves the record to an aligned offset."""
    sizes = struct.pack("<2H2Q", 1, 16, size, size)
    padding = -(position + _LOCAL.size + len(path) + len(sizes) + 4) % ALIGNMENT
    extra = sizes + struct.pack("<2sH", b"FB", padding) + bytes(padding)
    fixed = (_VERSION, 0, 0, 0, _DATE, crc32, _ELSEWHERE, _ELSEWHERE, len(path), len(extra))
    return _LOCAL.pack(b"PK\3\4", *fixed) + path + extra


def _central_header(path: bytes, size: int, crc32: int, position: int, limit: int) -> bytes:
    """A record's entry in the directory."""
    wide = [value for value in (size, size, position) if value >= limit]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    fixed = (_VERSION, _VERSION, 0, 0, 0, _DATE, crc32, *(_narrow(size, limit),) * 2)
    rest = (len(path), len(extra), 0, 0, 0, 0, _narrow(position, limit))
    return _CENTRAL.pack(b"PK\1\2", *fixed, *rest) + path + extra


def _end(count: int, size: int, position: int, limit: int) -> bytes:
    """What follows the directory, which begins at `position`; in 64 bits as well if need be."""
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
