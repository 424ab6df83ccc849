"""JSON objects from files are strict: no key twice, bounded depth."""

import pytest

from jaxllm.errors import CheckpointError
from jaxllm.untrusted.json_objects import MAX_DEPTH, check_depth, parse_json


def nested(depth: int) -> bytes:
    """Returns an object whose only value is nested so that there are `depth` levels."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_an_object_is_parsed():
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1]", "the JSON is not an object"),
        (b'{"a": 1, "a": 2}', "key 'a' occurs more than once"),
        (b'{"a": }', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(CheckpointError, match=message):
        parse_json(text)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_deep_nesting_is_refused(depth):
    """Python parses 900 levels, but fails when it shows or copies them."""
    assert parse_json(nested(MAX_DEPTH))
    with pytest.raises(CheckpointError, match="nested more than 100 levels deep"):
        parse_json(nested(depth))


def test_depth_is_counted_through_lists_and_dictionaries():
    value: object = 0
    for level in range(MAX_DEPTH):
        value = [value] if level % 2 else {"a": value}
    check_depth(value)
    with pytest.raises(CheckpointError, match="nested"):
        check_depth([value])
