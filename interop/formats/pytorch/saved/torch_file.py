"""Files of `torch.save`, whatever version of PyTorch wrote them."""

from pathlib import Path

from jaxllm.interop.formats.pytorch import torch_zip
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.untrusted.regular_files import check_is_regular

from . import legacy_file


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Locates every tensor of a file, by name; no tensor is read.

    Raises:
        CheckpointError: see `torch_zip.read_contents`.
    """
    check_is_regular(path)
    reader = legacy_file if legacy_file.is_legacy(path) else torch_zip
    return reader.read_contents(path).tensors


def read_value(path: Path) -> object:
    """Returns the value given to `torch.save`, with the place of each tensor; none is read.

    Raises:
        CheckpointError: see `torch_zip.read_value`.
    """
    reader = legacy_file if legacy_file.is_legacy(path) else torch_zip
    with path.open("rb") as stream:
        return reader.read_value(stream, path)
