"""Validation helpers of the config classes. Messages give the full dotted name of a field."""

import dataclasses
from typing import Any, Literal, get_args, get_origin


def check_choices(part: Any, prefix: str = "") -> None:
    """Raises ValueError if a field of a Literal type has a value outside that type.

    Args:
        part: a config dataclass.
        prefix: prefix of its field names within the whole config, such as "norms.".
    """
    for field in dataclasses.fields(part):
        given = getattr(part, field.name)
        if get_origin(field.type) is Literal and given not in get_args(field.type):
            allowed = ", ".join(get_args(field.type))
            raise ValueError(f"{prefix}{field.name}={given!r} is not one of {allowed}")


def check_counts(part: Any, *names: str, prefix: str = "") -> None:
    """Raises ValueError if a named field is less than 1. None passes."""
    for name in names:
        if (given := getattr(part, name)) is not None and given < 1:
            raise ValueError(f"{prefix}{name}={given} is less than 1")


def check_positive(part: Any, *names: str, prefix: str = "") -> None:
    """Raises ValueError if a named field is not positive. None passes."""
    for name in names:
        if (given := getattr(part, name)) is not None and given <= 0:
            raise ValueError(f"{prefix}{name}={given} is not positive")
