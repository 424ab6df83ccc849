"""Table of checkpoint formats: how each is recognized, read and written.

A new format is one row of `FORMATS` and a module with its functions. Loading, inspection,
verification, export, conversion and the command line know formats only from this table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import Config
from jaxllm.models import Model

from . import orbax, safetensors_file, tensor_files
from .file_writer import Digest, PlannedFile, Progress
from .lazy_tensor import TensorSource
from .orbax_writer import OrbaxWriter
from .pytorch import bin_folder, consolidated, torch_zip
from .pytorch.saved import dcp_folder, torch_file

Tensors = Mapping[str, Any]
Sources = Mapping[str, TensorSource]
Planned = tuple[list[PlannedFile], dict[str, bytes]]

STATE_DICT = "state_dict.pth"


@dataclass(frozen=True)
class TensorFormat:
    """A format of PyTorch-side checkpoints: tensor files with a family's tensor names and config.

    Attributes:
        name: its name in `format=` and `jaxllm convert --to`.
        files: patterns of file names; a folder with a matching file has this format. A format
            without patterns is read only when it is asked for by name.
        read: returns the tensors of a folder by name, from the headers alone.
        lay_out: plans the tensor files, and the small files to write after them, by name. Takes
            the tensors, the file name that the family asks for ("" for none) and the most bytes
            of tensors in a shard. None if the format can only be read.
        variant_of: the format whose families name the tensors, if it is another.
        first_shard: the prefix of tensor names in the first of several model-parallel shards; ""
            if the format has no such shards.
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
        """Returns whether a folder has this format, judged by the names of its files."""
        names = [file.name for file in path.iterdir()]
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.files)


class CheckpointWriter(Protocol):
    """Writes a checkpoint in units, in any order, so that a killed conversion can be resumed.

    Attributes:
        format_name: the family's name, or the format's if it needs no family.
        units: the bytes of each unit, such as a tensor, that is written in one step.
        files_folder: where the files of the model's origin go, relative to the checkpoint.
        most_held: the most bytes that writing a unit holds, if that is not up to `chunk_bytes`.
    """

    format_name: str
    units: Mapping[str, int]
    files_folder: str
    most_held: int

    def plan(self) -> str:
        """Returns everything that will be written except the tensors' data, as text."""

    def begin(self, folder: Path) -> None:
        """Creates the files without data, or keeps what an earlier attempt has written."""

    def write(self, folder: Path, unit: str, chunk_bytes: int, progress: Progress) -> Digest:
        """Writes one unit, at most `chunk_bytes` at a time, and returns its checksums."""

    def written(self, folder: Path, unit: str) -> str:
        """Returns the SHA-256 of a unit's bytes in the folder."""

    def holds(self, folder: Path, chunk_bytes: int) -> bool:
        """Whether a folder is this checkpoint, bit for bit; reads `chunk_bytes` at a time."""

    def finish(self, folder: Path, digests: Mapping[str, Digest]) -> None:
        """Completes the checkpoint once all units are written; takes their checksums."""


@dataclass(frozen=True)
class ModelFormat:
    """A format of jaxllm's own arrays and config, which needs no family to be read.

    Attributes:
        name: its name in `format=` and `jaxllm convert --to`.
        holds: returns whether a folder is such a checkpoint, or a run that has some.
        find_damage: returns the problems of a step's arrays other than the model's.
        find_step: returns the folder of one step of a run, by default the newest.
        open: returns the model of a step without weights, and its arrays, read in parts.
        load: returns the model with its weights, on a mesh if one is given.
        save: writes a model into a folder that does not exist yet.
        writer: returns a writer in units, for conversions; takes a config, an origin and arrays.
    """

    name: str
    holds: Callable[[Path], bool]
    find_step: Callable[[Path, int | None], Path]
    find_damage: Callable[[Path], list[str]]
    open: Callable[[Path], tuple[Model, Sources]]
    load: Callable[..., Model]
    save: Callable[[Model, Path], None]
    writer: Callable[[Config, Origin | None, Sources], CheckpointWriter]


CheckpointFormat = TensorFormat | ModelFormat


def _state_dict(name: str) -> TensorFormat:
    """Returns the format of a source system: one file written by `torch.save`."""
    return TensorFormat(
        name,
        files=(STATE_DICT,),
        read=lambda path: torch_file.read_header(path / STATE_DICT),
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
        "dcp",
        files=(dcp_folder.METADATA,),
        read=dcp_folder.read_weights,
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
        find_damage=orbax.find_damage,
        open=orbax.open_step,
        load=orbax.load,
        save=orbax.save,
        writer=OrbaxWriter,
    ),
    TensorFormat("rules", files=(), read=tensor_files.read_only_file, lay_out=tensor_files.lay_out),
)
FORMATS: dict[str, CheckpointFormat] = {row.name: row for row in _ROWS}


def tensor_formats() -> list[TensorFormat]:
    """Returns the formats that need a family, in the order in which a folder is tested for them."""
    return [row for row in FORMATS.values() if isinstance(row, TensorFormat)]


def first_shard_prefix(format_name: str) -> str:
    """Returns the prefix of tensor names in the first shard of a `TensorFormat`, or ""."""
    return next((row.first_shard for row in tensor_formats() if row.name == format_name), "")


def writable_formats() -> list[str]:
    """Returns the names of the formats that can be written."""
    return [
        name
        for name, row in FORMATS.items()
        if isinstance(row, ModelFormat) or row.lay_out is not None
    ]


def model_format(name: str | None) -> ModelFormat | None:
    """Returns the format of this name if it is a `ModelFormat`, else None."""
    row = FORMATS.get(name or "")
    return row if isinstance(row, ModelFormat) else None


def model_format_of(path: Path) -> ModelFormat | None:
    """Returns the `ModelFormat` of a folder, or None if the folder has another format."""
    rows = (row for row in FORMATS.values() if isinstance(row, ModelFormat))
    return next((row for row in rows if row.holds(path)), None)
