"""Identity of the files that a checkpoint is read from: whether they changed meanwhile."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from .stored_tensor import CheckpointError

# Digested at both ends of a file: safetensors files begin with their header, zip files end with it.
HEADER_BYTES = 1 << 20
SAMPLE_BYTES, SAMPLE_EVERY = 1 << 18, 1 << 25  # of each 32 MiB, 256 KiB are digested


class SourceChangedError(CheckpointError):
    """A checkpoint that changed while it was read, so that what was read may mix two."""


def identify(files: Iterable[Path]) -> dict[Path, str]:
    """Returns the size, modification time, inode and digest of the headers of each file, as text.

    Raises:
        CheckpointError: a file cannot be read.
    """
    found = {}
    for file in sorted(set(files)):
        try:
            with file.open("rb") as stream:
                stat, digest = os.fstat(stream.fileno()), hashlib.sha256(stream.read(HEADER_BYTES))
                stream.seek(max(stat.st_size - HEADER_BYTES, 0))
                digest.update(stream.read(HEADER_BYTES))
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}") from None
        found[file] = (
            f"{stat.st_size} bytes of {stat.st_mtime_ns}, inode {stat.st_ino}, headers "
            f"{digest.hexdigest()[:16]}"
        )
    return found


def sample(paths: Iterable[Path], folder: Path) -> dict[str, str]:
    """Returns the size and a digest of samples of each file, by its name relative to a folder.

    Copies of files have the same. Checkpoints with other weights do not, unless what differs
    lies between the samples.

    Raises:
        CheckpointError: a file cannot be read.
    """
    found = {}
    for file in sorted(path for path in paths if path.is_file()):
        digest = hashlib.sha256()
        try:
            with file.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                for start in [*range(0, size, SAMPLE_EVERY), max(size - SAMPLE_BYTES, 0)]:
                    digest.update(os.pread(stream.fileno(), SAMPLE_BYTES, start))
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}") from None
        name = file.relative_to(folder).as_posix()
        found[name] = f"{size} bytes, digest {digest.hexdigest()[:16]}"
    return found


def check_unchanged(before: Mapping[Path, str]) -> None:
    """Checks that files are still the same.

    Args:
        before: what `identify` returned before the files were read.

    Raises:
        SourceChangedError: files were changed or replaced in between. Lists all of them.
    """
    problems: list[str] = []
    for file, identity in before.items():
        try:
            (now,) = identify([file]).values()
        except CheckpointError as error:
            problems += error.problems
            continue
        if now != identity:
            problems.append(f"{file} was {identity}; now it is {now}")
    if problems:
        raise SourceChangedError(
            [*problems, "run this again once nobody writes there"],
            "the checkpoint changed while it was read, and what was read may mix two",
        )
