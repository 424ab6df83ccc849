"""Finds data files: by names, patterns and folders, on this machine and on object stores."""

import glob
import json
from collections.abc import Iterable
from pathlib import Path

from jaxllm.errors import MissingFileError, UserError
from jaxllm.hub import local_path
from jaxllm.storage.download import find_matching
from jaxllm.storage.paths import is_remote

from .named import is_dataset

# How the names of data files end: those of a folder that is given, not its other files.
ENDS = (
    *(".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json"),
    *(".parquet", ".arrow", ".array_record", ".arrayrecord"),
)
# Files of a folder that the package `datasets` has saved, and of one with several splits.
SAVED, SPLITS = "state.json", "dataset_dict.json"


def find_files(patterns: Iterable[str]) -> dict[str, int]:
    """Returns the files that patterns match and their sizes in bytes, and downloads none.

    Of a folder, these are the data files in it and in its folders, without hidden ones; of a folder
    that the package `datasets` has saved, its shards in their order.

    Raises:
        MissingFileError: a pattern matches no file.
        UserError: a folder has several splits, of which one must be named.
    """
    return {name: size for pattern in patterns for name, size in _matches(pattern).items()}


def local_files(patterns: Iterable[str], ends: tuple[str, ...] = ENDS) -> list[Path]:
    """Returns the files that patterns match; those of object stores are downloaded.

    Args:
        patterns: names, patterns and folders.
        ends: how the names of the files of a folder end.
    """
    names = [name for pattern in patterns for name in _matches(pattern, ends)]
    return [local_path(name) for name in dict.fromkeys(names)]


def _matches(pattern: str, ends: tuple[str, ...] = ENDS) -> dict[str, int]:
    if is_dataset(pattern):
        raise UserError(f"{pattern} names a dataset, which has no files here; train on its rows")
    if is_remote(pattern):
        found = find_matching(pattern)
    else:  # the name of a file may contain glob characters
        is_named = Path(pattern).exists()
        names = [pattern] if is_named else sorted(glob.glob(pattern, recursive=True))
        files = [file for name in names for file in _files_of(Path(name), is_named, ends)]
        found = {str(file): file.stat().st_size for file in files}
    if not found:
        raise MissingFileError(f"no file matches {pattern!r}")
    return found


def _files_of(path: Path, is_named: bool, ends: tuple[str, ...]) -> list[Path]:
    """Returns a file, or the files of a folder; a pattern matches folders of datasets only."""
    if path.is_file():
        return [path]
    if (path / SPLITS).is_file():
        names = json.loads((path / SPLITS).read_bytes())["splits"]
        raise UserError(
            f"{path} is a dataset with the splits {', '.join(names)}; give one, such as "
            f"{path / names[0]}"
        )
    if (path / SAVED).is_file():
        shards = json.loads((path / SAVED).read_bytes())["_data_files"]
        return [path / shard["filename"] for shard in shards]
    if not is_named:
        return []
    files = [file for file in path.rglob("*") if file.name.lower().endswith(ends)]
    names = sorted(file.relative_to(path) for file in files if file.is_file())
    return [path / name for name in names if not any(part[0] == "." for part in name.parts)]
