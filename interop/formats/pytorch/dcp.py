"""Checkpoints of `torch.distributed.checkpoint` (DCP), read without PyTorch.

`.metadata` is a pickle that lists, for every tensor, its chunks and where each of them lies in the
`.distcp` files of the processes that wrote them. Each chunk is a `torch.save` file embedded in a
`.distcp` file, and so is each value that is not a tensor. Nothing that the pickles name is imported
or run.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxllm.interop.formats.sharded_tensor import Chunk, ShardedTensor, join
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor, checked_shape
from jaxllm.untrusted.substitutes import check_is_content

from . import torch_zip
from .pickle_reader import Record
from .torch_pickle import parse_value

METADATA = ".metadata"

_MODULE = "torch.distributed.checkpoint"


class Contents(NamedTuple):
    """The entries of a checkpoint, by name."""

    tensors: dict[str, ShardedTensor]
    # Read when called: a checkpoint may hold any values, such as the state of a data loader.
    values: dict[str, Callable[[], object]]


class _Object(Record):
    """A record that keeps the attributes of the pickled object."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def get(self, name: str) -> object:
        """Returns an attribute, or None if the object does not have it."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class _Tensor(_Object):
    """Stands for a `TensorStorageMetadata`."""


class _Bytes(_Object):
    """Stands for a `BytesStorageMetadata`."""


class _Size(Record):
    """Stands for a `torch.Size`."""


_OBJECTS = (
    *("Metadata", "MetadataIndex", "ChunkStorageMetadata", "StorageMeta"),
    *("TensorProperties", "_MEM_FORMAT_ENCODING"),
)
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("int64", "int32", "int16", "int8", "uint8"),
)
_OLD = (
    "torch.distributed._shard.sharded_tensor.metadata"  # the module of some of them in PyTorch 2.1
)

_KNOWN: dict[tuple[str, str], object] = {
    (f"{_MODULE}.metadata", "TensorStorageMetadata"): _Tensor,
    (f"{_MODULE}.metadata", "BytesStorageMetadata"): _Bytes,
    (f"{_MODULE}.filesystem", "_StorageInfo"): _Object,
    **{(f"{_MODULE}.metadata", name): _Object for name in _OBJECTS},
    **{(_OLD, name): _Object for name in ("TensorProperties", "MEM_FORMAT_ENCODING")},
    **{("torch", name): name for name in _DTYPES},  # not used: each stored chunk has its dtype
    ("torch.serialization", "_get_layout"): Record,
    ("torch", "Size"): _Size,
    ("pathlib", "PosixPath"): Record,
    ("pathlib", "PurePosixPath"): Record,
    ("pathlib", "WindowsPath"): Record,
}


def is_dcp(path: Path) -> bool:
    """Returns whether a folder is a DCP checkpoint."""
    return (path / METADATA).is_file()


def read(folder: Path) -> Contents:
    """Locates every tensor and every other value; no tensor is read.

    Raises:
        CheckpointError: files are damaged or missing, or disagree with the metadata. Lists every
            problem.
    """
    try:
        check_is_content(folder / METADATA, is_binary=True)
        metadata = parse_value((folder / METADATA).read_bytes(), _KNOWN)
        return _Reader(folder, metadata).read()
    except CheckpointError as error:
        raise CheckpointError(error.within(folder / METADATA)) from None
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: {error.strerror}") from None


class _Place(NamedTuple):
    """A byte range of a file."""

    file: str
    offset: int
    length: int


class _Reader:
    """Locates the entries of a metadata file."""

    def __init__(self, folder: Path, metadata: object):
        entries, places = (
            metadata.get(name) if isinstance(metadata, _Object) else None
            for name in ("state_dict_metadata", "storage_data")
        )
        if not isinstance(entries, dict) or not isinstance(places, dict):
            raise CheckpointError(
                "it is not a Metadata object with state_dict_metadata and storage_data"
            )
        self.folder, self.entries = folder, entries
        self.files = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        self.places = dict(self._read_places(places))
        _check_apart(self.places)

    def read(self) -> Contents:
        """Returns all entries. Raises CheckpointError with every problem."""
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
        """Yields the place of each entry, by name and offsets (None for an entry without)."""
        for index, info in places.items():
            name = index.get("fqn") if isinstance(index, _Object) else None
            if not isinstance(name, str) or not isinstance(info, _Object):
                raise CheckpointError("an entry of storage_data does not have PyTorch's form")
            if info.get("transform_descriptors"):
                raise CheckpointError(f"{name!r} is compressed, which is not supported")
            match (info.get("relative_path"), info.get("offset"), info.get("length")):
                case (str(file), int(offset), int(length)) if offset >= 0 <= length:
                    offsets = index.get("offset")
                    at = None if offsets is None else _sizes(offsets)
                    yield (name, at), _Place(file, offset, length)
                case _:
                    raise CheckpointError(f"{name!r} has no place in a file")

    def _tensor(self, name: str, entry: _Tensor) -> ShardedTensor:
        shape, listed = _sizes(entry.get("size")), entry.get("chunks")
        if not isinstance(listed, list) or not all(isinstance(one, _Object) for one in listed):
            raise CheckpointError(f"{name}: it has no list of chunks")
        chunks: dict[tuple[int, ...], Chunk] = {}
        for one in listed:
            offsets = _sizes(one.get("offsets"))
            if offsets in chunks:
                raise CheckpointError(f"{name}: its chunks overlap at {list(offsets)}")
            chunks[offsets] = self._chunk(name, offsets, _sizes(one.get("sizes")))
        if any(len(offsets) != len(shape) for offsets in chunks):
            raise CheckpointError(
                f"{name}: a chunk does not have the {len(shape)} dimensions of the tensor"
            )
        return join(name, shape, self.folder / METADATA, list(chunks.values()))

    def _chunk(self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Chunk:
        found = self._open(name, self._find(name, offsets))
        if not isinstance(found, StoredTensor):
            raise CheckpointError(f"{name}: a {type(found).__name__} is stored, not a tensor")
        if found.shape != sizes or len(offsets) != len(sizes):
            raise CheckpointError(
                f"{name}: the chunk at {list(offsets)} should have shape {list(sizes)}, "
                f"but {list(found.shape)} is stored"
            )
        return Chunk(offsets, found)

    def _find(self, name: str, offsets: tuple[int, ...] | None) -> _Place:
        place = self.places.get((name, offsets))
        where = "" if offsets is None else f" at {list(offsets)}"
        if place is None:
            raise CheckpointError(f"{name}{where}: storage_data names no file for it")
        # A name that the listing lacks is a missing file, or a path that leads out of the folder.
        if place.file not in self.files:
            raise CheckpointError(f"{name}{where}: {place.file!r} is not a file in this folder")
        if place.offset + place.length > self.files[place.file]:
            raise CheckpointError(f"{name}{where}: {place.file} ends before its last byte")
        return place

    def _open(self, name: str, place: _Place) -> object:
        path = self.folder / place.file
        try:
            with path.open("rb") as stream:
                part = io.BufferedReader(_FileRange(stream, place.offset, place.length))
                return torch_zip.read_value(part, path, place.offset)
        except CheckpointError as error:
            raise CheckpointError(error.within(f"{path}: {name}")) from None


def _check_apart(places: Mapping[tuple, _Place]) -> None:
    """Raises CheckpointError if places overlap: every byte of a file belongs to one entry."""
    in_order = sorted(
        (place.file, place.offset, place.length, key[0]) for key, place in places.items()
    )
    for (file, start, length, name), (next_file, next_start, _, next_name) in pairwise(in_order):
        if file == next_file and start + length > next_start:
            raise CheckpointError(f"{name!r} and {next_name!r} overlap in {file!r}")


class _FileRange(io.RawIOBase):
    """A read-only file over a byte range of another file."""

    def __init__(self, stream: BinaryIO, start: int, size: int):
        super().__init__()
        self._stream, self._start, self._size, self._at = stream, start, size, 0

    def seekable(self) -> bool:
        """Always True."""
        return True

    def readable(self) -> bool:
        """Always True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("cannot seek before the start of the file")
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
    """Returns the sizes in a `torch.Size`. Raises CheckpointError for anything else."""
    match value:
        case _Size(arguments=(tuple() as sizes,)):
            return checked_shape(sizes, np.dtype(np.uint8))
    raise CheckpointError("a shape is not a torch.Size")
