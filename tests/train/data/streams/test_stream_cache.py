"""A cached stream is the one that was written, or none."""

import numpy as np
import pytest

from jaxllm.train.data.streams.stream_cache import read_stream
from jaxllm.train.data.streams.stream_writer import Encoded, StreamWriter
from jaxllm.train.data.streams.windows import TokenStream

DOCUMENTS = [
    Encoded([*range(7)]),
    Encoded([*range(83)], np.arange(83) % 3 > 0),
    Encoded([*range(100, 310)], np.arange(210) % 2 > 0),
]


def write(file) -> TokenStream:
    writer = StreamWriter(np.dtype(np.uint16), file, with_targets=True)
    writer.add(DOCUMENTS[:2])
    writer.add(DOCUMENTS[2:])
    return writer.close()


def same(found: TokenStream) -> bool:
    expected = write(None)
    names = ("tokens", "starts", "is_target")
    return all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in names)


def test_a_stream_comes_back_memory_mapped(tmp_path):
    file = tmp_path / "new" / "a.npy"
    assert read_stream(file) is None
    assert same(write(file))
    found = read_stream(file)
    assert isinstance(found.tokens, np.memmap)
    assert same(found)
    assert len(list(file.parent.iterdir())) == 4


@pytest.mark.parametrize("name", ["a.npy", "a.starts.npy", "a.targets.npy", "a.digest"])
@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_a_damaged_stream_is_none_and_written_anew(name, change, tmp_path, caplog):
    write(tmp_path / "a.npy")
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).unlink()
    if change != "remove":
        (tmp_path / name).write_bytes(data[:-2] if change == "cut" else data)
    assert read_stream(tmp_path / "a.npy") is None
    assert ("written anew" in caplog.text) == ((name, change) != ("a.npy", "remove"))
    write(tmp_path / "a.npy")
    assert same(read_stream(tmp_path / "a.npy"))
