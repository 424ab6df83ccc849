"""Files of `torch.save`, whatever version of PyTorch wrote them."""

from pathlib import Path

from jaxllm.interop.formats.pytorch import torch_zip
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.untrusted.regular_files import check_is_regular
from jaxllm.untrusted.substitutes import check_is_content

from . import legacy_file


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Locates every tensor of a file, by name; no tensor is read.

    Raises:
        CheckpointError: see `torch_zip.read_header`.
    """
    check_is_regular(path)
    _check(path)
    reader = legacy_file if legacy_file.is_legacy(path) else torch_zip
    return reader.read_header(path)


def read_value(path: Path) -> object:
    """Returns the value given to `torch.save`, with the place of each tensor; none is read.

    Raises:
        CheckpointError: see `torch_zip.read_value`.
    """
    _check(path)
    reader = legacy_file if legacy_file.is_legacy(path) else torch_zip
    with path.open("rb") as stream:
        return reader.read_value(stream, path)


def _check(path: Path) -> None:
    try:
        check_is_content(path, is_binary=True)
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None
