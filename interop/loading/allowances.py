"""Config fields that the user has read otherwise than the file says: `allow`."""

import json
import reprlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxllm.errors import did_you_mean
from jaxllm.interop.families.common.fields import Json


def apply_allowances(config: Json, allow: Iterable[str]) -> tuple[Json, tuple[str, ...]]:
    """Changes fields of a config file as the user asks.

    Args:
        config: the fields of the file; it is not changed.
        allow: for each field `NAME`, to take it as absent, or `NAME=VALUE`, to take that value,
            which is JSON or else a text. A dotted name is a field of a nested object.

    Returns:
        The fields as they are to be read, and a line for each that differs or is not there.
    """
    lines = []
    for option in allow:
        name, _, text = option.partition("=")
        *parts, last = name.split(".")
        config = dict(config)
        within: Any = config
        for part in parts:
            inner = within.get(part)
            within[part] = dict(inner) if isinstance(inner, Mapping) else {}
            within = within[part]
        is_there, before = last in within, within.pop(last, None)
        after = _parse(text) if "=" in option else None
        if "=" in option:
            within[last] = after
        if not is_there and "=" not in option:
            lines.append(f"{name} is allowed, but absent{did_you_mean(last, within)}")
        elif before != after:
            taken = f"taken as {reprlib.repr(after)}" if "=" in option else "taken as absent"
            lines.append(f"{name}={reprlib.repr(before)} is {taken}, as allowed")
    return config, tuple(lines)


def suggest_allowances(refused: Mapping[str, Any]) -> list[str]:
    """Returns a line that says how to load a config in spite of refused fields, if there are any.

    Args:
        refused: a value of each that can be read; None stands for its absence.
    """
    if not refused:
        return []
    options = [
        name
        if usual is None
        else f"{name}={usual if isinstance(usual, str) else json.dumps(usual)}"
        for name, usual in refused.items()
    ]
    given = " ".join(f"--allow {shlex.quote(option)}" for option in options)
    return [
        f"{given} (in Python allow={options!r}) loads it as if {_described(refused)}: the numbers "
        "are then not those of the original model"
    ]


def allowance_notes(allow: Sequence[str]) -> list[str]:
    """Returns a note for a report about what was allowed, if anything was."""
    if not allow:
        return []
    return [
        f"Fields of the model's config were read otherwise than the file says: {', '.join(allow)}."
    ]


def _described(refused: Mapping[str, Any]) -> str:
    return " and ".join(
        f"{name} were absent" if usual is None else f"{name} were {usual!r}"
        for name, usual in refused.items()
    )


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
