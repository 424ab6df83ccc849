"""Reads pickles opcode by opcode: nothing is imported or run, and time and memory stay linear.

Python's unpickler hashes whatever a pickle uses as a key. Tuples inside tuples take it
exponential time in a few bytes, or more stack than the process has.
"""

import pickletools
import warnings
from collections.abc import Callable
from typing import Any


class PickleError(ValueError):
    """A pickle that is damaged, or does what no state dict needs."""


class Record:
    """Stands for a class or function that a pickle calls: keeps the arguments, runs nothing."""

    arguments: tuple[object, ...] = ()

    def __init__(self, *arguments: object):
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        pass


class StateDict(dict):
    """An OrderedDict without the attributes that PyTorch adds, which are module versions."""


def read(
    data: bytes,
    find: Callable[[str, str], object],
    find_storage: Callable[[object], object],
) -> object:
    """Returns the value of a pickle.

    Args:
        data: the pickle.
        find: returns what stands for a module's class, function or constant, by its names:
            `StateDict`, a class of `Record`, or a constant. Only the first two can be called.
        find_storage: returns what a persistent id stands for.

    Raises:
        PickleError: the pickle is damaged, or has an opcode or a key that state dicts do not have.
        ValueError: an argument is damaged, or `find_storage` refuses an id.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in damaged strings
        return _Machine(len(data), find, find_storage).run(data)


class _Machine:
    """The stack machine that a pickle is a program of."""

    def __init__(
        self,
        size: int,
        find: Callable[[str, str], object],
        find_storage: Callable[[object], object],
    ):
        self._size, self._find, self._find_storage = size, find, find_storage
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, object] = {}

    def run(self, data: bytes) -> object:
        """Returns the value on the stack at the end of the program."""
        for opcode, argument, position in pickletools.genops(data):
            name = opcode.name
            try:
                if name in _CONSTANTS:
                    self._stack.append(_bounded(argument))
                elif name in _STEPS:
                    _STEPS[name](self, argument)
                elif name != "STOP":
                    raise PickleError(f"{name} is not an opcode of state dicts")
            except IndexError:
                raise PickleError(f"nothing is on the stack at byte {position}") from None
            except PickleError as error:
                raise PickleError(f"{error} at byte {position}") from None
        return self._stack[-1] if self._stack else None

    def _mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop_mark(self, _: object = None) -> list[Any]:
        """Returns everything above the last mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _pop_many(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count:
            raise IndexError
        del self._stack[-count:]
        return items

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _put(self, index: int | None) -> None:
        place = len(self._memo) if index is None else index
        if place > self._size:
            raise PickleError("integer too large")
        self._memo[place] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise PickleError(f"nothing is remembered as {index}")
        self._push(self._memo[index])

    def _append(self, items: list[Any]) -> None:
        _checked(self._stack[-1], list).extend(items)

    def _add(self, items: list[Any]) -> None:
        _checked(self._stack[-1], set).update(map(_key, items))

    def _set(self, items: list[Any]) -> None:
        _fill(_checked(self._stack[-1], dict), items)

    def _global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._push(self._find(module, name))

    def _stack_global(self, _: object) -> None:
        module, name = self._pop_many(2)
        self._push(self._find(_checked(module, str), _checked(name, str)))

    def _call(self, _: object) -> None:
        function, arguments = self._pop_many(2)
        given = _checked(arguments, tuple)
        if function is StateDict:
            pairs = [_pair(pair) for pair in _checked(given[0], list)] if given else []
            self._push(_fill(StateDict(), [one for pair in pairs for one in pair]))
        elif isinstance(function, type) and issubclass(function, Record):
            self._push(function(*given))
        else:
            raise PickleError(f"a {type(function).__name__} is called")

    def _build(self, _: object) -> None:
        instance, state = self._pop_many(2)
        if isinstance(instance, Record):
            instance.__setstate__(state)
        elif not isinstance(instance, StateDict):
            raise PickleError(f"a {type(instance).__name__} is given attributes")
        self._push(instance)


def _bounded(constant: object) -> object:
    """Returns a constant. Raises PickleError for an integer that is larger than any size."""
    if isinstance(constant, int) and abs(constant) > 2**63:
        raise PickleError("integer too large")
    return constant


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PickleError(f"a {type(value).__name__} stands where a {kind.__name__} must")
    return value


def _pair(value: object) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise PickleError("an item of an OrderedDict is not a pair")
    return value


def _key(value: object) -> object:
    """Returns a key of a dictionary. Raises PickleError if hashing it may take long."""
    if value is None or isinstance(value, str | bytes | int | float | Record):
        return value
    raise PickleError(f"a {type(value).__name__} is the key of a dictionary")


def _fill(target: dict, items: list[Any]) -> dict:
    """Adds keys and values, which alternate, to a dictionary, and returns it."""
    if len(items) % 2:
        raise PickleError("a key of a dictionary has no value")
    for at in range(0, len(items), 2):
        target[_key(items[at])] = items[at + 1]
    return target


# Opcodes whose argument is the value to push.
_CONSTANTS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    }
)
# What every other opcode does, given its argument.
_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine._push(None),
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._pop_mark,
    "DUP": lambda machine, _: machine._push(machine._stack[-1]),
    **dict.fromkeys(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"), _Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._get),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "TUPLE1": lambda machine, _: machine._push(tuple(machine._pop_many(1))),
    "TUPLE2": lambda machine, _: machine._push(tuple(machine._pop_many(2))),
    "TUPLE3": lambda machine, _: machine._push(tuple(machine._pop_many(3))),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_mark())),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "LIST": lambda machine, _: machine._push(machine._pop_mark()),
    "APPEND": lambda machine, _: machine._append(machine._pop_many(1)),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "DICT": lambda machine, _: machine._push(_fill({}, machine._pop_mark())),
    "SETITEM": lambda machine, _: machine._set(machine._pop_many(2)),
    "SETITEMS": lambda machine, _: machine._set(machine._pop_mark()),
    "EMPTY_SET": lambda machine, _: machine._push(set()),
    "ADDITEMS": lambda machine, _: machine._add(machine._pop_mark()),
    "FROZENSET": lambda machine, _: machine._push(frozenset(map(_key, machine._pop_mark()))),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": lambda machine, _: machine._push(machine._find_storage(machine._pop_many(1)[0])),
}
