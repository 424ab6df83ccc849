"""Files of tokens that others wrote: .npy, and the .bin of nanoGPT, llm.c and Megatron."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxllm.errors import UserError, first_line

from .sharded import Part, ShardedArray, sample_file
from .windows import TokenStream

MEGATRON = b"MMIDIDX\x00\x00"
# The types of tokens by Megatron's codes.
_MEGATRON_TYPES = {
    **{1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16},
}
LLM_C, LLM_C_HEADER = 20240520, 1024  # the first number of the header, and its bytes
ENDS = (".npy", ".bin")


class TokenFile(NamedTuple):
    """The tokens of a file, and where documents begin in it, if it says so."""

    part: Part
    starts: np.ndarray | None = None


def read_token_files(
    files: Sequence[Path], ends_with: int | None = None, limit: int | None = None
) -> TokenStream:
    """Returns the tokens of files as one stream, of which what is asked for is read.

    Args:
        files: .npy files with one dimension; or .bin files: of Megatron, with an .idx file beside
            each; of llm.c, with a header; or of nanoGPT, whose tokens are uint16.
        ends_with: the token that ends documents, where files do not say where they begin.
        limit: the number of tokens that the model has.

    Raises:
        UserError: a file is none of these, or has no tokens.
    """
    found = [read_token_file(file) for file in files]
    tokens = ShardedArray([each.part for each in found], limit)
    if not all(each.starts is not None for each in found):
        return TokenStream(tokens, None, ends_with=ends_with)
    bases = tokens.ends - np.array([each.part.length for each in found], np.int64)
    starts = [
        each.starts + base
        for each, base in zip(found, bases, strict=True)
        if each.starts is not None
    ]
    return TokenStream(tokens, np.concatenate([np.zeros(0, np.int64), *starts]))


def read_token_file(file: Path) -> TokenFile:
    """Reads the header of a file of tokens. Raises UserError if it is none."""
    try:
        index = file.with_suffix(".idx")
        if file.suffix == ".npy":
            found = TokenFile(npy_part(file))
            if found.part.dtype.kind not in "ui":
                raise ValueError(f"it has type {found.part.dtype}, not integers")
        elif file.suffix != ".bin":
            raise ValueError(f"its name does not end in {' or '.join(ENDS)}")
        elif index.exists():
            found = _megatron(file, index)
        else:
            found = TokenFile(_bin(file))
    except (ValueError, OverflowError, EOFError, struct.error) as error:
        raise UserError(f"{file}: this is not a file of tokens: {first_line(error)}") from None
    if found.part.length < 2:
        raise UserError(f"{file}: this file of tokens is empty; remove it, or leave it out")
    return found


def _part(file: Path, dtype: type | np.dtype, offset: int, length: int) -> Part:
    size = file.stat().st_size
    if offset + length * np.dtype(dtype).itemsize != size:
        raise ValueError(
            f"it has {size:,} bytes, not {offset:,} and {length:,} tokens of type {np.dtype(dtype)}"
        )
    return Part(file, np.dtype(dtype), offset, length, size, sample_file(file))


def npy_part(file: Path) -> Part:
    """Returns the array in a .npy file. Raises ValueError if it has not one dimension."""
    with file.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        if version[0] not in read:
            raise ValueError(f"its version {version} of the format is not known")
        shape, _, dtype = read[version[0]](stream)
        offset = stream.tell()
    if len(shape) != 1:
        raise ValueError(f"it has shape {shape}, not one dimension")
    return _part(file, dtype, offset, shape[0])


def _bin(file: Path) -> Part:
    """Reads what nanoGPT or llm.c wrote; the header of the second says how many tokens follow."""
    size = file.stat().st_size
    header = np.fromfile(file, "<i4", 3)
    if len(header) == 3 and header[0] == LLM_C:
        return _part(file, np.dtype("<u2"), LLM_C_HEADER, int(header[2]))
    if size % 2:
        raise ValueError(f"it has {size:,} bytes, an odd number, and tokens are of two")
    return _part(file, np.dtype("<u2"), 0, size // 2)


def _megatron(file: Path, index: Path) -> TokenFile:
    """Reads an index: the type, and the length and the place of each sequence and document."""
    with index.open("rb") as stream:
        magic, version, code, sequences, documents = struct.unpack("<9sQBQQ", stream.read(34))
        if magic != MEGATRON or version != 1 or code not in _MEGATRON_TYPES:
            raise ValueError(f"{index.name} beside it is no index of Megatron")
        lengths = np.fromfile(stream, "<i4", sequences)
        pointers = np.fromfile(stream, "<i8", sequences)
        firsts = np.fromfile(stream, "<i8", documents)
    if (len(lengths), len(pointers), len(firsts)) != (sequences, sequences, documents):
        raise ValueError(f"{index.name} beside it is cut short")
    dtype = np.dtype(_MEGATRON_TYPES[code]).newbyteorder("<")
    ends = np.cumsum(lengths, dtype=np.int64)
    begins = ends - lengths
    if not np.array_equal(begins * dtype.itemsize, pointers):
        raise ValueError(f"the sequences in {index.name} do not follow each other")
    length = int(ends[-1]) if sequences else 0
    places = np.append(begins, length)[firsts[:-1]]
    return TokenFile(_part(file, dtype, 0, length), np.unique(places[places < length]))
