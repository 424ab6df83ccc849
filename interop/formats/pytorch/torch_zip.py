"""PyTorch zip checkpoints (.pth, .bin), read and written without PyTorch and without running code.

In the zip, `data.pkl` describes a state dict, and each `data/<key>` holds the bytes of one storage,
uncompressed.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from jaxllm.interop.formats.file_writer import PlannedFile
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.untrusted.regular_files import check_is_regular

from . import storage_views, torch_pickle, zip_layout
from .pickle_reader import Record
from .zip_archive import Archive

MOST_NESTED = 4  # of trainers' dictionaries in each other
# Entries of a trainer's dictionary that hold the model's state dict.
TRAINERS_KEYS = ("state_dict", "model_state_dict", "model", "module")
_MOST_LETTERS = 300  # of a name in a message

logger = logging.getLogger(__name__)


class Storages(Protocol):
    """The storages of a file that PyTorch wrote.

    Attributes:
        start: where the stream that holds them begins in its file.
    """

    start: int

    def locate(self, name: str) -> tuple[int, int]:
        """Returns the first byte of the record `data/KEY` in the stream, and its size."""

    def check_repeats(self, tensors: Iterable[StoredTensor]) -> None:
        """Raises CheckpointError if views make far more numbers of the storages than are stored."""


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Locates every tensor of a file, by name; no tensor is read.

    Other entries, such as None, numbers and BytesIO, are left out.

    Raises:
        CheckpointError: the file is neither a flat state dict nor a trainer's dictionary with one,
            or a tensor does not lie within its storage. Lists every problem.
    """
    check_is_regular(path)
    with path.open("rb") as stream:
        try:
            archive = Archive(stream)
            return locate_state(path, archive, torch_pickle.parse(archive.read("data.pkl")))
        except CheckpointError as error:
            raise CheckpointError(error.within(path)) from None


def read_value(stream: IO[bytes], path: Path, start: int = 0) -> object:
    """Returns the value given to `torch.save`, with the place of each tensor; none is read.

    Args:
        stream: the file at `path`, or the part of it that begins at byte `start`.
        path: the file.
        start: where the stream begins in the file.

    Raises:
        CheckpointError: the file is damaged, or tensors do not lie within their storages. Lists
            every such tensor.
    """
    archive = Archive(stream, start)
    return locate_value(path, archive, torch_pickle.parse_value(archive.read("data.pkl")))


def locate_value(path: Path, archive: Storages, value: object) -> object:
    """Returns a parsed value with the place of each tensor. Raises CheckpointError; see above."""
    locator = _TensorLocator(path, archive)
    try:
        located = locator.replace(value, "")
    except RecursionError:
        raise CheckpointError("the pickle is nested too deeply") from None
    if locator.problems:
        raise CheckpointError(locator.problems)
    archive.check_repeats(locator.located)
    return located


class _TensorLocator:
    """Replaces tensor records in a value by stored tensors; a shared object is replaced once."""

    def __init__(self, path: Path, archive: Storages):
        self.path, self.archive = path, archive
        self.problems: list[str] = []
        self.located: list[StoredTensor] = []
        self._replaced: dict[int, object] = {}

    def replace(self, value: object, name: str) -> object:
        """Returns the value with stored tensors; `name` is its path, for messages."""
        if not isinstance(value, dict | list | tuple | Record):
            return value
        if id(value) not in self._replaced:
            self._replaced[id(value)] = None  # stands for a value inside itself
            self._replaced[id(value)] = self._replace(value, name)
        return self._replaced[id(value)]

    def _replace(self, value: object, name: str) -> object:
        match value:
            case dict():
                return {
                    key: self.replace(item, f"{name}.{key!s:.{_MOST_LETTERS}}")
                    for key, item in value.items()
                }
            case list() | tuple():
                items = (self.replace(item, f"{name}.{i}") for i, item in enumerate(value))
                return type(value)(items)
        own = name.removeprefix(".")
        try:
            view = torch_pickle.as_view(value)
            if view is None:
                return None
            self.located.append(_stored_tensor(self.path, self.archive, own, view))
            return self.located[-1]
        except CheckpointError as error:
            self.problems += error.within(own or "the tensor")
            return None


