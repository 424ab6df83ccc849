"""Files that `torch.save` wrote before PyTorch 1.6: pickles in a row, then the storages.

The pickles are a magic number, the version, a description of the system, the saved value and the
names of the storages. Each storage is its number of elements, in 8 bytes, and the elements.
"""

import io
import math
import pickletools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from jaxllm.interop.formats.pytorch import torch_pickle, torch_zip
from jaxllm.interop.formats.pytorch.pickle_reader import PickleError
from jaxllm.interop.formats.pytorch.storage_views import Storage
from jaxllm.interop.formats.pytorch.zip_archive import check_repeats
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.untrusted.substitutes import cut_short

# The pickled magic number and the version, by protocol 2.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
MOST_BYTES = 1 << 28  # of all pickles together; they describe tensors and hold none
_FIRST_BYTES = 1 << 16
_COUNT_BYTES = 8  # before each storage


def is_legacy(path: Path) -> bool:
    """Whether a file begins as those of PyTorch before 1.6 do."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Locates every tensor of a file; see `torch_zip.read_header`."""
    with path.open("rb") as stream:
        try:
            storages, value = _open(stream)
            return torch_zip.locate_state(path, storages, torch_pickle.as_state_dict(value))
        except CheckpointError as error:
            raise CheckpointError(error.within(path)) from None


def read_value(stream: IO[bytes], path: Path) -> object:
    """Returns the value of a file with the place of each tensor; see `torch_zip.read_value`."""
    storages, value = _open(stream)
    return torch_zip.locate_value(path, storages, value)


class _Storages:
    """The places of the storages in a file."""

    start = 0

    def __init__(self, places: Mapping[str, tuple[int, int]]):
        self.places = places

    def locate(self, name: str) -> tuple[int, int]:
        """See `torch_zip.Storages`."""
        if name not in self.places:
            raise CheckpointError(f"storage {name!r} is missing")
        return self.places[name]

    def check_repeats(self, tensors: Iterable[StoredTensor]) -> None:
        """See `torch_zip.Storages`."""
        check_repeats(tensors, sum(size for _, size in self.places.values()))


def _open(stream: IO[bytes]) -> tuple[_Storages, object]:
    """Returns the places of the storages, and the saved value with records in place of tensors."""
    stream.seek(len(MAGIC))
    system = torch_pickle.parse_value(_next_pickle(stream))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("the byte order is not little-endian")
    used: dict[str, Storage] = {}

    def find_storage(persistent_id: object) -> Storage:
        match persistent_id:
            case ("storage", kind, key, place, size, None):
                found = torch_pickle.as_storage(("storage", kind, key, place, size))
                if used.setdefault(found.key, found) != found:
                    raise PickleError(f"storage {found.key!r} is described twice")
                return found
        raise PickleError("a persistent id is not a storage, or one that is part of another")

    value = torch_pickle.parse_value(_next_pickle(stream), find_storage=find_storage)
    keys = torch_pickle.parse_value(_next_pickle(stream))
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(used):
        raise CheckpointError("the tensors use other storages than the file lists")
    return _Storages(_places(stream, [used[key] for key in keys])), value


def _places(stream: IO[bytes], storages: Iterable[Storage]) -> dict[str, tuple[int, int]]:
    """Returns the first byte and the size of each storage, by `data/KEY`.

    Raises:
        CheckpointError: a storage has another size than its tensors say, or the file ends early.
    """
    places, at = {}, stream.tell()
    for storage in storages:
        stream.seek(at)
        count = stream.read(_COUNT_BYTES)
        if len(count) == _COUNT_BYTES and int.from_bytes(count, "little") != storage.size:
            raise CheckpointError(
                f"storage {storage.key!r} has {int.from_bytes(count, 'little')} elements, but "
                f"should have {storage.size}"
            )
        places[f"data/{storage.key}"] = at + _COUNT_BYTES, storage.nbytes
        at += _COUNT_BYTES + storage.nbytes
    if (size := stream.seek(0, io.SEEK_END)) < at:
        raise cut_short(size, at)
    return places


def _next_pickle(stream: IO[bytes]) -> bytes:
    """Returns the bytes of the pickle at the stream's position, and moves to its end."""
    start, length = stream.tell(), _FIRST_BYTES
    while True:
        data = stream.read(length)
        pickle = io.BytesIO(data)
        try:
            for _ in pickletools.genops(pickle):
                pass
        except (ValueError, IndexError, OverflowError) as error:
            if len(data) < length or length >= MOST_BYTES:
                raise CheckpointError(f"damaged pickle: {error}") from None
            stream.seek(start)
            length *= math.isqrt(MOST_BYTES // _FIRST_BYTES)
            continue
        end = pickle.tell()
        stream.seek(start + end)
        return data[:end]
