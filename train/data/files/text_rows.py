"""Rows of text files: .txt, JSON Lines, also compressed, and .json with a list."""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from jaxllm.errors import MissingPackageError, UserError

from .row import Row, same, unreadable

CHUNK = 1 << 20  # bytes of a .json file that are read at a time
COMPRESSED = 1 << 12  # likewise of a compressed one, whose content may be a thousand times as large


def text_file(file: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yields a text file as one row, an object with the text in the first column."""
    if content := file.read_bytes():
        yield Row(file, "", 1, content, lambda content: {columns[0]: _utf8(content)})


def json_lines(file: Path, _: tuple[str, ...]) -> Iterator[Row]:
    """Yields each line that is not blank."""
    number, size = 0, file.stat().st_size
    with file.open("rb") as stored, _lines(file, stored) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Row(file, "line", number, line, _json, stored.tell() / size)
        except Exception as error:  # of zlib, Zstandard or the file system
            raise UserError(f"{file}, line {number + 1:,}: it cannot be read: {error}") from None


def json_list(file: Path, _: tuple[str, ...]) -> Iterator[Row]:
    """Yields each item of the list in a .json file, of which a part is in memory at a time."""
    decoder, number, text, ended = json.JSONDecoder(), 0, "", False
    size = file.stat().st_size
    with file.open("rb") as stored, io.TextIOWrapper(stored, "utf-8") as stream:
        try:
            text = stream.read(CHUNK).lstrip()
            if not text:
                return
            if not text.startswith("["):
                raise ValueError("it begins with no list of objects")
            text, separator = text[1:], ""
            while True:
                text = text.lstrip()
                if text.startswith("]") and separator != ",":
                    return
                value, end = _item(decoder, text)
                if end is None:
                    if ended:
                        raise ValueError(f"item {number + 1:,} is no JSON: {value}")
                    more = stream.read(max(CHUNK, len(text)))
                    text, ended = text + more, not more
                    continue
                number += 1
                yield Row(file, "item", number, value, same, stored.tell() / size)
                separator, text = text[end], text[end + 1 :]
                if separator == "]":
                    return
        except (ValueError, RecursionError) as error:  # also what is not UTF-8
            raise unreadable(file, "a .json file with a list", error) from None


def _item(decoder: json.JSONDecoder, text: str) -> tuple[Any, int | None]:
    """Returns the item at the beginning of a text and the place of what follows it, `,` or `]`.

    The place is None if more text is needed, or the item is no JSON, which the value then says.
    """
    try:
        value, end = decoder.raw_decode(text)
    except ValueError as error:
        return error, None
    while end < len(text) and text[end].isspace():
        end += 1
    if end == len(text):
        return "the list does not end", None
    if text[end] not in ",]":
        return f"{text[end]!r} follows it", None
    return value, end


def _json(line: bytes) -> Any:
    return json.loads(line.decode())


def _utf8(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error}") from error


def _lines(file: Path, stored: BinaryIO) -> IO[bytes]:
    """Returns the lines of an open file, decompressed if its name says so."""
    if file.suffix == ".gz":
        return cast(IO[bytes], gzip.open(stored, "rb"))
    if file.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise MissingPackageError(
                f"{file} needs zstandard, which is not installed: pip install 'jaxllm[data]'"
            ) from None
        start = zstandard.ZstdDecompressor().decompressobj
        return cast(IO[bytes], io.BufferedReader(_Decompressed(_frames(stored, start))))
    return stored


def _frames(stored: BinaryIO, start: Callable[[], Any]) -> Iterator[bytes]:
    """Yields the content of a file of Zstandard frames.

    Raises EOFError if it ends inside one, which Zstandard's own reader passes over.
    """
    chunk = stored.read(COMPRESSED)
    while chunk:
        frame = start()
        while not frame.eof:
            if not chunk:
                raise EOFError("the compressed file ends before its content does: it was cut short")
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else stored.read(COMPRESSED)
        chunk = chunk or stored.read(COMPRESSED)


class _Decompressed(io.RawIOBase):
    """A readable file of parts."""

    def __init__(self, parts: Iterator[bytes]):
        self._parts, self._left = parts, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            if (part := next(self._parts, None)) is None:
                return 0
            self._left = part
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count
