"""Pickles of PyTorch checkpoints: state dicts whose tensors refer to storages outside the pickle.

Reading turns everything that a pickle names into records and imports nothing; `pickle_reader` and
`pickle_writer` know the opcodes.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.stored_tensor import CheckpointError

from . import pickle_reader, pickle_writer
from .pickle_reader import PickleError, Record, StateDict
from .pickle_writer import ORDERED_DICT, Call, Dictionary, Name, StoredElsewhere
from .storage_views import (
    LATER_DTYPES,
    LATER_NAMES,
    STORAGE_NAMES,
    STORAGES,
    Storage,
    View,
    c_strides,
    view_of,
)


def parse(data: bytes) -> dict[str, object]:
    """Parses a pickled state dict; `as_view` reads its entries.

    Raises:
        CheckpointError: the pickle is not a state dict, or `parse_value` rejects it.
    """
    return as_state_dict(parse_value(data))


def as_state_dict(state: object) -> dict[str, object]:
    """Returns a parsed value as a state dict. Raises CheckpointError if it is none."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("the pickle is not a state dict, which maps names to tensors")
    return dict(state)


def parse_value(
    data: bytes,
    known: Mapping[tuple[str, str], object] | None = None,
    find_storage: Callable[[object], Storage] | None = None,
) -> object:
    """Parses a pickle into dictionaries, lists, numbers, strings and records.

    Args:
        data: the pickle.
        known: classes and functions to accept beyond those that tensors need, by module and name,
            each with the `Record` class or the constant that stands for it.
        find_storage: returns the storage that a persistent id describes, by default as in zips.

    Raises:
        CheckpointError: the pickle is damaged, or it names another class or function. None is
            ever imported or called.
    """
    accepted = {**_GLOBALS, **(known or {})}
    forbidden: dict[str, None] = {}

    def find(module: str, name: str) -> object:
        if (module, name) not in accepted:
            forbidden[f"{module}.{name}"] = None
        return accepted.get((module, name), Record)

    value: object = None
    failure = ""
    try:
        value = pickle_reader.read(data, find, find_storage or as_storage)
    except ValueError as error:
        failure = f"damaged pickle: {error}"
    if forbidden:
        raise CheckpointError(
            [
                f"the pickle names {name}, which no state dict needs; nothing was executed"
                for name in forbidden
            ]
        )
    if failure:
        raise CheckpointError(failure)
    return value


def as_view(entry: object) -> View | None:
    """Returns the tensor of a state dict's entry, or None for an entry that cannot hold tensors.

    Raises:
        CheckpointError: the entry is a nested dictionary or list, or a tensor that overruns its
            storage.
    """
    match entry:
        case (_Tensor() as tensor) | _Parameter(arguments=(_Tensor() as tensor, *_)):
            return view_of(tensor.arguments)
        case _Parameter():
            raise CheckpointError("is a parameter without a tensor")
        case None | bool() | int() | float() | str() | bytes() | Record():
            return None
        case dict():
            keys = ", ".join(repr(key) for key in entry if isinstance(key, str))
            raise CheckpointError(
                f"is a dictionary of {keys:.100}, not a tensor: only a flat state dict is read"
            )
    raise CheckpointError(f"is a {type(entry).__name__}, not a tensor")


def is_tensor(entry: object) -> bool:
    """Whether an entry of a state dict is a tensor or a parameter."""
    return isinstance(entry, _Tensor | _Parameter)


def emit(tensors: Mapping[str, TensorSource]) -> bytes:
    """Returns the pickle of an OrderedDict of contiguous tensors, their storages '0', '1', ..."""
    return pickle_writer.emit(Dictionary(_calls(tensors).items(), ORDERED_DICT))


def emit_value(value: object, tensors: Mapping[str, TensorSource]) -> bytes:
    """Returns the pickle of a value that may be or contain tensors.

    Args:
        value: the value; a `Placed`, also inside nested dictionaries, stands for a tensor.
        tensors: the tensors by name, stored as `emit` stores them.
    """
    return pickle_writer.emit(_replace_placed(value, _calls(tensors)))


class Placed(NamedTuple):
    """A placeholder for the tensor of this name in a value to be pickled."""

    name: str


def _calls(tensors: Mapping[str, TensorSource]) -> dict[str, Call]:
    """Returns the calls that make PyTorch rebuild each tensor."""
    return {name: _rebuild_call(source, key) for key, (name, source) in enumerate(tensors.items())}


def _replace_placed(value: object, calls: Mapping[str, Call]) -> object:
    """Returns the value with each placeholder replaced by the call that rebuilds its tensor."""
    match value:
        case Placed(name):
            return calls[name]
        case dict():
            return {key: _replace_placed(item, calls) for key, item in value.items()}
    return value


def _rebuild_call(source: TensorSource, key: int) -> Call:
    is_later = source.dtype in LATER_NAMES
    size = source.nbytes if is_later else math.prod(source.shape)
    kind = (
        Name("torch.storage", "UntypedStorage")
        if is_later
        else Name("torch", STORAGE_NAMES[source.dtype])
    )
    view = (
        StoredElsewhere(("storage", kind, str(key), "cpu", size)),
        0,
        source.shape,
        c_strides(source.shape),
        False,  # requires_grad
        ORDERED_DICT,  # hooks
    )
    if is_later:
        dtype = Name("torch", LATER_NAMES[source.dtype])
        return Call(Name("torch._utils", "_rebuild_tensor_v3"), (*view, dtype))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), view)


class _Tensor(Record):
    """A call of `torch._utils._rebuild_tensor_v2` or `_v3`."""


class _Parameter(Record):
    """A call of `torch._utils._rebuild_parameter`."""


# Names of dtypes stay strings, which a pickle can neither call nor modify.
_GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): StateDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch.storage", "UntypedStorage"): "ByteStorage",
    **{("torch", name): name for name in STORAGES | LATER_DTYPES},
    # Values that modules store beside their tensors, such as `_extra_state` in Llama 4.
    ("torch", "Size"): Record,
    ("_io", "BytesIO"): Record,
    ("_codecs", "encode"): Record,
}


def as_storage(persistent_id: object) -> Storage:
    """Returns the storage that a persistent id describes. Raises PickleError if it is none."""
    match persistent_id:
        case ("storage", str(kind), str(key), _, int(size)) if kind in STORAGES:
            return Storage(STORAGES[kind], key, size)
    raise PickleError("a persistent id is not a storage")
