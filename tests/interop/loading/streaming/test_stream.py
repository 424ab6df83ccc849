"""Tensors are streamed to every shard bit for bit in small chunks, and no byte is read twice."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.loading.streaming import stream
from jaxllm.interop.loading.streaming.device_buffers import (
    DeviceShardBuffers,
    HostShardBuffers,
    make_shard_buffers,
)
from jaxllm.interop.loading.streaming.device_shards import list_shards
from jaxllm.interop.loading.streaming.stream import PlannedRead
from jaxllm.interop.rules.boxes import box_shape
from jaxllm.interop.rules.rule import Rule

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SIZES = {"L": 3, "N": 4, "K": 2, "T": 2, "n": 2, "r": 2, "h": 3, "H": 6, "D": 8, "E": 4, "F": 10}
RULES = [
    ("q.{L} : (N r h) D", "q : L D N (r h)"),
    ("q.{L} : (N r h) D", "q : L D N (h r)"),
    ("q.{T}.{L} : (n h r) D", "q : L D (T n) (r h)"),
    ("o.{T}.{L} : D (n H)", "o.{L} : (T n) H D"),
    ("e : E D F", "e.{E} : F D"),
    ("e.{E} : F D", "e : E D F"),
    ("e : (E D) (T n)", "e : E (T n) D"),
    ("n : D", "n : D"),
]
SPECS = [None, "a", "b", ("a", "b")]


def mesh() -> Mesh:
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def random_bits(shape: Sequence[int], seed: int) -> np.ndarray:
    """Returns random bits, which include NaNs."""
    return np.random.default_rng(seed).integers(0, 2**16, shape, np.uint16).view(BFLOAT16)


def write_stored(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, StoredTensor]:
    """Writes the arrays one after the other into a file, after 8 other bytes."""
    stored, data = {}, b"12345678"
    for name, array in arrays.items():
        stored[name] = StoredTensor(name, array.dtype, array.shape, path, len(data))
        data += array.tobytes()
    path.write_bytes(data)
    return stored


def sharding_of(shape: Sequence[int], spec: Sequence[object]) -> NamedSharding:
    """Returns the sharding of a spec without axes that repeat or do not divide the shape."""
    used, kept = set(), []
    for size, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else axes or ()
        ways = np.prod([{"a": 4, "b": 2}[name] for name in names], dtype=int)
        fits = size % ways == 0 and not used & set(names)
        used |= set(names) if fits else set()
        kept.append(axes if fits else None)
    return NamedSharding(mesh(), PartitionSpec(*kept))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_rule_fills_any_sharding_through_any_chunk_size(tmp_path_factory, data):
    rule = Rule(*data.draw(st.sampled_from(RULES)))
    kind = data.draw(st.sampled_from([HostShardBuffers, DeviceShardBuffers]))
    budget = data.draw(st.sampled_from([1, 100, 16 * 37, 16 * 1000, 1 << 20]))
    spec = data.draw(st.lists(st.sampled_from(SPECS), min_size=4, max_size=4))
    dtype = data.draw(st.sampled_from([BFLOAT16, np.dtype(np.float32)]))

    shape = rule.stored.shape(SIZES)
    names = list(rule.stored.names(SIZES))
    arrays = {name: random_bits(shape, seed) for seed, (name, _) in enumerate(names)}
    stored = write_stored(tmp_path_factory.mktemp("stream") / "file", arrays)
    importing, exporting = rule.importing(SIZES), rule.exporting(SIZES)
    whole = rule.model.shape(SIZES)
    sharding = sharding_of(whole, spec)
    model_names = [name for name, _ in rule.model.names(SIZES)]
    made = {n: kind(list_shards(rule.model, SIZES, sharding), dtype) for n in model_names}

    stream.stream([PlannedRead(stored[n], exporting, at) for n, at in names], made, budget)

    for name, index in rule.model.names(SIZES):
        box = [(0, size) for size in whole]
        expected = importing.read(index, box, lambda n, b: [(b, arrays[n][slices(b)])], BFLOAT16)
        parts = made[name].arrays()
        array = jax.make_array_from_single_device_arrays(whole, sharding, parts)
        assert array.dtype == dtype
        if dtype == BFLOAT16:
            assert np.asarray(array).tobytes() == expected.tobytes()
        else:
            np.testing.assert_array_equal(array, expected.astype(dtype))  # NaN payloads may differ


def slices(box: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)


class ReadLog:
    """Records the byte ranges that `os.preadv` reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.read: list[tuple[int, int]] = []
        preadv = os.preadv

        def logged(handle: int, buffers: Sequence[memoryview], offset: int) -> int:
            count = preadv(handle, buffers, offset)
            self.read.append((offset, offset + count))
            return count

        monkeypatch.setattr(os, "preadv", logged)

    @property
    def bytes(self) -> int:
        return sum(stop - start for start, stop in self.read)


@pytest.mark.parametrize("spec", [(), ("a",), (None, "a"), ("b", "a"), (None, ("a", "b"))])
def test_replicated_data_is_read_once(tmp_path, monkeypatch, spec):
    rule, sizes = Rule("w.{L} : F D", "w : L D F"), {"L": 3, "F": 16, "D": 8}
    arrays = {f"w.{i}": random_bits((16, 8), i) for i in range(3)}
    stored = write_stored(tmp_path / "file", arrays)
    sharding = sharding_of((3, 8, 16), (None, *spec))
    into = {"w": make_shard_buffers(rule.model, sizes, BFLOAT16, sharding)}
    log = ReadLog(monkeypatch)
    reads = [
        PlannedRead(stored[n], rule.exporting(sizes), at) for n, at in rule.stored.names(sizes)
    ]
    stream.stream(reversed(reads), into, 16 * 64)
    assert log.bytes == sum(array.nbytes for array in arrays.values())
    assert len(log.read) == 3 * 16 * 8 * 2 // 64


