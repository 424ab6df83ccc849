"""Writes checkpoint files: lays each out before any tensor is read, then fills it in any order."""

import dataclasses
import hashlib
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np

from jaxllm.errors import CheckpointArgumentError, CheckpointError, NarrowingError
from jaxllm.storage.whole_file import naming

from .byte_sizes import format_size
from .lazy_tensor import TensorSource

CHUNK_BYTES = 8 << 20
ITEM_BYTES = 16  # of the largest dtype
WORKERS = min(4, os.cpu_count() or 1)

Result = TypeVar("Result")
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class PlannedFile:
    """The layout of a file: everything but the data of its tensors. Offsets count bytes.

    Attributes:
        name: the file's name.
        size: bytes of the whole file.
        frame: the bytes around the tensors, such as headers, by offset.
        places: the offset of each tensor's data.
        checksums: the offsets at which the CRC-32 of each tensor's data is to be written.
    """

    name: str
    size: int
    frame: Mapping[int, bytes]
    places: Mapping[str, int]
    checksums: Mapping[str, tuple[int, ...]]

    def prefixed(self, prefix: str) -> Self:
        """Returns the same file with `prefix` before the name of every tensor."""
        places = {prefix + name: place for name, place in self.places.items()}
        checksums = {prefix + name: offsets for name, offsets in self.checksums.items()}
        return dataclasses.replace(self, places=places, checksums=checksums)


class Digest(NamedTuple):
    """Checksums of a tensor's bytes in C order."""

    sha256: str
    crc32: int


def write_files(
    folder: Path,
    files: Sequence[PlannedFile],
    tensors: Mapping[str, TensorSource],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    workers: int = WORKERS,
) -> None:
    """Writes files into an existing folder; a failure leaves none of them behind.

    Args:
        folder: the folder.
        files: the layouts of the files.
        tensors: the tensors to fill them with, by name.
        chunk_bytes: the most bytes of a tensor that a thread reads at a time.
        workers: the number of threads, each of which writes one tensor at a time.

    Raises:
        CheckpointError: the disk has too little space, or a tensor does not have its declared
            dtype or shape.
    """
    check_space(folder, sum(file.size for file in files))
    file_of = {name: file for file in files for name in file.places}
    finished: list[PlannedFile] = []

    def fill_one(name: str) -> Digest:
        return fill(folder, file_of[name], name, tensors[name], chunk_bytes=chunk_bytes)

    try:
        for file in files:
            create(folder, file)
        names = [name for name in tensors if name in file_of]
        digests = dict(zip(names, in_threads(fill_one, names, workers), strict=True))
        for file in files:
            finish(folder, file, digests)
            finished.append(file)
    except BaseException:
        for file in finished:
            (folder / file.name).unlink()
        raise
    finally:
        for file in files:
            partial_path(folder, file).unlink(missing_ok=True)


def partial_path(folder: Path, file: PlannedFile) -> Path:
    """Returns the path of a file while it is incomplete, which no reader mistakes for a file."""
    return folder / f"{file.name}.partial"


def check_space(folder: Path, needed: int) -> None:
    """Raises CheckpointArgumentError if the disk of `folder` has fewer than `needed` free bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointArgumentError(
            f"{folder} needs {format_size(needed)}, but only {format_size(free)} are free"
        )


def create(folder: Path, file: PlannedFile) -> None:
    """Creates the incomplete file at its full size, or keeps the data of an earlier attempt."""
    path = partial_path(folder, file)
    with naming(path), path.open("r+b" if path.exists() else "wb") as stream:
        stream.truncate(file.size)
        for offset, data in file.frame.items():
            stream.seek(offset)
            stream.write(data)


def fill(
    folder: Path,
    file: PlannedFile,
    name: str,
    source: TensorSource,
    *,
    chunk_bytes: int,
    hashed: bool = False,
    progress: Progress | None = None,
) -> Digest:
    """Writes the data of one tensor into the incomplete file.

    Args:
        folder: the folder of the file.
        file: its layout.
        name: the tensor.
        source: its data.
        chunk_bytes: the most bytes to read at a time.
        hashed: whether to compute the SHA-256; without it the digest's `sha256` is empty.
        progress: called with the bytes of each chunk that is written.

    Returns:
        The checksums of the data. `crc32` is 0 if the file has no place for it.

    Raises:
        CheckpointError: the tensor cannot be read or does not have its declared dtype or shape.
    """
    path = partial_path(folder, file)
    sha256, crc32 = hashlib.sha256(), 0
    with path.open("r+b") as stream:
        stream.seek(file.places[name])
        try:
            for chunk in source.payload(chunk_bytes, _room(max(chunk_bytes, ITEM_BYTES))):
                with chunk:
                    with naming(path):
                        stream.write(chunk)
                    if hashed:
                        sha256.update(chunk)
                    if name in file.checksums:
                        crc32 = zlib.crc32(chunk, crc32)
                    if progress is not None:
                        progress(chunk.nbytes)
        except NarrowingError:
            raise  # the caller reports all tensors at once
        except CheckpointError as error:
            raise CheckpointError(error.within(f"{folder / file.name}: tensor {name!r}")) from None
        with naming(path):
            _start_writeback(stream, file.places[name], source.nbytes)
    return Digest(sha256.hexdigest() if hashed else "", crc32)


_ROOMS = threading.local()


def _room(nbytes: int) -> np.ndarray:
    """Returns memory for chunks of this size, the same at every call of a thread."""
    room = getattr(_ROOMS, "held", None)
    if room is None or len(room) < nbytes:
        room = _ROOMS.held = np.empty(nbytes, np.uint8)
    return room


def _start_writeback(stream: BufferedRandom, offset: int, nbytes: int) -> None:
    """Starts writing part of a file to disk, so that the final fsync has less to wait for."""
    stream.flush()
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(stream.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)


def is_laid_out(folder: Path, file: PlannedFile) -> bool:
    """Whether the complete file is there, with its planned size and headers."""
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        for offset, data in file.frame.items():
            stream.seek(offset)
            if not file.checksums and stream.read(len(data)) != data:
                return False
    return True


def stored_sha256(path: Path, offset: int, nbytes: int) -> str:
    """Returns the SHA-256 of the bytes that a file has at a tensor's place."""
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(offset)
        while nbytes and (chunk := stream.read(min(nbytes, CHUNK_BYTES))):
            sha256.update(chunk)
            nbytes -= len(chunk)
    return sha256.hexdigest()


def finish(folder: Path, file: PlannedFile, digests: Mapping[str, Digest]) -> None:
    """Writes the checksums, flushes the file to disk and gives it its final name."""
    path = partial_path(folder, file)
    with naming(path), path.open("r+b") as stream:
        for name, offsets in file.checksums.items():
            for offset in offsets:
                stream.seek(offset)
                stream.write(digests[name].crc32.to_bytes(4, "little"))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(path, folder / file.name)


def sync(path: Path) -> None:
    """Flushes a file to disk, or the file names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def in_threads(
    task: Callable[[str], Result], names: Sequence[str], workers: int = WORKERS
) -> list[Result]:
    """Returns `task(name)` for every name, run in `workers` threads; one failure stops the rest."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(task, name) for name in names]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]
