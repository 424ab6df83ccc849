"""Byte sizes are parsed from text and formatted with units."""

import pytest

from jaxllm.interop.formats.byte_sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("256MiB", 2**28), ("1.5 kb", 1500), (7, 7), ("12", 12), ("0.1GB", 10**8)],
)
def test_sizes_are_parsed(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 XB", "-1", 0, "0.1", True, "5GBs", "1e9"])
def test_invalid_size_is_rejected(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_520_000_000, "1.52 GB"), (3 * 10**12, "3 TB")],
)
def test_sizes_are_formatted(size, text):
    assert format_size(size) == text
