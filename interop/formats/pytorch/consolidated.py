"""Meta's folders of model-parallel shards: `consolidated.00.pth`, `consolidated.01.pth`, ...

Tensor names are prefixed with the number of their shard, as in `00/norm.weight`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from jaxllm.interop.formats.file_writer import PlannedFile
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

from . import torch_zip
from .saved import torch_file

FILES = "consolidated.[0-9]*.pth"
FIRST_SHARD = "00/"
_NUMBERED = re.compile(r"consolidated\.(\d+)\.pth")


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Locates the tensors of all shards, by name. Raises CheckpointError if a shard is missing."""
    matches = (_NUMBERED.fullmatch(file.name) for file in path.iterdir())
    files = {int(match[1]): path / match[0] for match in matches if match}
    if sorted(files) != list(range(len(files))) or not files:
        found = ", ".join(sorted(file.name for file in files.values())) or "none"
        raise CheckpointError(
            [f"{path} should have consolidated.00.pth, consolidated.01.pth, ... but has {found}"]
        )
    return {
        f"{rank:02}/{name}": tensor
        for rank, file in sorted(files.items())
        for name, tensor in torch_file.read_header(file).items()
    }


def lay_out(tensors: Mapping[str, TensorSource]) -> list[PlannedFile]:
    """Plans one file for each shard number in the tensors' names."""
    shards: dict[str, dict[str, TensorSource]] = {}
    for name, tensor in tensors.items():
        rank, _, own = name.partition("/")
        shards.setdefault(rank, {})[own] = tensor
    return [
        torch_zip.lay_out(f"consolidated.{rank}.pth", shard).prefixed(f"{rank}/")
        for rank, shard in sorted(shards.items())
    ]
