"""Checkpoint files laid out before any tensor is read, and filled in any order."""

import dataclasses
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from .lazy_tensor import TensorSource
from .stored_tensor import CheckpointError

CHUNK_BYTES = 8 << 20
WORKERS = min(4, os.cpu_count() or 1)

Result = TypeVar("Result")
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class PlannedFile:
    """A file of which all is known but the numbers in its tensors. Offsets count bytes."""

    name: str
    size: int
    frame: Mapping[int, bytes]  # by offset: what stands around the tensors
    places: Mapping[str, int]  # by tensor: where its numbers begin
    checksums: Mapping[str, tuple[int, ...]]  # by tensor: where the CRC-32 of its numbers stands

    def prefixed(self, prefix: str) -> Self:
        """The same file, of tensors that the checkpoint knows under a longer name."""
        places = {prefix + name: place for name, place in self.places.items()}
        checksums = {prefix + name: offsets for name, offsets in self.checksums.items()}
        return dataclasses.replace(self, places=places, checksums=checksums)


class Digest(NamedTuple):
    """What the bytes of a tensor in C order add up to."""

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
    """Writes files into an existing folder, `workers` tensors at a time and of each a chunk.

    Raises CheckpointError if a tensor is not what was announced; a failure leaves nothing behind.
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
    """Where a file lies until it is complete: no reader takes it for one that is."""
    return folder / f"{file.name}.partial"


def check_space(folder: Path, needed: int) -> None:
    """Raises CheckpointError if the disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(f"{folder} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def create(folder: Path, file: PlannedFile) -> None:
    """Lays the file out at its full size; what an earlier attempt has filled in stays."""
    path = partial_path(folder, file)
    with path.open("r+b" if path.exists() else "wb") as stream:
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
    """Writes the numbers of one tensor. The digest's sha256 is empty unless `hashed`."""
    path = partial_path(folder, file)
    sha256, crc32 = hashlib.sha256(), 0
    with path.open("r+b") as stream:
        stream.seek(file.places[name])
        try:
            for chunk in source.payload(chunk_bytes):
                stream.write(chunk)
                if hashed:
                    sha256.update(chunk)
                if name in file.checksums:
                    crc32 = zlib.crc32(chunk, crc32)
                if progress is not None:
                    progress(chunk.nbytes)
        except CheckpointError as error:
            raise CheckpointError(error.within(f"{folder / file.name}: tensor {name!r}")) from None
        _begin_to_store(stream, file.places[name], source.nbytes)
    return Digest(sha256.hexdigest() if hashed else "", crc32)


def _begin_to_store(stream: BufferedRandom, offset: int, nbytes: int) -> None:
    """Has the disk begin with a part of a file, so that less is left to wait for at the end."""
    stream.flush()
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(stream.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)


def written_sha256(folder: Path, file: PlannedFile, name: str, nbytes: int) -> str:
    """The sha256 of what the file has in the place of a tensor."""
    sha256 = hashlib.sha256()
    with partial_path(folder, file).open("rb") as stream:
        stream.seek(file.places[name])
        while nbytes and (chunk := stream.read(min(nbytes, CHUNK_BYTES))):
            sha256.update(chunk)
            nbytes -= len(chunk)
    return sha256.hexdigest()


def finish(folder: Path, file: PlannedFile, digests: Mapping[str, Digest]) -> None:
    """Gives the file its name, once it is complete and on the disk."""
    path = partial_path(folder, file)
    with path.open("r+b") as stream:
        for name, offsets in file.checksums.items():
            for offset in offsets:
                stream.seek(offset)
                stream.write(digests[name].crc32.to_bytes(4, "little"))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(path, folder / file.name)


def sync(path: Path) -> None:
    """Puts a file, or the names of the files in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def in_threads(
    task: Callable[[str], Result], names: Sequence[str], workers: int = WORKERS
) -> list[Result]:
    """Returns `task(name)` of every name, `workers` at a time; the first failure ends them all."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(task, name) for name in names]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]
