"""Conversion of data to strict JSON, which has no NaN and no infinity."""

import math
from typing import Any


def replace_nonfinite(data: Any) -> Any:
    """Returns a copy of nested dicts and lists with None (JSON null) for non-finite floats."""
    if isinstance(data, dict):
        return {key: replace_nonfinite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [replace_nonfinite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
