"""A cached stream is the one that was written, or none."""

import numpy as np
import pytest

from jaxllm.train.data.stream_cache import read_stream, write_stream
from jaxllm.train.data.windows import TokenStream

STREAM = TokenStream(np.arange(300, dtype=np.uint16), np.array([0, 7, 90]))


def same(found: TokenStream) -> bool:
    tokens = np.array_equal(found.tokens, STREAM.tokens)
    return tokens and np.array_equal(found.starts, STREAM.starts)


def test_a_stream_comes_back_memory_mapped(tmp_path):
    file = tmp_path / "new" / "a.npy"
    assert read_stream(file) is None
    write_stream(file, STREAM)
    found = read_stream(file)
    assert isinstance(found.tokens, np.memmap)
    assert same(found)
    assert len(list(file.parent.iterdir())) == 3


@pytest.mark.parametrize("name", ["a.npy", "a.starts.npy", "a.digest"])
@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_a_damaged_stream_is_none_and_written_anew(name, change, tmp_path, caplog):
    write_stream(tmp_path / "a.npy", STREAM)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).unlink()
    if change != "remove":
        (tmp_path / name).write_bytes(data[:-2] if change == "cut" else data)
    assert read_stream(tmp_path / "a.npy") is None
    assert ("written anew" in caplog.text) == ((name, change) != ("a.npy", "remove"))
    write_stream(tmp_path / "a.npy", STREAM)
    assert same(read_stream(tmp_path / "a.npy"))
