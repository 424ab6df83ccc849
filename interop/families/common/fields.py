"""Reads a config file: every field must be taken or explicitly ignored."""

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from jaxllm.errors import MOST_LISTED, did_you_mean

Json = dict[str, Any]
REQUIRED: Any = object()
# Limits that keep a damaged config from filling memory: the model is laid out before its tensors
# are looked up.
MAX_INT = 2**31 - 1
MAX_COUNT = 10_000  # layers, experts
MAX_FLOAT = float(np.finfo(np.float32).max)
Part = TypeVar("Part")


class Fields:
    """A config file being read: every field must be taken or explicitly ignored.

    Problems are collected rather than raised, so that all are reported at once.
    """

    def __init__(self, data: Json):
        self.data = data
        self.known: set[str] = set()
        self.ignored: set[str] = set()
        self.parts: dict[str, Fields] = {}
        self.problems: list[str] = []
        self.is_complete = True  # False once a value is missing or invalid

    def take(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """Returns the value, or the default if null or absent; accepts an int for a float."""
        self.known.add(name)
        value = self.data.get(name)
        if value is None:
            if default is not REQUIRED:
                return default
            self.problems.append(f"{name} is missing")
            self.is_complete = False
            return kind()
        if kind is float and type(value) is int:
            value = float(value) if abs(value) <= MAX_INT else value
        if problem := _type_problem(name, value, kind):
            self.problems.append(f"{name}={reprlib.repr(value)} {problem}")
            self.is_complete = False
            return kind() if default is REQUIRED else default
        return value

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
    def part(self, name: str) -> "Iterator[Fields]":
        """Reads a nested object; its problems are added to this one's."""
        inner = Fields(self.take(name, dict, {}))
        yield inner
        self.is_complete &= inner.is_complete
        self.problems += [f"{name}: {problem}" for problem in inner.problems]
        self.parts[name] = inner

    def unknown(self) -> dict[str, str]:
        """Returns a message for each field that was neither taken nor ignored, by dotted name.

        Only the first of many have a suggestion, each of which takes a search.
        """
        strange = [name for name in self.data if name not in self.known]
        own = {
            name: f"{name:.200}={reprlib.repr(self.data[name])} is not a field known to this family"
            + (did_you_mean(name, self.known) if number < MOST_LISTED else "")
            for number, name in enumerate(strange)
        }
        inner = {
            f"{part}.{name}": f"{part}: {text}"
            for part, fields in self.parts.items()
            for name, text in fields.unknown().items()
        }
        return own | inner

    def value(self, name: str) -> Any:
        """Returns the value of a field by its dotted name, as `unknown` gives it."""
        part, _, inner = name.partition(".")
        return self.parts[part].value(inner) if part in self.parts and inner else self.data[name]

    def finish(self) -> list[str]:
        """Returns all problems of the file, including unknown fields."""
        return self.problems + list(self.unknown().values())

    def uses(self) -> dict[str, str]:
        """Maps each field of the file to "read", "ignored" or "unknown"."""
        fates = {**dict.fromkeys(self.known, "read"), **dict.fromkeys(self.ignored, "ignored")}
        return {name: fates.get(name, "unknown") for name in self.data}


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
