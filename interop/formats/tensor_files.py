"""Single tensor files, read and written in the format that their suffix names."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from jaxllm.errors import CheckpointArgumentError

from . import safetensors_file
from .file_writer import PlannedFile
from .gguf.header import read_header
from .gguf.quantized_tensor import list_tensors
from .lazy_tensor import TensorSource
from .pytorch import bin_folder, torch_zip
from .pytorch.saved import torch_file
from .stored_tensor import CheckpointError, StoredTensor

Tensors = dict[str, StoredTensor]


class FileType(NamedTuple):
    """The functions that read and write one type of file; some types can only be read."""

    read_header: Callable[[Path], Tensors]
    lay_out: Callable[[str, Mapping[str, TensorSource]], PlannedFile] | None


TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
FILE_TYPES: dict[str, FileType] = {
    ".safetensors": FileType(safetensors_file.read_header, safetensors_file.lay_out),
    ".gguf": FileType(lambda path: dict(list_tensors(path, read_header(path))), None),
    **dict.fromkeys(TORCH_SUFFIXES, FileType(torch_file.read_header, torch_zip.lay_out)),
}
# Files of trainers beside the weights.
_OF_TRAINING = ("training_args.bin", "optim*", "scheduler.*", "scaler.*", "rng_state*", "adapter_*")
# Files that identify a folder as one checkpoint, possibly in several shards.
_FOLDERS = (
    (safetensors_file.INDEX_NAME, safetensors_file.read_checkpoint),
    (safetensors_file.SINGLE_NAME, safetensors_file.read_checkpoint),
    (bin_folder.INDEX_NAME, bin_folder.read_checkpoint),
    (bin_folder.SINGLE_NAME, bin_folder.read_checkpoint),
)


def read_only_file(path: Path) -> Tensors:
    """Locates the tensors of a file, or of the only tensor file in a folder, by name.

    Shards with an index file count as one file.

    Raises:
        CheckpointError: a folder has no tensor file, or several.
    """
    if not path.is_dir():
        return _file_type(path).read_header(path)
    for name, read in _FOLDERS:
        if (path / name).exists():
            return read(path)
    files = _files_of_tensors(path)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "no tensor file"
        raise CheckpointError(f"{path} has {found}: give the path of one file")
    return _file_type(files[0]).read_header(files[0])


def read_every_file(path: Path) -> Tensors:
    """Locates the tensors of all tensor files in a folder, by name.

    If there are several files, each tensor's name is prefixed with the name of its file.

    Raises:
        CheckpointError: the folder has no tensor file.
    """
    files = _files_of_tensors(path)
    if not files:
        expected = ", ".join(f"*{suffix}" for suffix in FILE_TYPES)
        raise CheckpointError(f"{path} has no tensor file ({expected})")
    return {
        name if len(files) == 1 else f"{file.name}/{name}": tensor
        for file in files
        for name, tensor in _file_type(file).read_header(file).items()
    }


def lay_out(
    tensors: Mapping[str, TensorSource], file: str, max_shard: int
) -> tuple[list[PlannedFile], dict[str, bytes]]:
    """Plans the file of this name; `model.safetensors` is split into shards if too large.

    Returns:
        The layouts of the tensor files, and the small files to write after them, by name.
    """
    if file == safetensors_file.SINGLE_NAME:
        return safetensors_file.lay_out_checkpoint(tensors, max_shard)
    write = _file_type(Path(file)).lay_out
    if write is None:
        raise CheckpointArgumentError(
            f"{file}: files of this type are only read: write another format, such as hf"
        )
    return [write(file, tensors)], {}


def is_writable(path: Path) -> bool:
    """Whether files with this suffix can be written; other types are only read."""
    kind = FILE_TYPES.get(path.suffix)
    return kind is not None and kind.lay_out is not None


def find_model_file(folder: Path) -> Path | None:
    """Returns the only tensor file of a folder, not counting the state of a training, or None."""
    files = [
        file
        for file in _files_of_tensors(folder)
        if not any(fnmatchcase(file.name, pattern) for pattern in _OF_TRAINING)
    ]
    return files[0] if len(files) == 1 else None


def _files_of_tensors(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir())
    return [file for file in files if file.suffix in FILE_TYPES and file.is_file()]


def _file_type(path: Path) -> FileType:
    """Returns the type of a file by its suffix; an unknown suffix is taken for PyTorch's format."""
    return FILE_TYPES.get(path.suffix, FILE_TYPES[".pth"])
