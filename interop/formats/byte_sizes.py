"""Byte sizes as text: parses "5GB" or "256MiB", formats "1.52 GB"."""

import re
from decimal import Decimal

from jaxllm.errors import UserError

_UNITS = {"": 1, **{f"{k}B": 1000**i for i, k in enumerate(["", "K", "M", "G", "T"])}}
_UNITS |= {f"{k}iB": 1024**i for i, k in enumerate(["K", "M", "G", "T"], 1)}


def parse_size(size: int | str) -> int:
    """Returns a number of bytes from an int or a text.

    Args:
        size: a number of bytes, or a number with a unit: "5GB" counts powers of 1000, "256MiB"
            powers of 1024.

    Raises:
        UserError: `size` has another form or is less than one byte.
    """
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(size).lower())
    if (
        isinstance(size, bool)
        or match is None
        or match[2] not in units
        or ("." in match[1] and units[match[2]] == 1)
    ):
        known = ", ".join(filter(None, _UNITS))
        raise UserError(
            f"{size!r} is not a size: give a number of bytes, or a number with a unit ({known})"
        )
    parsed = int(Decimal(match[1]) * units[match[2]])
    if parsed < 1:
        raise UserError(f"{size!r} is not a size of at least one byte")
    return parsed


def format_size(size: int) -> str:
    """Formats a number of bytes with a unit, in powers of 1000, such as `1.52 GB`."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if size >= 1000**power:
            return f"{size / 1000**power:.3g} {unit}"
    return f"{size} B"
