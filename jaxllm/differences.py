"""Differences between plain data, by the dotted names of their fields."""

from collections.abc import Iterator
from typing import Any


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted name, old value, new value) where plain data differ; None if missing."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name, old, new
