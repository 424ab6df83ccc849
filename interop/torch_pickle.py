"""The pickle in a PyTorch checkpoint: a state dict whose tensors name their storages.

It is parsed into records, and nothing that it names is imported; it is emitted opcode by opcode.
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

from .sources import TensorSource
from .tensors import CheckpointError, checked_shape

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

    Raises `CheckpointError` for anything but a state dict, and for every name of a class or
    function that a state dict does not need: none is ever imported or called.
    """
    unpickler = _Unpickler(data)
    state: object = None
    failure = ""
    try:
        _check_integers(data)
        state = unpickler.load()
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
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("the pickle is not a state dict, which maps names to tensors")
    return dict(state)


def as_view(entry: object) -> View | None:
    """The tensor of an entry; None if the entry is one that cannot hold tensors.

    Raises `CheckpointError` for nested dictionaries and for tensors that overrun their storage.
    """
    match entry:
        case (_Tensor() as tensor) | _Parameter(arguments=(_Tensor() as tensor, *_)):
            return _checked_view(tensor)
        case _Parameter():
            raise CheckpointError("is a parameter without a tensor")
        case None | bool() | int() | float() | str() | bytes() | _Record():
            return None
        case dict():
            keys = ", ".join(repr(key) for key in entry if isinstance(key, str))
            raise CheckpointError(
                f"is a dictionary of {keys:.100}, not a tensor: only a flat state dict is read"
            )
    raise CheckpointError(f"is a {type(entry).__name__}, not a tensor")


def emit(tensors: Mapping[str, TensorSource]) -> bytes:
    """The pickle of an OrderedDict of contiguous tensors, whose storages are '0', '1', ..."""
    items = [
        _text(name) + _emit_tensor(source, str(key))
        for key, (name, source) in enumerate(tensors.items())
    ]
    filled = _EMPTY_ORDERED_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS
    return pickle.PROTO + b"\2" + filled + pickle.STOP


class _Record:
    """Stands for whatever a pickle calls: it keeps the arguments, and nothing else happens."""

    arguments: tuple[object, ...] = ()

    def __init__(self, *arguments: object):
        self.arguments = arguments

    # All classes within a pickle's reach have this method: without it, BUILD could set attributes
    # of the class itself.
    def __setstate__(self, state: object) -> None:
        pass


class _Tensor(_Record):
    """A call of `torch._utils._rebuild_tensor_v2` or `_v3`."""


class _Parameter(_Record):
    """A call of `torch._utils._rebuild_parameter`."""


class _StateDict(dict):
    """An OrderedDict; the attributes of PyTorch's, which are versions of modules, are left out."""

    __setstate__ = _Record.__setstate__


# Names of dtypes stay strings, which a pickle can neither call nor change.
_GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _StateDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch.storage", "UntypedStorage"): "ByteStorage",
    **{("torch", name): name for name in _STORAGES | _LATER_DTYPES},
    # What modules keep beside their tensors, such as `_extra_state` in Llama 4.
    ("torch", "Size"): _Record,
    ("_io", "BytesIO"): _Record,
    ("_codecs", "encode"): _Record,
}


class _Unpickler(pickle.Unpickler):
    """Turns what a pickle names into records, and lists the names that are `forbidden`."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self.forbidden: list[str] = []

    def find_class(self, module: str, name: str) -> object:
        """The record that stands for a name."""
        if (module, name) not in _GLOBALS:
            self.forbidden.append(f"{module}.{name}")
        return _GLOBALS.get((module, name), _Record)

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


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + len(data).to_bytes(4, "little") + data


def _integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _call(function: bytes, *arguments: bytes) -> bytes:
    return function + _tuple(*arguments) + pickle.REDUCE


_EMPTY_ORDERED_DICT = _call(_global("collections", "OrderedDict"))


def _emit_tensor(source: TensorSource, key: str) -> bytes:
    is_later = source.dtype in _LATER_NAMES
    storage = (
        _global("torch.storage", "UntypedStorage")
        if is_later
        else _global("torch", _STORAGE_NAMES[source.dtype])
    )
    size = source.nbytes if is_later else math.prod(source.shape)
    view = [
        _tuple(_text("storage"), storage, _text(key), _text("cpu"), _integer(size))
        + pickle.BINPERSID,
        _integer(0),
        _tuple(*map(_integer, source.shape)),
        _tuple(*map(_integer, _c_strides(source.shape))),
        pickle.NEWFALSE,  # requires_grad
        _EMPTY_ORDERED_DICT,  # hooks
    ]
    if is_later:
        dtype = _global("torch", _LATER_NAMES[source.dtype])
        return _call(_global("torch._utils", "_rebuild_tensor_v3"), *view, dtype)
    return _call(_global("torch._utils", "_rebuild_tensor_v2"), *view)
