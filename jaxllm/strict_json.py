"""Data for strict JSON, which has no NaN and no infinity."""

import math
from typing import Any


def replace_nonfinite(data: Any) -> Any:
    """The same dicts, lists and values, where numbers that are not finite are null."""
    if isinstance(data, dict):
        return {key: replace_nonfinite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [replace_nonfinite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
