"""Arrays in several files equal one array; files that are gone or have changed are named."""

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.train.data.streams.sharded import (
    Part,
    ShardedArray,
    ShardedStarts,
    content_digest,
    sample_file,
)
from jaxllm.train.data.streams.windows import Windows


def save(file, array, offset: int = 0) -> Part:
    file.write_bytes(b"." * offset + array.tobytes())
    size = file.stat().st_size
    return Part(file, array.dtype, offset, len(array), size, sample_file(file))


@pytest.fixture
def shards(tmp_path):
    """Documents over three shards, the second of them empty, and the same in memory."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 9, count) for count in (5, 0, 8)]
    tokens = [rng.integers(0, 999, sum(each)).astype(np.uint16) for each in lengths]
    starts = [np.cumsum([0, *each], dtype=np.int64)[:-1] for each in lengths]
    parts = [save(tmp_path / f"{i}.bin", part, 2 * i) for i, part in enumerate(tokens)]
    begins = [save(tmp_path / f"{i}.starts", part) for i, part in enumerate(starts)]
    files = ShardedArray(parts)
    whole = np.concatenate(tokens), np.cumsum([0, *np.concatenate(lengths)])[:-1]
    return files, ShardedStarts(begins, files), *whole


def test_any_places_are_those_of_one_array(shards):
    files, starts, tokens, begins = shards
    places = np.random.default_rng(1).integers(0, 10**6, 500)
    assert len(files) == len(tokens)
    within = places % len(tokens)
    np.testing.assert_array_equal(files[within], tokens[within])
    np.testing.assert_array_equal(files[within[None]], tokens[within[None]])
    np.testing.assert_array_equal(files[3:17], tokens[3:17])
    assert files[int(within[0])] == tokens[within[0]]
    np.testing.assert_array_equal(starts[:], begins)
    chosen = places % len(begins)
    np.testing.assert_array_equal(starts[chosen], begins[chosen])
    beyond = places % (len(tokens) + 9)
    np.testing.assert_array_equal(
        starts.searchsorted(beyond, side="right"), begins.searchsorted(beyond, side="right")
    )


def test_windows_over_shards_are_those_of_one_array(shards):
    files, starts, tokens, begins = shards
    ours, theirs = Windows(files, 7, starts), Windows(tokens, 7, begins)
    assert len(ours) == len(theirs)
    one, other = (each.take(range(len(theirs) + 1)) for each in (ours, theirs))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("change", ["gone", "cut", "other"])
@pytest.mark.parametrize("is_open", [False, True], ids=["before it is read", "while it is read"])
def test_a_file_that_has_vanished_or_changed_is_named(shards, change, is_open, tmp_path):
    files, _, tokens, _ = shards
    file, last = tmp_path / "2.bin", len(files) - 1
    content = file.read_bytes()
    if is_open:
        assert files[last] == tokens[last]
    if change == "gone":
        file.unlink()
    else:
        other = bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes(b"x" if change == "cut" else other)
    assert files[0] == tokens[0]
    with pytest.raises(
        UserError, match=r"2\.bin: the token file (is gone|has changed: [\d,]+ byte)"
    ):
        files[last]
    file.write_bytes(content)
    assert files[last] == tokens[last]


def test_the_identity_is_that_of_the_content(shards, tmp_path):
    files, *_ = shards
    assert content_digest(files) == files.identity
    changed = np.fromfile(tmp_path / "0.bin", np.uint16)
    changed[0] ^= 1
    parts = [save(tmp_path / "0.bin", changed), *files.parts[1:]]
    assert ShardedArray(parts).identity != files.identity
    moved = [parts[0]._replace(file=tmp_path / "elsewhere"), *parts[1:]]
    assert ShardedArray(moved).identity == ShardedArray(parts).identity


def test_a_large_file_is_sampled(tmp_path):
    content = bytearray(np.random.default_rng(0).bytes(3 << 20))
    digests = []
    for place in (None, 0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        (tmp_path / "a").write_bytes(changed)
        digests.append(sample_file(tmp_path / "a"))
    assert len({digests[0], digests[1], digests[3]}) == 3
    (tmp_path / "a").write_bytes(content[:-1])
    assert sample_file(tmp_path / "a") != digests[0]


def test_files_of_different_types_are_refused(tmp_path):
    parts = [save(tmp_path / name, np.zeros(3, name)) for name in ("uint16", "uint32")]
    with pytest.raises(UserError, match="have different types: uint16 and uint32"):
        ShardedArray(parts)
