"""The table of checkpoint formats: how each is recognised, read and written.

A new format is one row of `FORMATS` and the file that has its functions. Loading, inspection,
verification, export, conversion and the command line know formats from this table alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import Config
from jaxllm.models import Model

from . import orbax, safetensors_file, tensor_files
from .file_writer import Digest, PlannedFile, Progress
from .lazy_tensor import TensorSource
from .orbax_target import OrbaxTarget
from .pytorch import bin_folder, consolidated, torch_zip
from .stored_tensor import StoredTensor

Tensors = Mapping[str, StoredTensor]
Sources = Mapping[str, TensorSource]
Planned = tuple[list[PlannedFile], dict[str, bytes]]

STATE_DICT = "state_dict.pth"


@dataclass(frozen=True)
class TensorFormat:
    """Files of tensors that bear a family's names, with that family's config file beside them.

    Attributes:
        name: what `format=` and `jaxllm convert --to` call it.
        files: patterns of file names; a folder that has one of them is of this format. A format
            without patterns is read only where it is asked for.
        read: maps the tensors of a folder by name, from the headers alone.
        lay_out: plans the files of tensors, and the small files to be written after them, by name.
            Takes the tensors, the name of the file that the family asks for ("" if it asks for
            none) and the number of bytes after which another shard begins. None: only read.
        variant_of: the format whose families name the tensors, if it is another.
        first_shard: what precedes the tensors' names in the first of several model-parallel
            shards; "" if the format has no such shards.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path], Tensors]
    lay_out: Callable[[Sources, str, int], Planned] | None = None
    variant_of: str = ""
    first_shard: str = ""

    @property
    def family_format(self) -> str:
        """The `Family.format` of the families that name the tensors."""
        return self.variant_of or self.name

    def holds(self, path: Path) -> bool:
        """Whether a folder is of this format, by the names of its files."""
        names = [file.name for file in path.iterdir()]
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.files)


class Target(Protocol):
    """A checkpoint written in units, in any order and again after a kill."""

    spelling: str  # the family, or the format if it needs none
    units: Mapping[str, int]  # what is written in one go, and its bytes

    def plan(self) -> str:
        """All that will be written but for the numbers, as text."""

    def begin(self, folder: Path) -> None:
        """Lays the checkpoint out; what an earlier attempt has written stays."""

    def write(self, folder: Path, unit: str, chunk_bytes: int, progress: Progress) -> Digest:
        """Writes one unit, no more of it at a time than a chunk."""

    def written(self, folder: Path, unit: str) -> str:
        """The sha256 of what is there of a unit."""

    def finish(self, folder: Path, digests: Mapping[str, Digest]) -> None:
        """Completes the checkpoint, of which all units are written."""


@dataclass(frozen=True)
class ModelFormat:
    """A model's own arrays with its config, so that no family is needed to read them.

    Attributes:
        name: what `format=` and `jaxllm convert --to` call it.
        holds: whether a folder is such a checkpoint, or a run that holds some.
        find_step: the folder of one step of a run, the newest by default.
        open: the model of a step without weights, and its arrays, read in parts.
        load: the model with its weights, on a mesh if one is given.
        save: writes a model into a folder that does not exist yet.
        target: the same, array by array, for conversions; takes a config, an origin and arrays.
    """

    name: str
    holds: Callable[[Path], bool]
    find_step: Callable[[Path, int | None], Path]
    open: Callable[[Path], tuple[Model, Sources]]
    load: Callable[..., Model]
    save: Callable[[Model, Path], None]
    target: Callable[[Config, Origin | None, Sources], Target]


CheckpointFormat = TensorFormat | ModelFormat


def _state_dict(name: str) -> TensorFormat:
    """One file of `torch.save`, as the source systems have it."""
    return TensorFormat(
        name,
        files=(STATE_DICT,),
        read=lambda path: torch_zip.read_header(path / STATE_DICT),
        lay_out=lambda tensors, _, __: ([torch_zip.lay_out(STATE_DICT, tensors)], {}),
    )


_ROWS: tuple[CheckpointFormat, ...] = (
    TensorFormat(
        "hf",
        files=(safetensors_file.INDEX_NAME, safetensors_file.SINGLE_NAME),
        read=safetensors_file.read_checkpoint,
        lay_out=lambda tensors, _, max_shard: safetensors_file.lay_out_checkpoint(
            tensors, max_shard
        ),
    ),
    TensorFormat(
        "bin",
        files=(bin_folder.INDEX_NAME, bin_folder.SINGLE_NAME),
        read=bin_folder.read_checkpoint,
        variant_of="hf",
    ),
    TensorFormat(
        "meta",
        files=(consolidated.FILES,),
        read=consolidated.read_checkpoint,
        lay_out=lambda tensors, _, __: (consolidated.lay_out(tensors), {}),
        first_shard=consolidated.FIRST_SHARD,
    ),
    *map(_state_dict, ("tlama", "llm", "nima", "components")),
    ModelFormat(
        orbax.NAME,
        holds=orbax.is_native,
        find_step=orbax.find_step,
        open=orbax.open_step,
        load=orbax.load,
        save=orbax.save,
        target=OrbaxTarget,
    ),
    TensorFormat("rules", files=(), read=tensor_files.read_only_file, lay_out=tensor_files.lay_out),
)
FORMATS: dict[str, CheckpointFormat] = {row.name: row for row in _ROWS}


def tensor_formats() -> list[TensorFormat]:
    """The formats that need a family, in the order in which a folder is tried."""
    return [row for row in FORMATS.values() if isinstance(row, TensorFormat)]


def writable_formats() -> list[str]:
    """The names of the formats that can be written."""
    return [
        name
        for name, row in FORMATS.items()
        if isinstance(row, ModelFormat) or row.lay_out is not None
    ]


def model_format(name: str | None) -> ModelFormat | None:
    """The format of this name if it holds a model's own arrays, else None."""
    row = FORMATS.get(name or "")
    return row if isinstance(row, ModelFormat) else None


def model_format_of(path: Path) -> ModelFormat | None:
    """The format of a folder that holds a model's own arrays; None for any other."""
    rows = (row for row in FORMATS.values() if isinstance(row, ModelFormat))
    return next((row for row in rows if row.holds(path)), None)
