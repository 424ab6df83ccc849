"""Pickles written opcode by opcode, of the few kinds of values that checkpoints are made of.

Classes and functions are named, never imported, so that neither PyTorch nor any other code is
needed to write what its `pickle.load` reads.
"""

import pickle
import struct
from collections.abc import Iterable
from typing import NamedTuple


class Name(NamedTuple):
    """A class, a function or a constant of a module."""

    module: str
    name: str


class Call(NamedTuple):
    """What a function returns."""

    function: Name
    arguments: tuple


class Instance(NamedTuple):
    """An object of a class, its attributes or other state as `__setstate__` takes them."""

    kind: Name
    state: object


class StoredElsewhere(NamedTuple):
    """A record outside of the pickle, by its persistent id."""

    id: tuple


class Dictionary(NamedTuple):
    """A dictionary of any keys, of a class of its own perhaps, which a call makes."""

    items: Iterable[tuple[object, object]]
    made_by: Call | None = None


ORDERED_DICT = Call(Name("collections", "OrderedDict"), ())


def emit(value: object) -> bytes:
    """The pickle of a value, in the protocol that PyTorch writes."""
    return pickle.PROTO + b"\2" + _spell(value) + pickle.STOP


def _spell(value: object) -> bytes:
    match value:
        case Name(module, name):
            spelled = pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Call(function, arguments):
            spelled = _spell(function) + _spell(arguments) + pickle.REDUCE
        case Instance(kind, state):
            new = _spell(kind) + pickle.EMPTY_TUPLE + pickle.NEWOBJ
            spelled = new + _spell(state) + pickle.BUILD
        case StoredElsewhere(id):
            spelled = _spell(id) + pickle.BINPERSID
        case Dictionary(items, made_by):
            empty = pickle.EMPTY_DICT if made_by is None else _spell(made_by)
            spelled = empty + pickle.MARK + b"".join(map(_spell_pair, items)) + pickle.SETITEMS
        case dict():
            spelled = _spell(Dictionary(value.items()))
        case tuple():
            spelled = pickle.MARK + b"".join(map(_spell, value)) + pickle.TUPLE
        case list():
            listed = b"".join(map(_spell, value))
            spelled = pickle.EMPTY_LIST + pickle.MARK + listed + pickle.APPENDS
        case _:
            spelled = _spell_plain(value)
    return spelled


def _spell_pair(pair: tuple[object, object]) -> bytes:
    return b"".join(map(_spell, pair))


def _spell_plain(value: object) -> bytes:
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
    raise TypeError(f"a {type(value).__name__} is not written into a pickle")
