"""Single files of tensors, whose suffix says how they are read and written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from . import safetensors_file
from .file_writer import PlannedFile
from .lazy_tensor import TensorSource
from .pytorch import bin_folder, torch_zip
from .stored_tensor import CheckpointError, StoredTensor

Tensors = dict[str, StoredTensor]


class FileType(NamedTuple):
    """How files of one type are read and written."""

    read_header: Callable[[Path], Tensors]
    lay_out: Callable[[str, Mapping[str, TensorSource]], PlannedFile]


TORCH_SUFFIXES = (".bin", ".pt", ".pth")
FILE_TYPES: dict[str, FileType] = {
    ".safetensors": FileType(safetensors_file.read_header, safetensors_file.lay_out),
    **dict.fromkeys(TORCH_SUFFIXES, FileType(torch_zip.read_header, torch_zip.lay_out)),
}
# Folders in which several files are one checkpoint, by the names that tell.
_FOLDERS = (
    (safetensors_file.INDEX_NAME, safetensors_file.read_checkpoint),
    (safetensors_file.SINGLE_NAME, safetensors_file.read_checkpoint),
    (bin_folder.INDEX_NAME, bin_folder.read_checkpoint),
    (bin_folder.SINGLE_NAME, bin_folder.read_checkpoint),
)


def read_only_file(path: Path) -> Tensors:
    """Maps the tensors of a file, or of the only file of tensors in a folder, by name.

    Shards with an index count as one file. Raises CheckpointError if a folder has no file of
    tensors, or several.
    """
    if not path.is_dir():
        return _file_type(path).read_header(path)
    for name, read in _FOLDERS:
        if (path / name).exists():
            return read(path)
    files = _files_of_tensors(path)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "no file of tensors"
        raise CheckpointError(f"{path} has {found}: give the path of one file")
    return _file_type(files[0]).read_header(files[0])


def read_every_file(path: Path) -> Tensors:
    """Maps the tensors of all files of tensors in a folder; of several, the file precedes the name.

    Raises CheckpointError if there is no such file.
    """
    files = _files_of_tensors(path)
    if not files:
        expected = ", ".join(f"*{suffix}" for suffix in FILE_TYPES)
        raise CheckpointError(f"{path} has no file of tensors ({expected})")
    return {
        name if len(files) == 1 else f"{file.name}/{name}": tensor
        for file in files
        for name, tensor in _file_type(file).read_header(file).items()
    }


def lay_out(
    tensors: Mapping[str, TensorSource], file: str, max_shard: int
) -> tuple[list[PlannedFile], dict[str, bytes]]:
    """Plans the file of this name; `model.safetensors` becomes shards if it would be too large."""
    if file == safetensors_file.SINGLE_NAME:
        return safetensors_file.lay_out_checkpoint(tensors, max_shard)
    return [_file_type(Path(file)).lay_out(file, tensors)], {}


def _files_of_tensors(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir())
    return [file for file in files if file.suffix in FILE_TYPES and file.is_file()]


def _file_type(path: Path) -> FileType:
    """The type of a file; a suffix that is not known is taken for PyTorch's."""
    return FILE_TYPES.get(path.suffix, FILE_TYPES[".pth"])
