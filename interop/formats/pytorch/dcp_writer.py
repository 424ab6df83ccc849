"""Layout of `torch.distributed.checkpoint` (DCP) checkpoints, as a single process writes them.

Module `dcp` describes the format.
"""

from collections.abc import Mapping

from jaxllm.interop.formats.file_writer import PlannedFile
from jaxllm.interop.formats.lazy_tensor import TensorSource

from . import torch_zip
from .dcp import METADATA
from .pickle_writer import Call, Dictionary, Instance, Name, emit
from .torch_pickle import Placed

DATA = "__0_0.distcp"  # PyTorch's name for the first file of process 0
VERSION = "1.0.0"

_METADATA = "torch.distributed.checkpoint.metadata"
# Tensor properties that are the same for every tensor here: strided layout, no gradient, contiguous
# memory format, not pinned.
_PLAIN = (
    Call(Name("torch.serialization", "_get_layout"), ("torch.strided",)),
    False,
    Call(Name(_METADATA, "_MEM_FORMAT_ENCODING"), (0,)),
    False,
)


def lay_out(
    tensors: Mapping[str, TensorSource],
    values: Mapping[str, object],
    paths: Mapping[str, tuple[str, ...]],
) -> list[PlannedFile]:
    """Plans the data file and the metadata file, in that order.

    Args:
        tensors: the tensors by name.
        values: other values by name: numbers, strings, and tuples and lists of them.
        paths: the path of each name in the nested dictionaries that PyTorch flattened.
    """
    frame: dict[int, bytes] = {}
    places: dict[str, int] = {}
    checksums: dict[str, tuple[int, ...]] = {}
    extents: dict[str, tuple[int, int]] = {}
    end = 0
    for name in (*tensors, *values):
        held = {name: tensors[name]} if name in tensors else {}
        value = Placed(name) if held else values[name]
        one = torch_zip.lay_out_value(name, value, held)
        frame |= {end + offset: data for offset, data in one.frame.items()}
        places |= {name: end + place for name, place in one.places.items()}
        for tensor, offsets in one.checksums.items():
            checksums[tensor] = tuple(end + offset for offset in offsets)
        extents[name] = end, one.size
        end += one.size
    data = PlannedFile(DATA, end, frame, places, checksums)
    described = emit(_describe(tensors, extents, paths))
    return [data, PlannedFile(METADATA, len(described), {0: described}, {}, {})]


def _describe(
    tensors: Mapping[str, TensorSource],
    extents: Mapping[str, tuple[int, int]],
    paths: Mapping[str, tuple[str, ...]],
) -> Instance:
    """Returns the object in the metadata file."""
    entries = {
        name: _entry(tensors[name])
        if name in tensors
        else Instance(Name(_METADATA, "BytesStorageMetadata"), {})
        for name in extents
    }
    places = [
        (_index(name, tensors.get(name)), _place(offset, size))
        for name, (offset, size) in extents.items()
    ]
    state = {
        "state_dict_metadata": entries,
        "planner_data": dict(paths),
        "storage_data": Dictionary(places),
        "storage_meta": None,
        "version": VERSION,
    }
    return Instance(Name(_METADATA, "Metadata"), state)


def _entry(tensor: TensorSource) -> Instance:
    """Returns the entry of a tensor, which is stored in one chunk."""
    dtype = Name("torch", tensor.dtype.name)  # NumPy and PyTorch use the same names
    origin = (0,) * len(tensor.shape)
    chunk = {"offsets": _size(origin), "sizes": _size(tensor.shape)}
    state = {
        "properties": Instance(Name(_METADATA, "TensorProperties"), (dtype, *_PLAIN)),
        "size": _size(tensor.shape),
        "chunks": [Instance(Name(_METADATA, "ChunkStorageMetadata"), chunk)],
    }
    return Instance(Name(_METADATA, "TensorStorageMetadata"), state)


def _index(name: str, tensor: TensorSource | None) -> Instance:
    """Returns the key under which the place of a tensor's chunk, or of a value, is listed."""
    offset = None if tensor is None else _size((0,) * len(tensor.shape))
    index = None if tensor is None else 0
    state = {"fqn": name, "offset": offset, "index": index}
    return Instance(Name(_METADATA, "MetadataIndex"), state)


def _place(offset: int, size: int) -> Instance:
    state = {"relative_path": DATA, "offset": offset, "length": size}
    return Instance(Name("torch.distributed.checkpoint.filesystem", "_StorageInfo"), state)


def _size(shape: tuple[int, ...]) -> Call:
    return Call(Name("torch", "Size"), (tuple(shape),))
