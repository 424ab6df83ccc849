"""A checkpoint's folder: which family wrote it, and where its tensors lie."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxllm.interop.families import FAMILIES, Family
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.hf_index import read_indexed
from jaxllm.interop.formats.pytorch import torch_zip
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor, parse_json

CONSOLIDATED = re.compile(r"consolidated\.(\d+)\.pth")
STATE_DICT = "state_dict.pth"
BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"

Tensors = dict[str, StoredTensor]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder whose headers have been read, and no tensor."""

    path: Path
    family: Family
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads a folder's config and headers. Raises CheckpointError for what is not a checkpoint."""
    check_is_folder(path)
    family, config = read_family(path)
    return Checkpoint(path, family, config, _read_headers(path, _READERS[family.storage]))


def open_tensors(path: Path) -> Tensors:
    """Where the tensors of a folder lie, whoever wrote it; raises CheckpointError if it has none.

    The files that a known family would read; else all that are named as if they held tensors.
    """
    check_is_folder(path)
    found = {file.name for file in path.iterdir()}
    if found & {safetensors_file.INDEX_NAME, safetensors_file.SINGLE_NAME}:
        return _read_headers(path, safetensors_file.read_checkpoint)
    if found & {BIN_INDEX_NAME, BIN_NAME}:
        return _read_headers(path, read_hugging_face)
    if any(map(CONSOLIDATED.fullmatch, found)):
        return _read_headers(path, read_consolidated)
    return _read_headers(path, _read_all)


def check_is_folder(path: Path) -> None:
    """Raises CheckpointError if there is no folder at `path`."""
    if not path.is_dir():
        raise CheckpointError([f"{path} is not a folder"])


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError, also for a key that occurs twice."""
    try:
        return parse_json(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None


def read_hugging_face(path: Path) -> Tensors:
    """The tensors of a folder of transformers: safetensors, or `.bin` where there are none."""
    found = sorted(file.name for file in path.iterdir())
    if safetensors_file.INDEX_NAME in found or safetensors_file.SINGLE_NAME in found:
        return safetensors_file.read_checkpoint(path)
    if BIN_INDEX_NAME in found:
        return unwrapped(read_indexed(path / BIN_INDEX_NAME, torch_zip.read_header))
    if BIN_NAME in found:
        return unwrapped(torch_zip.read_header(path / BIN_NAME))
    raise CheckpointError(
        f"{path}: none of {safetensors_file.INDEX_NAME}, {safetensors_file.SINGLE_NAME}, "
        f"{BIN_INDEX_NAME} and {BIN_NAME}; found {', '.join(found) or 'nothing'}"
    )


def unwrapped(tensors: Mapping[str, StoredTensor]) -> Tensors:
    """The tensors by their plain names. Raises CheckpointError if two have the same."""
    plain: dict[str, str] = {}
    problems = []
    for name in tensors:
        short = plain_name(name)
        if short in plain:
            problems.append(f"{plain[short]} and {name} are both {short}")
        plain[short] = name
    if problems:
        raise CheckpointError(problems)
    return {short: dataclasses.replace(tensors[name], name=short) for short, name in plain.items()}


def plain_name(name: str) -> str:
    """The name that a tensor had before the model was wrapped to be trained.

    Data parallelism puts `module.` in front, `torch.compile` puts `_orig_mod.` before what it
    compiled, and the checkpointing of activations `_checkpoint_wrapped_module.` before a layer.
    """
    wrappers = ("_orig_mod", "_checkpoint_wrapped_module")
    parts = [part for part in name.split(".") if part not in wrappers]
    while len(parts) > 1 and parts[0] == "module":
        parts.pop(0)
    return ".".join(parts)


def read_consolidated(path: Path) -> Tensors:
    """The tensors of all model-parallel shards, their names prefixed with the shard: `00/norm`."""
    matches = (CONSOLIDATED.fullmatch(file.name) for file in path.iterdir())
    files = {int(match[1]): path / match[0] for match in matches if match}
    if sorted(files) != list(range(len(files))) or not files:
        found = ", ".join(sorted(file.name for file in files.values())) or "none"
        raise CheckpointError(
            [f"{path} should hold consolidated.00.pth, consolidated.01.pth, ... but has {found}"]
        )
    return {
        f"{rank:02}/{name}": tensor
        for rank, file in sorted(files.items())
        for name, tensor in torch_zip.read_header(file).items()
    }


def read_family(path: Path) -> tuple[Family, dict[str, Any]]:
    """The family whose config file lies in the folder, and that file's content."""
    for family in FAMILIES:
        config_file = path / family.config_file
        if not config_file.is_file():
            continue
        config = read_json(config_file)
        if config.get("model_type") == family.model_type:
            return family, config
    found = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
    if (path / "config.json").is_file():
        found = f"config.json of model_type {read_json(path / 'config.json').get('model_type')!r}"
    raise CheckpointError(
        f"{path} is not of a known family: it has {found}; known are {known_families()}"
    )


def known_families() -> str:
    """How the families are known: by their config files, and by what those say."""
    kinds: dict[str, list[str]] = {}
    for family in FAMILIES:
        kinds.setdefault(family.config_file, []).append(repr(family.model_type))
    return "; ".join(
        file if kinds[file] == ["None"] else f"{file} of model_type {', '.join(kinds[file])}"
        for file in kinds
    )


def _read_headers(path: Path, read: Callable[[Path], Tensors]) -> Tensors:
    try:
        return read(path)
    except OSError as error:  # a folder where a file should be, a link to nowhere, no permission
        raise CheckpointError(f"{error.filename or path}: {error.strerror}") from None


def _read_all(path: Path) -> Tensors:
    """The tensors of every file that could hold some, their names prefixed with the file's."""
    readers = {
        ".safetensors": safetensors_file.read_header,
        **dict.fromkeys((".bin", ".pth", ".pt"), torch_zip.read_header),
    }
    files = [file for file in sorted(path.iterdir()) if file.suffix in readers and file.is_file()]
    if not files:
        found = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
        raise CheckpointError(f"{path} has no file of tensors; it has {found}")
    return {
        name if len(files) == 1 else f"{file.name}/{name}": tensor
        for file in files
        for name, tensor in readers[file.suffix](file).items()
    }


_READERS: dict[str, Callable[[Path], Tensors]] = {
    "safetensors": read_hugging_face,
    "state_dict": lambda path: torch_zip.read_header(path / STATE_DICT),
    "consolidated": read_consolidated,
}
