"""The pickle in a PyTorch checkpoint: a state dict whose tensors name their storages.

It is parsed into records, and nothing that it names is imported; `pickle_emission` writes it.
"""

import io
import math
import pickle
import pickletools
import reprlib
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.stored_tensor import CheckpointError, checked_shape

from . import pickle_writer
from .pickle_writer import ORDERED_DICT, Call, Dictionary, Name, StoredElsewhere

_STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
}
# The dtypes added since have no storage class: the tensor names them, over a storage of bytes.
_LATER_DTYPES: dict[str, np.dtype] = {
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_STORAGE_NAMES = {dtype: name for name, dtype in _STORAGES.items()}
_LATER_NAMES = {dtype: name for name, dtype in _LATER_DTYPES.items()}

WRITABLE_DTYPES = frozenset(_STORAGE_NAMES | _LATER_NAMES)


class Storage(NamedTuple):
    """A block of numbers outside of the pickle, `size` elements of `dtype` under the name `key`."""

    dtype: np.dtype
    key: str
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return self.size * self.dtype.itemsize


class View(NamedTuple):
    """A tensor as a view of a storage: `offset` and `strides` count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        expected = _c_strides(self.shape)
        return 0 in self.shape or all(
            size == 1 or stride == step
            for size, stride, step in zip(self.shape, self.strides, expected, strict=True)
        )


def parse(data: bytes) -> dict[str, object]:
    """The state dict, its entries to be given to `as_view`.

    Raises `CheckpointError` for anything but a state dict, and what `parse_value` raises.
    """
    state = parse_value(data)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("the pickle is not a state dict, which maps names to tensors")
    return dict(state)


def parse_value(data: bytes, known: Mapping[tuple[str, str], object] | None = None) -> object:
    """What a pickle holds, of dictionaries, lists, numbers, texts and records.

    `known` are names beyond those of tensors, and the class of `Record` or the constant that each
    stands for. Raises `CheckpointError` for every other name of a class or function: none is ever
    imported or called.
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
    """The tensor of an entry; None if the entry is one that cannot hold tensors.

    Raises `CheckpointError` for nested dictionaries and for tensors that overrun their storage.
    """
    match entry:
        case (_Tensor() as tensor) | _Parameter(arguments=(_Tensor() as tensor, *_)):
            return _checked_view(tensor)
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


def emit(tensors: Mapping[str, TensorSource]) -> bytes:
    """The pickle of an OrderedDict of contiguous tensors, whose storages are '0', '1', ..."""
    return pickle_writer.emit(Dictionary(_spell_all(tensors).items(), ORDERED_DICT))


def emit_value(value: object, tensors: Mapping[str, TensorSource]) -> bytes:
    """The pickle of a value, in which `Placed` stands for a tensor, stored as `emit` does."""
    return pickle_writer.emit(_filled(value, _spell_all(tensors)))


class Placed(NamedTuple):
    """Stands for the tensor of this name in what is to be written."""

    name: str


def _spell_all(tensors: Mapping[str, TensorSource]) -> dict[str, Call]:
    return {name: _spell(source, key) for key, (name, source) in enumerate(tensors.items())}


def _filled(value: object, spelled: Mapping[str, Call]) -> object:
    """The value with each tensor in its place."""
    match value:
        case Placed(name):
            return spelled[name]
        case dict():
            return {key: _filled(item, spelled) for key, item in value.items()}
    return value


def _spell(source: TensorSource, key: int) -> Call:
    is_later = source.dtype in _LATER_NAMES
    size = source.nbytes if is_later else math.prod(source.shape)
    kind = (
        Name("torch.storage", "UntypedStorage")
        if is_later
        else Name("torch", _STORAGE_NAMES[source.dtype])
    )
    view = (
        StoredElsewhere(("storage", kind, str(key), "cpu", size)),
        0,
        source.shape,
        _c_strides(source.shape),
        False,  # requires_grad
        ORDERED_DICT,  # hooks
    )
    if is_later:
        dtype = Name("torch", _LATER_NAMES[source.dtype])
        return Call(Name("torch._utils", "_rebuild_tensor_v3"), (*view, dtype))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), view)


