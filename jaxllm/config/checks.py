"""Validation helpers of the config classes. Messages give the full dotted name of a field."""

import dataclasses
import math
import reprlib
import sys
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jaxllm.errors import UserError

# Limits that keep a mistyped size from filling memory: a model is laid out before it is used.
MAX_INT = 2**31 - 1
MAX_COUNT = 10_000  # layers, experts
MAX_SEED = 2**32 - 1  # of NumPy and grain; JAX uses as many bits
LIMITS = {"num_layers": MAX_COUNT, "num_experts": MAX_COUNT, "seed": MAX_SEED}
MAX_FLOAT = sys.float_info.max
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 200
SHORT.maxlevel = 3


def check_fields(part: Any, prefix: str = "") -> None:
    """Checks the value of every field against its type; floats must be finite, integers 32-bit.

    Args:
        part: a config dataclass.
        prefix: prefix of its field names within the whole config, such as "norms.".

    Raises:
        ValueError: lists every wrong value.
    """
    given = {field: getattr(part, field.name) for field in dataclasses.fields(part)}
    problems = [
        f"{prefix}{field.name}={show(value)} {problem}"
        for field, value in given.items()
        if (problem := _find_problem(field.name, value, field.type))
    ]
    if problems:
        raise ValueError("; ".join(problems))


def check_counts(part: Any, *names: str, prefix: str = "") -> None:
    """Raises ValueError if a named field is less than 1. None passes."""
    for name in names:
        if (given := getattr(part, name)) is not None and given < 1:
            raise ValueError(f"{prefix}{name}={given} is less than 1")


def check_not_negative(part: Any, *names: str, prefix: str = "") -> None:
    """Raises ValueError if a named field is negative. None passes."""
    for name in names:
        if (given := getattr(part, name)) is not None and given < 0:
            raise ValueError(f"{prefix}{name}={given} is negative")


def check_positive(part: Any, *names: str, prefix: str = "") -> None:
    """Raises ValueError if a named field is not positive. None passes."""
    for name in names:
        if (given := getattr(part, name)) is not None and not given > 0:
            raise ValueError(f"{prefix}{name}={given} is not positive")


def check_seed(seed: int, name: str = "seed") -> None:
    """Raises UserError unless the seed, of this name, is valid for JAX, NumPy and grain."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"{name}={show(seed)} is not in [0, 2**32)")


def show(value: Any) -> str:
    """Returns the repr of a value, shortened if it is long or deeply nested."""
    return SHORT.repr(value)


def _find_problem(name: str, given: Any, hint: Any) -> str | None:
    """Says how a value violates the type or the limit of its field; None if it does not."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not any(_fits(given, option) for option in options):
        return f"is not {' or '.join(_describe(kind) for kind in options if kind is not NoneType)}"
    limit = LIMITS.get(name, MAX_INT)
    if int in options and given is not None and abs(given) > limit:
        return f"exceeds the limit of {limit:,}"
    return None


def _fits(given: Any, kind: Any) -> bool:
    """Whether a value is of a type that is no union."""
    if get_origin(kind) is Literal:
        return isinstance(given, str) and given in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(given, tuple) and all(_fits(item, get_args(kind)[0]) for item in given)
    if isinstance(given, bool):
        return kind is bool
    if kind is float:
        if isinstance(given, int):
            return abs(given) <= MAX_FLOAT
        return isinstance(given, Real) and math.isfinite(given)
    return isinstance(given, Integral if kind is int else kind)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return f"a tuple of {get_args(kind)[0].__name__}"
    names = {int: "a whole number", float: "a finite number", bool: "True or False"}
    return names.get(kind) or f"of type {kind.__name__}"
