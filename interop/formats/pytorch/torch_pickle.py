"""Pickles of PyTorch checkpoints: state dicts whose tensors refer to storages outside the pickle.

Reading turns everything that a pickle names into records and imports nothing. Writing goes through
`pickle_writer`.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from typing import NamedTuple

from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.stored_tensor import CheckpointError

from . import pickle_writer
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
    state = parse_value(data)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("the pickle is not a state dict, which maps names to tensors")
    return dict(state)


def parse_value(data: bytes, known: Mapping[tuple[str, str], object] | None = None) -> object:
    """Parses a pickle into dictionaries, lists, numbers, strings and records.

    Args:
        data: the pickle.
        known: classes and functions to accept beyond those that tensors need, by module and name,
            each with the `Record` class or the constant that stands for it.

    Raises:
        CheckpointError: the pickle is damaged, or it names another class or function. None is
            ever imported or called.
    """
    unpickler = _Unpickler(data, known or {})
    value: object = None
    failure = ""
    try:
        _check_integers(data)
        value = unpickler.load()
    except Exception as error:  # a damaged pickle raises nearly anything
        failure = f"damaged pickle: {error}"
    if unpickler.forbidden:
        raise CheckpointError(
            [
                f"the pickle names {name}, which no state dict needs; nothing was executed"
                for name in dict.fromkeys(unpickler.forbidden)
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


class Record:
    """Stands for a class or function that a pickle calls: keeps the arguments, runs nothing."""

    arguments: tuple[object, ...] = ()

    def __init__(self, *arguments: object):
        self.arguments = arguments

    # Every class that a pickle can reach has this method: without it, the BUILD opcode could set
    # attributes of the class itself.
    def __setstate__(self, state: object) -> None:
        pass


class _Tensor(Record):
    """A call of `torch._utils._rebuild_tensor_v2` or `_v3`."""


class _Parameter(Record):
    """A call of `torch._utils._rebuild_parameter`."""


class _StateDict(dict):
    """An OrderedDict without the attributes that PyTorch adds, which are module versions."""

    __setstate__ = Record.__setstate__


# Names of dtypes stay strings, which a pickle can neither call nor modify.
_GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _StateDict,
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


class _Unpickler(pickle.Unpickler):
    """Unpickler that turns names into records and collects the `forbidden` ones."""

    def __init__(self, data: bytes, known: Mapping[tuple[str, str], object]):
        super().__init__(io.BytesIO(data))
        self._known = {**_GLOBALS, **known}
        self.forbidden: list[str] = []

    def find_class(self, module: str, name: str) -> object:
        """Returns the record that stands for a name."""
        if (module, name) not in self._known:
            self.forbidden.append(f"{module}.{name}")
        return self._known.get((module, name), Record)

    def persistent_load(self, pid: object) -> Storage:
        """Returns the storage that a persistent id describes."""
        match pid:
            case ("storage", str(kind), str(key), _, int(size)) if kind in STORAGES:
                return Storage(STORAGES[kind], key, size)
        raise pickle.UnpicklingError("a persistent id is not a storage")


def _check_integers(data: bytes) -> None:
    """Rejects integers that would exhaust memory, such as memo indices: the memo is an array."""
    for opcode, argument, position in pickletools.genops(data):
        limit = len(data) if opcode.name.endswith("PUT") else 2**63
        if isinstance(argument, int) and abs(argument) > limit:
            raise pickle.UnpicklingError(f"integer too large at byte {position}")