class Record:
    """Stands for whatever a pickle calls: it keeps the arguments, and nothing else happens."""

    arguments: tuple[object, ...] = ()

    def __init__(self, *arguments: object):
        self.arguments = arguments

    # All classes within a pickle's reach have this method: without it, BUILD could set attributes
    # of the class itself.
    def __setstate__(self, state: object) -> None:
        pass


class _Tensor(Record):
    """A call of `torch._utils._rebuild_tensor_v2` or `_v3`."""


class _Parameter(Record):
    """A call of `torch._utils._rebuild_parameter`."""


class _StateDict(dict):
    """An OrderedDict; the attributes of PyTorch's, which are versions of modules, are left out."""

    __setstate__ = Record.__setstate__


# Names of dtypes stay strings, which a pickle can neither call nor change.
_GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _StateDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch.storage", "UntypedStorage"): "ByteStorage",
    **{("torch", name): name for name in _STORAGES | _LATER_DTYPES},
    # What modules keep beside their tensors, such as `_extra_state` in Llama 4.
    ("torch", "Size"): Record,
    ("_io", "BytesIO"): Record,
    ("_codecs", "encode"): Record,
}


class _Unpickler(pickle.Unpickler):
    """Turns what a pickle names into records, and lists the names that are `forbidden`."""

    def __init__(self, data: bytes, known: Mapping[tuple[str, str], object]):
        super().__init__(io.BytesIO(data))
        self._known = {**_GLOBALS, **known}
        self.forbidden: list[str] = []

    def find_class(self, module: str, name: str) -> object:
        """The record that stands for a name."""
        if (module, name) not in self._known:
            self.forbidden.append(f"{module}.{name}")
        return self._known.get((module, name), Record)

    def persistent_load(self, pid: object) -> Storage:
        """The storage that a persistent id describes."""
        match pid:
            case ("storage", str(kind), str(key), _, int(size)) if kind in _STORAGES:
                return Storage(_STORAGES[kind], key, size)
        raise pickle.UnpicklingError("a persistent id is not a storage")


def _check_integers(data: bytes) -> None:
    """Refuses integers that would fill the memory, as a memo index can: the memo is an array."""
    for opcode, argument, position in pickletools.genops(data):
        limit = len(data) if opcode.name.endswith("PUT") else 2**63
        if isinstance(argument, int) and abs(argument) > limit:
            raise pickle.UnpicklingError(f"integer too large at byte {position}")


def _checked_view(tensor: _Tensor) -> View:
    match tensor.arguments:
        case (Storage() as storage, offset, sizes, steps, _, _, *rest):
            pass
        case _:
            raise CheckpointError("is not a view of a storage")
    dtype = storage.dtype
    if rest and isinstance(rest[0], str):  # what `_rebuild_tensor_v3` adds
        dtype = _LATER_DTYPES.get(str(rest.pop(0)), dtype)
    if any(rest):  # metadata: the tensor's numbers are not those of its storage
        raise CheckpointError("is conjugated or negated lazily, which must be resolved first")
    shape = checked_shape(sizes, dtype)
    start, strides = _checked_place(offset, steps, len(shape))
    reach = [stride * (size - 1) for size, stride in zip(shape, strides, strict=True)]
    end = start + (0 if 0 in shape else sum(reach) + 1)
    if end * dtype.itemsize > storage.nbytes:
        raise CheckpointError(
            f"shape {list(shape)} with offset {start} and strides {list(strides)} reaches "
            f"element {end} of a storage of {storage.nbytes // dtype.itemsize}"
        )
    return View(storage, dtype, start, shape, strides)


def _checked_place(offset: object, strides: object, rank: int) -> tuple[int, tuple[int, ...]]:
    match (offset, strides):
        case (int(start), tuple(steps)) if len(steps) == rank:
            if all(type(number) is int and number >= 0 for number in (start, *steps)):
                return start, steps
    raise CheckpointError(
        f"offset {reprlib.repr(offset)} and strides {reprlib.repr(strides)} do not place "
        f"{rank} dimensions"
    )


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = [max(size, 1) for size in shape]
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
