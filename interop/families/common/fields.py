"""Reads a config file: every field must be taken, explicitly ignored or known to change nothing."""

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from jaxllm.config.checks import MAX_COUNT, MAX_INT
from jaxllm.errors import MOST_LISTED, did_you_mean, nearest

from .config_fields import ReadFields

Json = dict[str, Any]
REQUIRED: Any = object()
MAX_FLOAT = float(np.finfo(np.float32).max)  # models compute with the numbers of a config
# Likeness of a field that nothing reads with one that is: names of fields are often similar.
MISSPELLED = 0.9
# The same if the file lacks the field that is read, whose default is then taken.
MISNAMED = 0.8
Part = TypeVar("Part")


class Fields:
    """A config file being read: a field that may change a number must be taken.

    Problems are collected rather than raised, so that all are reported at once.

    Args:
        data: the fields of the file.
        reads: what the original model reads of them; None if that is unknown, so that every field
            must be taken or ignored.
    """

    def __init__(self, data: Json, reads: ReadFields | None = None):
        self.data = data if reads is None else reads.with_names(data)
        self.reads = reads
        # transformers 4 left out the fields of nested configs that have the class's default.
        self.is_part = False
        self.known: set[str] = set() if reads is None else {*reads.aliases}
        # The values that refused fields may have; None: they may be absent.
        self.refused: dict[str, Any] = {}
        self.ignored: set[str] = set()
        self.parts: dict[str, Fields] = {}
        self.problems: list[str] = []
        self.is_complete = True  # False once a value is missing or invalid

    def take(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """Returns the value, or the default if null or absent; accepts an int for a float."""
        self.known.add(name)
        value = self.data.get(name)
        if default is REQUIRED and value is None and self.is_part:
            value = self.default(name)
        if value is None:
            if default is not REQUIRED:
                return default
            meant = nearest(name, self._left_over(), MISSPELLED)
            hint = f"; is {meant!r} a misspelling of it?" if meant else ""
            self.problems.append(f"{name} is missing{hint}")
            self.is_complete = False
            return kind()
        if kind is float and type(value) is int:
            value = float(value) if abs(value) <= MAX_INT else value
        if problem := _type_problem(name, value, kind):
            self.problems.append(f"{name}={reprlib.repr(value)} {problem}")
            self.is_complete = False
            return kind() if default is REQUIRED else default
        return value

    def default(self, name: str) -> Any:
        """Returns what the original model takes for an absent field; None if that is unknown."""
        return None if self.reads is None else self.reads.default(name)

    def take_nullable(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """As `take`, but an explicit null gives None instead of the default."""
        if name in self.data and self.data[name] is None:
            self.known.add(name)
            return None
        return self.take(name, kind, default)

    def require(self, name: str, *allowed: Any) -> None:
        """Records a problem if the field has a value other than the implemented ones, `allowed`."""
        self.known.add(name)
        if name in self.data and self.data[name] not in allowed:
            choices = " or ".join(map(repr, allowed))
            self.problems.append(
                f"{name}={reprlib.repr(self.data[name])} is not supported, only {choices}"
            )
            self.refused[name] = allowed[0]

    def ignore(self, *names: str) -> None:
        """Declares fields that do not affect the computed numbers."""
        self.known.update(names)
        self.ignored.update(names)

    def build(self, part: Callable[..., Part], /, **values: Any) -> Part | None:
        """Builds a part of the config; on invalid values, returns None and records the problem."""
        if not self.problems:
            try:
                return part(**values)
            except ValueError as error:
                self.problems.append(str(error))
        self.is_complete = False
        return None

    @contextmanager
    def part(self, name: str, reads: ReadFields | None = None) -> "Iterator[Fields]":
        """Reads a nested object; its problems are added to this one's."""
        inner = Fields(self.take(name, dict, {}), reads)
        inner.is_part = True
        yield inner
        self.join(name, inner)

    def join(self, name: str, inner: "Fields") -> None:
        """Adds a nested object that has been read, by its name: its problems are this one's."""
        self.is_complete &= inner.is_complete
        self.problems += [f"{name}: {problem}" for problem in inner.problems]
        self.refused |= {f"{name}.{field}": usual for field, usual in inner.refused.items()}
        self.parts[name] = inner

    def unknown(self) -> dict[str, str]:
        """Returns a message for each field that may change a number but was not taken.

        The keys are dotted names. Only the first of many have a suggestion, each of which takes a
        search.
        """
        strange = [name for name in self._left_over() if not self._is_inert(name)]
        own = {name: self._describe(name, number) for number, name in enumerate(strange)}
        inner = {
            f"{part}.{name}": f"{part}: {text}"
            for part, fields in self.parts.items()
            for name, text in fields.unknown().items()
        }
        return own | inner

    def unused(self) -> dict[str, str]:
        """Returns a hint for each field that changes no number, but for those of every config.

        The keys are dotted names; a hint suggests a name that may be meant, or is empty.
        """
        usual = () if self.reads is None else self.reads.unread
        inert = [n for n in self._left_over() if self._is_inert(n) and n not in usual]
        own = dict.fromkeys(inert, "")
        aliases = {} if self.reads is None else self.reads.aliases
        absent = self.known - self.ignored - self.data.keys() - aliases.keys()
        own |= {
            name: did_you_mean(name, self.known, MISSPELLED) or did_you_mean(name, absent, MISNAMED)
            for name in inert[:MOST_LISTED]
            if not name.startswith("_")
        }
        inner = {
            f"{part}.{name}": hint
            for part, fields in self.parts.items()
            for name, hint in fields.unused().items()
        }
        return own | inner

    def _left_over(self) -> list[str]:
        """Returns the names of the fields that were neither taken nor ignored."""
        return [name for name in self.data if name not in self.known]

    def _is_inert(self, name: str) -> bool:
        return self.reads is not None and self.reads.is_inert(name, self.data[name])

    def _describe(self, name: str, number: int) -> str:
        given = f"{name:.200}={reprlib.repr(self.data[name])}"
        if self.reads is not None:
            return f"{given} is not implemented, and transformers reads it"
        hint = did_you_mean(name, self.known) if number < MOST_LISTED else ""
        return f"{given} is not a field known to this family{hint}"

    def finish(self) -> list[str]:
        """Returns all problems of the file, including fields that are unknown."""
        return self.problems + list(self.unknown().values())

    def uses(self) -> dict[str, str]:
        """Maps each field of the file to "read", "ignored", "not used" or "unknown".

        Fields of nested objects are named only if they are not used.
        """
        fates = {
            **dict.fromkeys(self.known, "read"),
            **dict.fromkeys(self.ignored, "ignored"),
            **{name: "not used" for name in self._left_over() if self._is_inert(name)},
            **dict.fromkeys(self.unused(), "not used"),
        }
        nested = (name for name in fates if "." in name)
        return {name: fates.get(name, "unknown") for name in (*self.data, *nested)}


def _type_problem(name: str, value: Any, kind: type) -> str | None:
    """Checks a field's type and range; returns the problem, or None."""
    if type(value) is not kind:
        return f"is not of type {kind.__name__}"
    if isinstance(value, float):
        return None if abs(value) <= MAX_FLOAT else "is not a finite float32"
    if not isinstance(value, int):
        return None
    limit = MAX_COUNT if "layer" in name or "expert" in name else MAX_INT
    return f"exceeds the limit of {limit:,}" if abs(value) > limit else None
