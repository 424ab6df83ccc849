"""safetensors files and Hugging Face folders: header reader and layout for writing."""

import json
import reprlib
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxllm.untrusted.json_objects import parse_json
from jaxllm.untrusted.substitutes import check_is_content, cut_short

from .file_writer import PlannedFile
from .hf_index import read_single_or_indexed
from .lazy_tensor import TensorSource
from .stored_tensor import (
    DTYPE_NAMES,
    DTYPES,
    CheckpointError,
    StoredTensor,
    checked_shape,
)

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the official reader's limit
PYTORCH_METADATA = MappingProxyType({"format": "pt"})  # transformers 4 refuses files without it


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Locates every tensor of a file; no tensor is read.

    Raises:
        CheckpointError: the header is damaged, or the tensors do not fill the file exactly. Lists
            every problem.
    """
    try:
        header, start = _read_json_header(path)
        return _stored_tensors(path, header, start)
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None


def read_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """Locates every tensor of a Hugging Face folder: of a single file, else of an index file.

    Raises:
        CheckpointError: the folder has no weights, or the index file or a shard is damaged. Lists
            every problem.
    """
    return read_single_or_indexed(directory, SINGLE_NAME, INDEX_NAME, read_header)


def lay_out(
    name: str,
    tensors: Mapping[str, TensorSource],
    metadata: Mapping[str, str] = PYTORCH_METADATA,
) -> PlannedFile:
    """Plans one file. The header keeps the order of the names.

    The data of wider dtypes comes first, which aligns every tensor.

    Raises:
        CheckpointError: the format cannot hold a tensor's dtype or name.
    """
    problems = [
        f"{name}: tensor {tensor!r}: safetensors files have no dtype {source.dtype}"
        for tensor, source in tensors.items()
        if source.dtype not in DTYPE_NAMES
    ]
    if "__metadata__" in tensors:
        problems.append(f"{name}: a tensor cannot be named '__metadata__'")
    if problems:
        raise CheckpointError(problems)
    layout = sorted(tensors, key=lambda tensor: -tensors[tensor].dtype.itemsize)
    sizes = [tensors[tensor].nbytes for tensor in layout]
    begins = dict(zip(layout, accumulate([0, *sizes]), strict=False))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for tensor, source in tensors.items():
        begin = begins[tensor]
        header[tensor] = {
            "dtype": DTYPE_NAMES[source.dtype],
            "shape": source.shape,
            "data_offsets": [begin, begin + source.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {tensor: start + begins[tensor] for tensor in tensors}
    frame = {0: len(text).to_bytes(8, "little") + text}
    return PlannedFile(name, start + sum(sizes), frame, places, {})


def lay_out_checkpoint(
    tensors: Mapping[str, TensorSource], max_shard: int
) -> tuple[list[PlannedFile], dict[str, bytes]]:
    """Plans a Hugging Face folder: one file, or shards in the order of the tensors and their index.

    Args:
        tensors: the tensors by name.
        max_shard: the most bytes of tensors in a shard; a larger tensor has a shard of its own.

    Returns:
        The layouts of the files, and the name and content of the index file, which is to be
        written last. Without shards there is no index file.
    """
    shards = _split(tensors, max_shard)
    files = [lay_out(name, shard) for name, shard in shards.items()]
    if len(files) == 1:
        return files, {}
    places = {name: file.name for file in files for name in file.places}
    total = sum(source.nbytes for source in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return files, {INDEX_NAME: json.dumps(index, indent=2).encode() + b"\n"}


def _read_json_header(path: Path) -> tuple[dict[str, Any], int]:
    check_is_content(path, is_binary=True)
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8:
            raise CheckpointError(f"{size} bytes, too short for a safetensors file")
        if size - 8 < length <= MAX_HEADER_BYTES and stream.read(1) == b"{":
            raise cut_short(size)  # the header would tell the whole size
        stream.seek(8)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"header of {length} bytes, but {size - 8} bytes follow and "
                f"at most {MAX_HEADER_BYTES} are allowed"
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
                    f"bytes, but data_offsets give it {end - begin}"
                )
        except CheckpointError as error:
            problems += error.within(f"tensor {name!r}")
    end = max((end for _, end, _ in spans), default=0)
    if not problems and start + end > (size := path.stat().st_size) and _are_dense(spans):
        raise cut_short(size, start + end)
    if len(spans) == len(header):  # a tensor in an unknown place would look like a hole
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
    """Returns a message for each hole, overlap and overrun: signs of a damaged or forged file."""
    problems = []
    position = 0
    for begin, end, name in sorted(spans):
        if begin > position:
            problems.append(f"no tensor covers bytes {position} to {begin} of the data")
        if begin < position:
            problems.append(f"tensor {name!r}: begins at {begin}, inside the tensor before it")
        if end > length:
            problems.append(f"tensor {name!r}: ends at {end}, but there are {length} bytes of data")
        position = max(position, end)
    if position < length:
        problems.append(f"no tensor covers bytes {position} to {length} of the data")
    return problems


def _are_dense(spans: list[tuple[int, int, str]]) -> bool:
    """Whether spans follow each other without holes and overlaps, as every writer places them."""
    position = 0
    for begin, end, _ in sorted(spans):
        if begin != position:
            return False
        position = end
    return True


def _split(
    tensors: Mapping[str, TensorSource], max_shard: int
) -> dict[str, dict[str, TensorSource]]:
    """Returns the tensors of each file; a tensor larger than `max_shard` has its own file."""
    shards: list[dict[str, TensorSource]] = [{}]
    room = max_shard
    for name, source in tensors.items():
        if source.nbytes > room and shards[-1]:
            shards.append({})
            room = max_shard
        shards[-1][name] = source
        room -= source.nbytes
    if len(shards) == 1:
        return {SINGLE_NAME: shards[0]}
    return {
        f"model-{number:05}-of-{len(shards):05}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }
