"""JSON objects from files: no key twice, and no deeper than Python can show and copy."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from jaxllm.errors import CheckpointError

MAX_DEPTH = 100
_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def parse_json(text: bytes) -> dict[str, Any]:
    """Parses a JSON object. Raises CheckpointError if it is not one, or if a key occurs twice.

    Python's `json` alone would silently keep only the last of two equal keys.
    """
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        parsed = json.loads(text.decode(), object_pairs_hook=unique)
    except RecursionError:
        raise CheckpointError(_TOO_DEEP) from None
    except ValueError as error:
        raise CheckpointError(f"not valid JSON: {error}") from None
    if repeated:
        raise CheckpointError([f"key {key!r} occurs more than once" for key in repeated])
    if not isinstance(parsed, dict):
        raise CheckpointError("the JSON is not an object")
    check_depth(parsed)
    return parsed


def check_depth(value: object) -> None:
    """Raises CheckpointError if lists and dictionaries are nested too deeply to show or copy."""
    level: list[Iterable[Any]] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        inside = [one for parent in level for one in parent if isinstance(one, dict | list)]
        level = [one.values() if isinstance(one, dict) else one for one in inside]
        if not level:
            return
    raise CheckpointError(_TOO_DEEP)
