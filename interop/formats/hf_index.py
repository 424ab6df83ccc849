"""Index files of Hugging Face folders: which shard holds each tensor."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from jaxllm.errors import listed
from jaxllm.untrusted.json_objects import parse_json
from jaxllm.untrusted.regular_files import read_bytes
from jaxllm.untrusted.substitutes import check_is_content

from .stored_tensor import CheckpointError, StoredTensor

ReadHeader = Callable[[Path], Mapping[str, StoredTensor]]

logger = logging.getLogger(__name__)


def read_single_or_indexed(
    directory: Path, single: str, index: str, read_header: ReadHeader
) -> dict[str, StoredTensor]:
    """Locates every tensor of a folder: of its single file, else of its index file.

    That is transformers' order of preference. An index file beside a single file is a leftover of
    an earlier, sharded save.

    Args:
        directory: the folder.
        single: the name of the file that holds all tensors.
        index: the name of the index file.
        read_header: locates the tensors of one file.

    Raises:
        CheckpointError: the folder has neither, or a file is damaged. Lists every problem.
    """
    found = sorted(path.name for path in directory.iterdir())
    files = [name for name in (single, index) if (directory / name).is_file()]
    if len(files) == 2:
        logger.warning(
            "%s has both %s and %s: only %s is read, as transformers does",
            *(directory, single, index, single),
        )
    # An entry that is not a file, such as a dangling link, is opened for its error.
    chosen = next((name for name in (*files, single, index) if name in found), None)
    if chosen == single:
        return dict(read_header(directory / single))
    if chosen == index:
        return read_indexed(directory / index, read_header)
    content = ", ".join(found) or "nothing"
    raise CheckpointError(f"{directory}: no {index} and no {single}; found {content}")


def read_indexed(index: Path, read_header: ReadHeader) -> dict[str, StoredTensor]:
    """Locates every tensor in the shard that the index file names; no tensor is read.

    A shard must be an entry of the index file's own folder. Such an entry may be a link, as in the
    cache of the Hugging Face hub; a path that leads out of the folder is rejected.

    Args:
        index: the index file.
        read_header: locates the tensors of one shard.

    As in transformers, a stale index is no error if each tensor is in one of the shards that it
    lists: it is read from there, with a warning.

    Returns:
        The tensors by name, in the order of the index file, those that it lacks last.

    Raises:
        CheckpointError: the index file or a shard is damaged, or several shards have a tensor.
            Lists every problem.
    """
    places = _read_index(index)
    directory, found = index.parent, {path.name for path in index.parent.iterdir()}
    problems: list[str] = []
    shards: dict[str, Mapping[str, StoredTensor]] = {}
    for file in sorted(set(places.values())):
        # A name that the listing lacks is a missing file, or a path that leads out of the folder.
        if file not in found or not (directory / file).is_file():
            problems.append(f"{index}: {file!r} is not a file in this folder")
            continue
        try:
            shards[file] = read_header(directory / file)
        except CheckpointError as error:
            problems += error.problems
    holders = _holders(shards)
    problems += _ambiguities(directory, holders, places)
    if problems:
        raise CheckpointError(problems)
    _warn_if_stale(index, holders, places)
    names = [name for name in dict.fromkeys([*places, *holders]) if name in holders]
    return {name: shards[holders[name][0]][name] for name in names}


def _holders(shards: Mapping[str, Mapping[str, StoredTensor]]) -> dict[str, list[str]]:
    """Returns the files that have each tensor."""
    holders: dict[str, list[str]] = {}
    for file, tensors in shards.items():
        for name in tensors:
            holders.setdefault(name, []).append(file)
    return holders


def _ambiguities(
    directory: Path, holders: Mapping[str, Sequence[str]], places: Mapping[str, str]
) -> Iterator[str]:
    for name, files in holders.items():
        place = f"the index places it in {places[name]!r}" if name in places else "not in the index"
        for file in files if len(files) > 1 else ():
            if file != places.get(name):
                yield (
                    f"{directory / file}: tensor {name!r} is in this file and in others, but "
                    f"{place}"
                )


def _warn_if_stale(
    index: Path, holders: Mapping[str, Sequence[str]], places: Mapping[str, str]
) -> None:
    if gone := [name for name in places if name not in holders]:
        logger.warning(
            "%s is stale: it lists %s, which no file has", index, ", ".join(listed(gone, str))
        )
    if moved := [name for name, (file,) in holders.items() if places.get(name) != file]:
        logger.warning(
            "%s is stale: in other files than it says: %s",
            *(index, ", ".join(listed(moved, str))),
        )


def _read_index(path: Path) -> dict[str, str]:
    try:
        check_is_content(path)
        places = parse_json(read_bytes(path)).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise CheckpointError("weight_map does not map tensor names to file names")
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None
    return places
