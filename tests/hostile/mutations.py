"""Mutations of files: bytes changed at random, and values replaced by hostile ones."""

import json
import random
from collections.abc import Callable
from typing import Any

HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**9, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5),
    *("", "x", "\x1b[31m", "[red]", "\ud800", "a" * 5000, "../../etc/passwd"),
    *([], {}, [[]], [0] * 1000, {"a": {"b": {}}}),
)
HOSTILE_BYTES = (
    *(b"\0", b"\xff" * 8, b"(" * 300, b")" + b"2\x86" * 60, b")" + b"\x85" * 3000, b"[" * 3000),
    *(
        b"9" * 4000,
        b"*a",
        b"&a [*a]",
        b"\x1b[2J",
        b".nan",
        b"}" * 50,
        b"PK\3\4",
        b"\x8b\xff\xff\xff\x7f",
    ),
)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Returns a damaged version of a file's content; JSON often keeps its form."""
    if data[:1] == b"{" and draw.random() < 0.5:
        return _mutate_json(data, draw)
    for _ in range(draw.choice((1, 1, 2, 8))):
        data = draw.choice(_DAMAGES)(data, draw)
    return data


def _mutate_json(data: bytes, draw: random.Random) -> bytes:
    """Replaces one value of the first JSON object, at any depth, or leaves it out."""
    first, newline, rest = data.partition(b"\n") if b"}\n{" in data else (data, b"", b"")
    value: Any = json.loads(first)
    inner = value
    while True:
        key = draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if isinstance(inner[key], dict | list) and inner[key] and draw.random() < 0.7:
            inner = inner[key]
            continue
        if draw.random() < 0.2:
            del inner[key]
        else:
            inner[key] = draw.choice(HOSTILE_VALUES)
        return json.dumps(value).encode() + newline + rest


def _place(data: bytes, draw: random.Random) -> int:
    """Returns a position: anywhere, or near the beginning, where headers are."""
    return draw.randrange(max(1, len(data) if draw.random() < 0.5 else min(len(data), 600)))


def _flip(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :] if data else data


def _overwrite(data: bytes, draw: random.Random) -> bytes:
    at, new = _place(data, draw), draw.choice(HOSTILE_BYTES)
    return data[:at] + new + data[at + len(new) :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + draw.choice(HOSTILE_BYTES) + data[at:]


def _remove(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + data[at + draw.choice((1, 4, 60)) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + data[at : at + 40] * draw.choice((2, 50)) + data[at + 40 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: _place(data, draw)]


_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _overwrite, _insert, _remove, _repeat, _cut),
)
