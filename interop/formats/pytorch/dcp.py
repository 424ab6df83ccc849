"""Checkpoints of `torch.distributed.checkpoint` (DCP), read without PyTorch.

`.metadata` is a pickle that says of every tensor which boxes of it lie where in the `.distcp` files
of the processes that wrote it. Each box is a file of `torch.save` within such a file, and so is
each value that is no tensor. Nothing that they name is imported or run.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxllm.interop.formats.sharded_tensor import Chunk, ShardedTensor, join
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor, checked_shape

from . import torch_zip
from .torch_pickle import Record, parse_value

METADATA = ".metadata"

_MODULE = "torch.distributed.checkpoint"


class Contents(NamedTuple):
    """What a checkpoint holds, by name."""

    tensors: dict[str, ShardedTensor]
    values: dict[str, Callable[[], object]]  # read when called; there may be any, the loader's too


class _Object(Record):
    """An object that is known by its attributes."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def get(self, name: str) -> object:
        """An attribute; None if it has none of that name."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class _Tensor(_Object):
    """A `TensorStorageMetadata`."""


class _Bytes(_Object):
    """A `BytesStorageMetadata`."""


class _Size(Record):
    """A `torch.Size`."""


_OBJECTS = (
    *("Metadata", "MetadataIndex", "ChunkStorageMetadata", "StorageMeta"),
    *("TensorProperties", "_MEM_FORMAT_ENCODING"),
)
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("int64", "int32", "int16", "int8", "uint8"),
)
_OLD = "torch.distributed._shard.sharded_tensor.metadata"  # where PyTorch 2.1 had some of them

_KNOWN: dict[tuple[str, str], object] = {
    (f"{_MODULE}.metadata", "TensorStorageMetadata"): _Tensor,
    (f"{_MODULE}.metadata", "BytesStorageMetadata"): _Bytes,
    (f"{_MODULE}.filesystem", "_StorageInfo"): _Object,
    **{(f"{_MODULE}.metadata", name): _Object for name in _OBJECTS},
    **{(_OLD, name): _Object for name in ("TensorProperties", "MEM_FORMAT_ENCODING")},
    **{("torch", name): name for name in _DTYPES},  # which the tensors themselves say as well
    ("torch.serialization", "_get_layout"): Record,
    ("torch", "Size"): _Size,
    ("pathlib", "PosixPath"): Record,
    ("pathlib", "PurePosixPath"): Record,
    ("pathlib", "WindowsPath"): Record,
}


def is_dcp(path: Path) -> bool:
    """Whether a folder is such a checkpoint."""
    return (path / METADATA).is_file()


def read(folder: Path) -> Contents:
    """Where each tensor lies, and the values that are none; no number is read.

    Raises CheckpointError with everything that is damaged, missing, or not what it should be.
    """
    try:
        metadata = parse_value((folder / METADATA).read_bytes(), _KNOWN)
        return _Reader(folder, metadata).read()
    except CheckpointError as error:
        raise CheckpointError(error.within(folder / METADATA)) from None
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: {error.strerror}") from None


class _Place(NamedTuple):
    """Bytes of a file."""

    file: str
    offset: int
    length: int


class _Reader:
    """Follows the entries of a metadata file to where they lie."""

    def __init__(self, folder: Path, metadata: object):
        entries, places = (
            metadata.get(name) if isinstance(metadata, _Object) else None
            for name in ("state_dict_metadata", "storage_data")
        )
        if not isinstance(entries, dict) or not isinstance(places, dict):
            raise CheckpointError("it is no Metadata of tensors and where they are stored")
        self.folder, self.entries = folder, entries
        self.files = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        self.places = dict(self._read_places(places))

    def read(self) -> Contents:
        """Everything. Raises CheckpointError with all problems."""
        contents = Contents({}, {})
        problems: list[str] = []
        for name, entry in self.entries.items():
            try:
                match entry:
                    case _Tensor() if isinstance(name, str):
                        contents.tensors[name] = self._tensor(name, entry)
                    case _Bytes() if isinstance(name, str):
                        place = self._find(name, None)
                        contents.values[name] = partial(self._open, name, place)
                    case _:
                        raise CheckpointError(f"{name!r} is neither a tensor nor bytes")
            except CheckpointError as error:
                problems += error.problems
        if problems:
            raise CheckpointError(problems)
        return contents

    def _read_places(self, places: Mapping) -> Iterator[tuple[tuple, _Place]]:
        """By name and offsets, which are None of what is no tensor."""
        for index, info in places.items():
            if not isinstance(index, _Object) or not isinstance(info, _Object):
                raise CheckpointError("a place is not described as PyTorch describes it")
            offsets = index.get("offset")
            if info.get("transform_descriptors"):
                raise CheckpointError(f"{index.get('fqn')!r} is compressed, which is not read")
            match (info.get("relative_path"), info.get("offset"), info.get("length")):
                case (str(file), int(offset), int(length)) if offset >= 0 <= length:
                    at = None if offsets is None else _sizes(offsets)
                    yield (index.get("fqn"), at), _Place(file, offset, length)
                case _:
                    raise CheckpointError(f"{index.get('fqn')!r} has no place in a file")

    def _tensor(self, name: str, entry: _Tensor) -> ShardedTensor:
        shape, listed = _sizes(entry.get("size")), entry.get("chunks")
        if not isinstance(listed, list) or not all(isinstance(one, _Object) for one in listed):
            raise CheckpointError(f"{name}: it has no list of chunks")
        chunks = [
            self._chunk(name, _sizes(c.get("offsets")), _sizes(c.get("sizes"))) for c in listed
        ]
        if any(len(chunk.offsets) != len(shape) for chunk in chunks):
            raise CheckpointError(
                f"{name}: a chunk has not the {len(shape)} dimensions of its shape"
            )
        return join(name, shape, self.folder / METADATA, chunks)

    def _chunk(self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Chunk:
        found = self._open(name, self._find(name, offsets))
        if not isinstance(found, StoredTensor):
            raise CheckpointError(f"{name}: a {type(found).__name__} is stored in its place")
        if found.shape != sizes or len(offsets) != len(sizes):
            raise CheckpointError(
                f"{name}: its chunk at {list(offsets)} should be {list(sizes)}, "
                f"stored is {list(found.shape)}"
            )
        return Chunk(offsets, found)

    def _find(self, name: str, offsets: tuple[int, ...] | None) -> _Place:
        place = self.places.get((name, offsets))
        where = "" if offsets is None else f" at {list(offsets)}"
        if place is None:
            raise CheckpointError(f"{name}{where}: no file is said to hold it")
        # What the listing lacks is missing, or a path that leads out of the folder.
        if place.file not in self.files:
            raise CheckpointError(f"{name}{where}: {place.file!r} is not a file in this folder")
        if place.offset + place.length > self.files[place.file]:
            raise CheckpointError(f"{name}{where}: {place.file} ends before it does")
        return place

    def _open(self, name: str, place: _Place) -> object:
        path = self.folder / place.file
        try:
            with path.open("rb") as stream:
                part = io.BufferedReader(_Part(stream, place.offset, place.length))
                return torch_zip.read_value(part, path, place.offset)
        except CheckpointError as error:
            raise CheckpointError(error.within(f"{path}: {name}")) from None


class _Part(io.RawIOBase):
    """Some bytes of a file as a file of their own."""

    def __init__(self, stream: BinaryIO, start: int, size: int):
        super().__init__()
        self._stream, self._start, self._size, self._at = stream, start, size, 0

    def seekable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("before the start of the file")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase`."""
        self._stream.seek(self._start + self._at)
        wanted = max(min(len(buffer), self._size - self._at), 0)
        data = self._stream.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _sizes(value: object) -> tuple[int, ...]:
    """The numbers of a `torch.Size`. Raises CheckpointError for anything else."""
    match value:
        case _Size(arguments=(tuple() as sizes,)):
            return checked_shape(sizes, np.dtype(np.uint8))
    raise CheckpointError("a shape is not described as PyTorch describes it")
