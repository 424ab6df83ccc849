"""The index of a Hugging Face folder: which of its files holds each tensor."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .stored_tensor import CheckpointError, StoredTensor, parse_json

ReadHeader = Callable[[Path], Mapping[str, StoredTensor]]


def read_indexed(index: Path, read_header: ReadHeader) -> dict[str, StoredTensor]:
    """Where each tensor of the folder lies: where the index says, and nowhere else.

    Only names of the folder's own entries are followed, which may be links to other places: the
    cache of Hugging Face's hub is made of such. A path that leads elsewhere is refused.

    Raises `CheckpointError` with all problems of the index and of the files that it lists.
    """
    places = _read_index(index)
    directory, found = index.parent, {path.name for path in index.parent.iterdir()}
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        # What the listing lacks is missing, or a path that leads out of the directory.
        if file not in found or not (directory / file).is_file():
            problems.append(f"{index}: {file!r} is not a file of this directory")
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
        places = parse_json(path.read_bytes()).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise CheckpointError("weight_map does not map tensor names to file names")
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None
    return places


def _placement_problems(path: Path, stored: Iterable[str], places: Mapping[str, str]) -> list[str]:
    here = {name for name, file in places.items() if file == path.name}
    problems = [
        f"{path}: tensor {name!r} is missing, the index places it here"
        for name in sorted(here.difference(stored))
    ]
    for name in sorted(set(stored) - here):
        place = f"the index places it in {places[name]!r}" if name in places else "not in the index"
        problems.append(f"{path}: tensor {name!r} is here, {place}")
    return problems