def lay_out(
    name: str, tensors: Mapping[str, TensorSource], *, zip64_from: int = zip_layout.LIMIT
) -> PlannedFile:
    """Plans a file that `torch.load` reads as a state dict.

    Args:
        name: the file's name.
        tensors: the tensors by name.
        zip64_from: the size or offset from which on the zip uses 64-bit fields.

    Raises:
        CheckpointError: PyTorch does not have a tensor's dtype.
    """
    _check_dtypes(name, tensors)
    return _lay_out(name, torch_pickle.emit(tensors), tensors, zip64_from)


def lay_out_value(name: str, value: object, tensors: Mapping[str, TensorSource]) -> PlannedFile:
    """Plans a file that `torch.load` reads as `value`, which `torch_pickle.emit_value` describes.

    Raises:
        CheckpointError: PyTorch does not have a tensor's dtype.
    """
    _check_dtypes(name, tensors)
    return _lay_out(name, torch_pickle.emit_value(value, tensors), tensors)


def _check_dtypes(name: str, tensors: Mapping[str, TensorSource]) -> None:
    problems = [
        f"{name}: tensor {tensor!r}: PyTorch has no dtype {source.dtype}"
        for tensor, source in tensors.items()
        if source.dtype not in storage_views.WRITABLE_DTYPES
    ]
    if problems:
        raise CheckpointError(problems)


def _lay_out(
    name: str,
    pickle: bytes,
    tensors: Mapping[str, TensorSource],
    zip64_from: int = zip_layout.LIMIT,
) -> PlannedFile:
    """Plans the file of a pickle and the storages that it refers to."""
    storages: list[tuple[str, bytes | int]] = [
        (f"data/{key}", source.nbytes) for key, source in enumerate(tensors.values())
    ]
    head = [("data.pkl", pickle), ("byteorder", b"little")]
    records = [*head, *storages, ("version", b"3\n")]
    layout = zip_layout.lay_out("archive", records, limit=zip64_from)
    keys = {tensor: f"data/{key}" for key, tensor in enumerate(tensors)}
    return PlannedFile(
        name,
        layout.size,
        layout.frame,
        {tensor: layout.starts[key] for tensor, key in keys.items()},
        {tensor: layout.checksums[key] for tensor, key in keys.items()},
    )


def locate_state(
    path: Path, archive: Storages, state: Mapping[str, object]
) -> dict[str, StoredTensor]:
    """Locates the tensors of a parsed state dict. Raises CheckpointError; see `read_header`."""
    state = unwrap(path, state, torch_pickle.is_tensor)
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in state.items():
        try:
            view = torch_pickle.as_view(entry)
            if view is not None:
                tensors[name] = _stored_tensor(path, archive, name, view)
        except CheckpointError as error:
            problems += error.within(f"entry {name!r}")
    if problems:
        raise CheckpointError(problems)
    archive.check_repeats(tensors.values())
    return tensors


def unwrap(
    path: Path, state: Mapping[str, Any], is_tensor: Callable[[object], bool]
) -> Mapping[str, Any]:
    """Returns the state dict inside a trainer's dictionary, such as `{"model": ..., "step": 5}`.

    Logs a warning that names the entries beside it, which are not read.
    """
    for _ in range(MOST_NESTED):  # a dictionary may contain itself
        key = next((key for key in TRAINERS_KEYS if isinstance(state.get(key), dict)), None)
        if key is None or any(map(is_tensor, state.values())):
            break
        if others := [str(name) for name in state if name != key]:
            logger.warning("%s: only the entry %r is read, not %s", path, key, ", ".join(others))
        state = state[key]
    return state


def _stored_tensor(
    path: Path, archive: Storages, name: str, view: storage_views.View
) -> StoredTensor:
    start, nbytes = archive.locate(f"data/{view.storage.key}")
    if nbytes != view.storage.nbytes:
        raise CheckpointError(
            f"record 'data/{view.storage.key}' has {nbytes} bytes, "
            f"but its storage should have {view.storage.nbytes}"
        )
    offset = archive.start + start + view.offset * view.dtype.itemsize
    strides = None if view.is_contiguous else view.strides
    return StoredTensor(name, view.dtype, view.shape, path, offset, strides)
