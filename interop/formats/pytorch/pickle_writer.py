"""Writes pickles opcode by opcode, for the few kinds of values in checkpoints.

Classes and functions are written by name and never imported, so that files for PyTorch's unpickler
can be written without PyTorch.
"""

import pickle
import struct
from collections.abc import Iterable
from typing import NamedTuple


class Name(NamedTuple):
    """A class, function or constant of a module, by name."""

    module: str
    name: str


class Call(NamedTuple):
    """The result of calling a function."""

    function: Name
    arguments: tuple


class Instance(NamedTuple):
    """An object of a class, with its attributes or whatever state its `__setstate__` takes."""

    kind: Name
    state: object


class StoredElsewhere(NamedTuple):
    """A record outside the pickle, by its persistent id."""

    id: tuple


class Dictionary(NamedTuple):
    """A dictionary with keys of any kind; `made_by` creates one of another class than `dict`."""

    items: Iterable[tuple[object, object]]
    made_by: Call | None = None


ORDERED_DICT = Call(Name("collections", "OrderedDict"), ())


def emit(value: object) -> bytes:
    """Returns the pickle of a value in protocol 2, which PyTorch writes.

    Raises:
        TypeError: the value contains something of another kind.
    """
    return pickle.PROTO + b"\2" + _encode(value) + pickle.STOP


def _encode(value: object) -> bytes:
    match value:
        case Name(module, name):
            encoded = pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Call(function, arguments):
            encoded = _encode(function) + _encode(arguments) + pickle.REDUCE
        case Instance(kind, state):
            new = _encode(kind) + pickle.EMPTY_TUPLE + pickle.NEWOBJ
            encoded = new + _encode(state) + pickle.BUILD
        case StoredElsewhere(id):
            encoded = _encode(id) + pickle.BINPERSID
        case Dictionary(items, made_by):
            empty = pickle.EMPTY_DICT if made_by is None else _encode(made_by)
            encoded = empty + pickle.MARK + b"".join(map(_encode_pair, items)) + pickle.SETITEMS
        case dict():
            encoded = _encode(Dictionary(value.items()))
        case tuple():
            encoded = pickle.MARK + b"".join(map(_encode, value)) + pickle.TUPLE
        case list():
            listed = b"".join(map(_encode, value))
            encoded = pickle.EMPTY_LIST + pickle.MARK + listed + pickle.APPENDS
        case _:
            encoded = _encode_plain(value)
    return encoded


def _encode_pair(pair: tuple[object, object]) -> bytes:
    return b"".join(map(_encode, pair))


def _encode_plain(value: object) -> bytes:
    match value:
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return pickle.LONG1 + bytes([len(data)]) + data
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            text = value.encode()
            return pickle.BINUNICODE + len(text).to_bytes(4, "little") + text
    raise TypeError(f"cannot pickle a {type(value).__name__}")
