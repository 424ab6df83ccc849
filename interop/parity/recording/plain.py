"""Turns results into plain data that packs can store."""

import dataclasses
from typing import Any

from jaxllm.interop.parity.alignment.inputs import Inputs

from .sample import Sample


def plain(found: Any) -> dict[str, Any]:
    """Returns a dataclass or named tuple as a dict of strings, numbers, lists, dicts and arrays."""
    fields = found._asdict() if hasattr(found, "_asdict") else vars(found)
    return {name: _plain_value(value) for name, value in fields.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Inputs):
        return value.arrays
    if isinstance(value, frozenset):
        return sorted(value)
    return dataclasses.asdict(value) if isinstance(value, Sample) else value
