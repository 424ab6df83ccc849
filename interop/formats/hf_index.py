"""Index files of Hugging Face folders: which shard holds each tensor."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

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

    Returns:
        The tensors by name, in the order of the index file.

    Raises:
        CheckpointError: the index file or a shard is damaged, or they disagree. Lists every
            problem.
    """
    places = _read_index(index)
    directory, found = index.parent, {path.name for path in index.parent.iterdir()}
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        # A name that the listing lacks is a missing file, or a path that leads out of the folder.
        if file not in found or not (directory / file).is_file():
            problems.append(f"{index}: {file!r} is not a file in this folder")
            continue
        try:
            stored = read_header(directory / file)
        except CheckpointError as error:
            problems += error.problems
            continue
        tensors |= stored
        problems += _placement_problems(directory / file, stored.keys(), places)
    if problems:
        raise CheckpointError(problems)
    return {name: tensors[name] for name in places}


def _read_index(path: Path) -> dict[str, str]:
    try:
        check_is_content(path)
        places = parse_json(read_bytes(path)).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise CheckpointError("weight_map does not map tensor names to file names")
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None
    return places


def _placement_problems(path: Path, stored: Iterable[str], places: Mapping[str, str]) -> list[str]:
    here = {name for name, file in places.items() if file == path.name}
    problems = [
        f"{path}: tensor {name!r} is missing, but the index places it in this file"
        for name in sorted(here.difference(stored))
    ]
    for name in sorted(set(stored) - here):
        place = f"the index places it in {places[name]!r}" if name in places else "not in the index"
        problems.append(f"{path}: tensor {name!r} is in this file, but {place}")
    return problems
