"""safetensors files and Hugging Face checkpoint directories, read lazily, written as a stream."""

import json
import reprlib
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .tensors import (
    DTYPE_NAMES,
    DTYPES,
    CheckpointError,
    StoredTensor,
    TensorSource,
    checked_shape,
    parse_json,
    replacing,
)

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the official reader's limit
PYTORCH_METADATA = MappingProxyType({"format": "pt"})  # transformers 4 refuses files without it


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a file lies; no tensor is read.

    Raises `CheckpointError`, with all problems, unless the tensors fill the file exactly.
    """
    try:
        header, start = _read_json_header(path)
        return _stored_tensors(path, header, start)
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None


def read_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a Hugging Face directory lies; the index, if there is one, decides.

    Raises `CheckpointError` with all problems of the index and of the files that it lists.
    """
    found = sorted(path.name for path in directory.iterdir())
    if INDEX_NAME in found:
        return _read_indexed(directory, found)
    if SINGLE_NAME in found:
        return read_header(directory / SINGLE_NAME)
    content = ", ".join(found) or "nothing"
    raise CheckpointError(f"{directory}: no {INDEX_NAME} and no {SINGLE_NAME}; found {content}")


def write(
    path: Path,
    tensors: Mapping[str, TensorSource],
    metadata: Mapping[str, str] = PYTORCH_METADATA,
) -> None:
    """Writes one file, with one tensor at a time in memory; a failure leaves nothing behind.

    Names keep their order. The data of wider dtypes come first, which aligns every tensor.
    """
    header, layout = _lay_out(path, tensors, metadata)
    with replacing(path) as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name in layout:
            try:
                stream.write(tensors[name].payload())
            except CheckpointError as error:
                raise CheckpointError(error.within(f"{path}: tensor {name!r}")) from None


def write_checkpoint(
    directory: Path,
    tensors: Mapping[str, TensorSource],
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a Hugging Face directory: one file, or shards in the tensors' order and their index.

    Raises `CheckpointError` if the directory already holds weights; a failure leaves none behind.
    """
    present = sorted(path.name for path in directory.glob("*.safetensors"))
    if present or (directory / INDEX_NAME).exists():
        # A leftover index would send every reader to the old shards.
        raise CheckpointError(f"{directory}: already holds {', '.join(present) or INDEX_NAME}")
    shards = _split(tensors, max_shard_bytes)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        for name, shard in shards.items():
            write(directory / name, shard)
        if len(shards) > 1:
            _write_index(directory / INDEX_NAME, shards)
    except BaseException:
        for name in shards:
            (directory / name).unlink(missing_ok=True)
        raise


def _read_json_header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8:
            raise CheckpointError(f"{size} bytes, too short for a safetensors file")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"header of {length} bytes, {size - 8} bytes follow and "
                f"{MAX_HEADER_BYTES} are allowed"
            )
        return parse_json(stream.read(length)), 8 + length


def _stored_tensors(path: Path, header: dict[str, Any], start: int) -> dict[str, StoredTensor]:
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        problems.append("__metadata__ does not map strings to strings")
    for name, entry in header.items():
        try:
            begin, end = _span(entry)
            spans.append((begin, end, name))
            tensors[name] = _stored_tensor(path, name, entry, start + begin)
            if tensors[name].nbytes != end - begin:
                raise CheckpointError(
                    f"{entry['dtype']} of shape {entry['shape']} takes {tensors[name].nbytes} "
                    f"bytes, data_offsets give it {end - begin}"
                )
        except CheckpointError as error:
            problems += error.within(f"tensor {name!r}")
    if len(spans) == len(header):  # a tensor whose place is unknown would look like a hole
        problems += _coverage_problems(spans, path.stat().st_size - start)
    if problems:
        raise CheckpointError(problems)
    return tensors


def _span(entry: object) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("the entry is not an object of dtype, shape and data_offsets")
    match entry["data_offsets"]:
        case [begin, end] if type(begin) is type(end) is int and 0 <= begin <= end:
            return begin, end
    raise CheckpointError(
        f"data_offsets {reprlib.repr(entry['data_offsets'])} are not [begin, end]"
    )


def _stored_tensor(path: Path, name: str, entry: dict[str, Any], offset: int) -> StoredTensor:
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"unknown dtype {reprlib.repr(entry['dtype'])}; known: {', '.join(DTYPES)}"
        )
    dtype = DTYPES[entry["dtype"]]
    return StoredTensor(name, dtype, checked_shape(entry["shape"], dtype), path, offset)


def _coverage_problems(spans: list[tuple[int, int, str]], length: int) -> list[str]:
    """Holes, overlaps and bytes beyond the end, which would mean a damaged or forged file."""
    problems = []
    position = 0
    for begin, end, name in sorted(spans):
        if begin > position:
            problems.append(f"no tensor covers the bytes {position} to {begin} of the data")
        if begin < position:
            problems.append(f"tensor {name!r}: begins at {begin}, within the one before it")
        if end > length:
            problems.append(f"tensor {name!r}: ends at {end}, the data are {length} bytes")
        position = max(position, end)
    if position < length:
        problems.append(f"no tensor covers the bytes {position} to {length} of the data")
    return problems


def _read_indexed(directory: Path, found: list[str]) -> dict[str, StoredTensor]:
    places = _read_index(directory / INDEX_NAME)
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        # What the listing lacks is missing, or a path that leads out of the directory.
        if file not in found or not (directory / file).is_file():
            problems.append(f"{directory / INDEX_NAME}: {file!r} is not a file of this directory")
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


def _lay_out(
    path: Path, tensors: Mapping[str, TensorSource], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """The padded header, and the names in the order of their data."""
    problems = [
        f"{path}: tensor {name!r}: safetensors files have no dtype {source.dtype}"
        for name, source in tensors.items()
        if source.dtype not in DTYPE_NAMES
    ]
    if "__metadata__" in tensors:
        problems.append(f"{path}: a tensor cannot be named '__metadata__'")
    if problems:
        raise CheckpointError(problems)
    layout = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    ends = dict(zip(layout, accumulate(tensors[name].nbytes for name in layout), strict=True))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, source in tensors.items():
        header[name] = {
            "dtype": DTYPE_NAMES[source.dtype],
            "shape": source.shape,
            "data_offsets": [ends[name] - source.nbytes, ends[name]],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), layout


def _split(
    tensors: Mapping[str, TensorSource], max_shard_bytes: int
) -> dict[str, dict[str, TensorSource]]:
    """File name -> its tensors; a tensor larger than the limit has a file of its own."""
    shards: list[dict[str, TensorSource]] = [{}]
    room = max_shard_bytes
    for name, source in tensors.items():
        if source.nbytes > room and shards[-1]:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = source
        room -= source.nbytes
    if len(shards) == 1:
        return {SINGLE_NAME: shards[0]}
    return {
        f"model-{number:05}-of-{len(shards):05}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def _write_index(path: Path, shards: Mapping[str, Mapping[str, TensorSource]]) -> None:
    sizes = [source.nbytes for shard in shards.values() for source in shard.values()]
    places = {name: file for file, shard in shards.items() for name in shard}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
    with replacing(path) as stream:
        stream.write(json.dumps(index, indent=2).encode() + b"\n")
