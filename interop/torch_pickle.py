"""The pickle in a PyTorch checkpoint: a state dict whose tensors name their storages.

It is parsed into records, and nothing that it names is imported; it is emitted opcode by opcode.
"""

import io
import pickle
import pickletools
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from .tensors import CheckpointError, TensorSource, checked_shape

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
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return 0 in self.shape
            step *= size
        return True


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
    if isinstance(entry, _Parameter):
        entry = entry.data
    match entry:
        case _Tensor() | _LaterTensor():
            return _checked_view(entry)
        case None | bool() | int() | float() | str() | bytes() | _Inert():
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
    return b"".join(
        [pickle.PROTO, b"\2", _ORDERED_DICT, pickle.MARK, *items, pickle.SETITEMS, pickle.STOP]
    )


class _Inert:
    """Stands for what is not a tensor: it can be made and filled, to no effect."""

    def __init__(self, *args: object):
        pass

    # Every class that a pickle can reach has this method: without it, BUILD may set attributes of
    # the class itself.
    def __setstate__(self, state: object) -> None:
        pass


class _StateDict(dict):
    """An OrderedDict; PyTorch's has attributes, the versions of modules, which are left out."""

    __setstate__ = _Inert.__setstate__


class _Tensor(NamedTuple):
    """The arguments of `torch._utils._rebuild_tensor_v2`."""

    storage: object
    offset: object
    shape: object
    strides: object
    requires_grad: object
    hooks: object
    metadata: object = None
    __setstate__ = _Inert.__setstate__


class _LaterTensor(NamedTuple):
    """The arguments of `torch._utils._rebuild_tensor_v3`."""

    storage: object
    offset: object
    shape: object
    strides: object
    requires_grad: object
    hooks: object
    dtype: object
    metadata: object = None
    __setstate__ = _Inert.__setstate__


class _Parameter(NamedTuple):
    """The arguments of `torch._utils._rebuild_parameter`."""

    data: object
    requires_grad: object
    hooks: object
    __setstate__ = _Inert.__setstate__


# Names of dtypes stay strings, which a pickle can neither call nor change.
_GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _StateDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _LaterTensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch.storage", "UntypedStorage"): "ByteStorage",
    **{("torch", name): name for name in _STORAGES | _LATER_DTYPES},
    # What modules keep beside their tensors, such as `_extra_state` in Llama 4.
    ("torch", "Size"): _Inert,
    ("_io", "BytesIO"): _Inert,
    ("_codecs", "encode"): _Inert,
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
        return _GLOBALS.get((module, name), _Inert)

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


def _checked_view(tensor: _Tensor | _LaterTensor) -> View:
    storage, offset, strides = tensor.storage, tensor.offset, tensor.strides
    if not isinstance(storage, Storage):
        raise CheckpointError("is not the view of a storage")
    dtype = storage.dtype
    if isinstance(tensor, _LaterTensor):
        if not isinstance(tensor.dtype, str) or tensor.dtype not in _LATER_DTYPES:
            raise CheckpointError("has no dtype")
        dtype = _LATER_DTYPES[tensor.dtype]
    if tensor.metadata:
        raise CheckpointError("is a conjugated or negated view, which must be resolved before saving")
    shape = checked_shape(tensor.shape, dtype)
    strides = checked_shape(tensor.strides, dtype)
    ...
    return view