def test_files_are_read_in_order(tmp_path, monkeypatch):
    """Each thread only reads forward; with a single thread all reads are in order."""
    rule, sizes = Rule("w.{L} : F D", "w : L D F"), {"L": 5, "F": 16, "D": 8}
    arrays = {f"w.{i}": random_bits((16, 8), i) for i in (3, 0, 4, 1, 2)}
    stored = write_stored(tmp_path / "file", arrays)
    into = {"w": make_shard_buffers(rule.model, sizes, BFLOAT16, sharding_of((5, 8, 16), ()))}
    log = ReadLog(monkeypatch)
    reads = [
        PlannedRead(stored[n], rule.exporting(sizes), at) for n, at in rule.stored.names(sizes)
    ]
    stream.stream(reads, into, 64, threads=1)
    assert log.read == sorted(log.read)
    assert log.read[0][0] == 8


def test_some_of_the_shards_read_only_their_part_of_the_file(tmp_path, monkeypatch):
    """As in a multi-process run, gaps between the needed ranges are not read."""
    rule, sizes = Rule("w : F D", "w : D F"), {"F": 64, "D": 16384}
    array = random_bits((64, 16384), 0)
    stored = write_stored(tmp_path / "file", {"w": array})
    shards = list_shards(rule.model, sizes, sharding_of((16384, 64), ("a", "b")))
    mine = [shard for shard in shards if shard.box[0][0] == 4096 and shard.box[1][0] == 32]
    into = HostShardBuffers(mine, BFLOAT16)
    log = ReadLog(monkeypatch)
    read = PlannedRead(stored["w"], rule.exporting(sizes), {})
    stream.stream([read], {"w": into}, 1 << 20)
    assert log.bytes == array.nbytes // 8
    (held,) = into.arrays()
    assert np.asarray(held).tobytes() == array.T[4096:8192, 32:].tobytes()


def test_gaps_smaller_than_a_page_are_read_too(tmp_path, monkeypatch):
    rule, sizes = Rule("w : F D", "w : D F"), {"F": 64, "D": 64}
    stored = write_stored(tmp_path / "file", {"w": random_bits((64, 64), 0)})
    into = HostShardBuffers(
        list_shards(rule.model, sizes, sharding_of((64, 64), ("a",)))[:1], BFLOAT16
    )
    log = ReadLog(monkeypatch)
    stream.stream([PlannedRead(stored["w"], rule.exporting(sizes), {})], {"w": into}, 1 << 20)
    assert len(log.read) == 1


@pytest.mark.parametrize("kind", [HostShardBuffers, DeviceShardBuffers])
def test_truncated_file_is_named(tmp_path, kind):
    rule, sizes = Rule("w.{L} : F D", "w : L D F"), {"L": 3, "F": 16, "D": 8}
    arrays = {f"w.{i}": random_bits((16, 8), i) for i in range(3)}
    stored = write_stored(tmp_path / "file", arrays)
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(600)
    sharding = sharding_of((3, 8, 16), (None, "a"))
    into = {"w": kind(list_shards(rule.model, sizes, sharding), BFLOAT16)}
    reads = [
        PlannedRead(stored[n], rule.exporting(sizes), at) for n, at in rule.stored.names(sizes)
    ]
    with pytest.raises(CheckpointError, match=r"file: tensor 'w\.2': the file ends \d+ bytes"):
        stream.stream(reads, into, 1 << 20)


def test_failure_stops_the_other_threads(tmp_path):
    rule, sizes = Rule("w.{L} : F D", "w : L D F"), {"L": 200, "F": 16, "D": 8}
    arrays = {f"w.{i}": random_bits((16, 8), i) for i in range(200)}
    stored = write_stored(tmp_path / "file", arrays)
    shards = list_shards(rule.model, sizes, sharding_of((200, 8, 16), ()))
    reads = [
        PlannedRead(stored[n], rule.exporting(sizes), at) for n, at in rule.stored.names(sizes)
    ]
    done = []

    class Failing(HostShardBuffers):
        def write(self, parts):
            done.append(1)
            if len(done) == 5:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream.stream(reads, {"w": Failing(shards, BFLOAT16)}, 16)
    assert len(done) < 200


def test_tensors_that_processes_read_together_are_read_in_order_and_whole():
    """Every process must read the same boxes, also where its own devices need none of them."""
    read = []

    class Collective(StoredTensor):
        is_collective = True

        def own_box(self, box):
            read.append((self.name, box, threading.get_ident()))
            return np.zeros(box_shape(box), self.dtype)

    rule = Rule("q.{L} : D", "q : L D").exporting({"L": 3, "D": 8})
    reads = [
        PlannedRead(Collective(name, BFLOAT16, (8,), Path("x"), 0), rule, index)
        for name, index in rule.target.names(rule.sizes)
    ]
    stream.stream(reads, {}, 16 * 4 * stream.COPIES)
    assert [(name, box) for name, box, _ in read] == [
        (f"q.{layer}", ((0, 8),)) for layer in range(3)
    ]
    assert len({thread for *_, thread in read}) == 1
