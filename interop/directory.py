"""A checkpoint's folder: which family wrote it, and where its tensors lie."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import safetensors_file, torch_file
from .families import FAMILIES, Family
from .tensors import CheckpointError, StoredTensor, TensorSource, parse_json

CONSOLIDATED = re.compile(r"consolidated\.(\d+)\.pth")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder whose headers have been read, and no tensor."""

    path: Path
    family: Family
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads a folder's config and headers. Raises CheckpointError for what is not a checkpoint."""
    if not path.is_dir():
        raise CheckpointError([f"{path} is not a folder"])
    family, config = _read_family(path)
    readers = {
        "safetensors": safetensors_file.read_checkpoint,
        "state_dict": lambda folder: torch_file.read_header(folder / "state_dict.pth"),
        "consolidated": _read_consolidated,
    }
    return Checkpoint(path, family, config, readers[family.storage](path))


def write_tensors(
    path: Path, family: Family, tensors: Mapping[str, TensorSource], max_shard_bytes: int
) -> None:
    """Writes a checkpoint's tensors into an existing folder, each produced when its turn comes."""
    if family.storage == "safetensors":
        safetensors_file.write_checkpoint(path, tensors, max_shard_bytes)
    elif family.storage == "state_dict":
        torch_file.write(path / "state_dict.pth", tensors)
    else:
        for rank in sorted({name.partition("/")[0] for name in tensors}):
            of_rank = {
                name.partition("/")[2]: source
                for name, source in tensors.items()
                if name.startswith(rank + "/")
            }
            torch_file.write(path / f"consolidated.{rank}.pth", of_rank)


def _read_family(path: Path) -> tuple[Family, dict[str, Any]]:
    """The family whose config file lies in the folder, and that file's content."""
    for family in FAMILIES:
        config_file = path / family.config_file
        if not config_file.is_file():
            continue
        config = read_json(config_file)
        if config.get("model_type") == family.model_type:
            return family, config
    found = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
    known = ", ".join(
        f"{family.config_file}"
        + (f" of model_type {family.model_type!r}" if family.model_type else "")
        for family in FAMILIES
    )
    if (path / "config.json").is_file():
        found = f"config.json of model_type {read_json(path / 'config.json').get('model_type')!r}"
    raise CheckpointError([f"{path} is not of a known family: it has {found}; known are {known}"])


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError, also for a key that occurs twice."""
    try:
        return parse_json(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None


def _read_consolidated(path: Path) -> dict[str, StoredTensor]:
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
        for name, tensor in torch_file.read_header(file).items()
    }
