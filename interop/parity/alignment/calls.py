"""Names of the activations of modules that run more than once: one for each call."""

import itertools
from collections.abc import Collection
from functools import partial

_SEPARATOR = ": "  # in no name of a module


def of_call(name: str, number: int) -> str:
    """Returns the name of an activation in a call of its module, counted from 0."""
    return name if number == 0 else f"call {number + 1}{_SEPARATOR}{name}"


def without_call(name: str) -> str:
    """Returns the name of an activation in the first call of its module."""
    return name.rpartition(_SEPARATOR)[2]


def calls_of(name: str, found: Collection[str]) -> list[str]:
    """Returns the names of all calls that were recorded, in order."""
    numbered = map(partial(of_call, name), itertools.count())
    return list(itertools.takewhile(lambda one: one in found, numbered))
