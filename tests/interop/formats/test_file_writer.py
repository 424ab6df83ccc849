"""Files are laid out first and filled in any order, in bounded memory, or left out entirely."""

import hashlib
import threading
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.interop.formats import file_writer, safetensors_file
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array
from jaxllm.interop.formats.pytorch import torch_zip
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.rules.boxes import boxes, slices

FORMATS = {"safetensors": safetensors_file, "torch": torch_zip}


@pytest.fixture(params=FORMATS)
def module(request):
    return FORMATS[request.param]


def write(module, path: Path, tensors: dict[str, TensorSource]) -> None:
    file_writer.write_files(path.parent, [module.lay_out(path.name, tensors)], tensors)


@given(st.lists(st.integers(1, 7), max_size=4), st.integers(1, 40))
def test_boxes_cover_an_array_in_order(shape, max_elements):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    parts = [array[slices(box)] for box in boxes(shape, max_elements)]
    assert all(part.size <= max_elements for part in parts)
    assert np.concatenate([part.reshape(-1) for part in parts]).tolist() == list(range(array.size))


def test_boxes_are_as_large_as_allowed():
    assert len(list(boxes((6, 4, 5), 40))) == 3
    assert len(list(boxes((6, 4, 5), 39))) == 6
    assert list(boxes((3, 0), 9)) == []
    assert list(boxes((), 9)) == [()]


def test_memory_is_bounded_by_chunks_per_thread(module, tmp_path):
    lock, held, most = threading.Lock(), [0], [0]

    class Counted(np.ndarray):
        def __del__(self):
            if self.base is None:
                held[0] -= 1

    def read(box) -> np.ndarray:
        shape = [high - low for low, high in box]
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        part = np.ndarray.__new__(Counted, shape, ml_dtypes.bfloat16)
        part[...] = 1
        assert part.nbytes <= 1000
        return part

    dtype = np.dtype(ml_dtypes.bfloat16)
    tensors = {name: TensorSource(dtype, (100, 90), read) for name in "abcdefgh"}
    file = module.lay_out("x", tensors)
    file_writer.write_files(tmp_path, [file], tensors, chunk_bytes=1000, workers=3)
    assert 0 < most[0] <= 2 * 3  # each thread holds a chunk being written and the next being read
    stored = module.read_header(tmp_path / "x")
    assert all((stored[name].read() == 1).all() for name in tensors)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), np.float64), "declared as float32[2, 3], but read as float64[2, 3]"),
        (np.zeros((3, 2), np.float32), "declared as float32[2, 3], but read as float32[3, 2]"),
        (np.zeros((2, 3), ">f4"), "declared as float32[2, 3], but read as >f4[2, 3]"),
    ],
)
def test_source_that_differs_from_its_declaration_leaves_no_file(module, tmp_path, array, message):
    tensors = {
        "good": from_array(np.zeros(2)),
        "bad": TensorSource(np.dtype(np.float32), (2, 3), lambda box: array),
    }
    with pytest.raises(CheckpointError) as error:
        write(module, tmp_path / "x", tensors)
    assert error.value.problems == (f"{tmp_path}/x: tensor 'bad': {message}",)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_an_existing_file(module, tmp_path):
    write(module, tmp_path / "x", {"w": from_array(np.ones(3))})
    failing = TensorSource(np.dtype(np.float32), (2,), lambda box: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(module, tmp_path / "x", {"w": failing})
    assert module.read_header(tmp_path / "x")["w"].read().tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_failure_in_one_file_leaves_none_behind(tmp_path):
    tensors = {name: from_array(np.ones(4)) for name in "ab"}
    tensors["c"] = TensorSource(np.dtype(np.float64), (4,), lambda box: 1 / 0)
    files, index = safetensors_file.lay_out_checkpoint(tensors, 32)
    assert len(files) == 3
    assert index
    with pytest.raises(ZeroDivisionError):
        file_writer.write_files(tmp_path, files, tensors)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_reported_before_anything_is_written(tmp_path):
    large = TensorSource(np.dtype(np.int8), (1 << 60,), lambda box: 1 / 0)
    with pytest.raises(CheckpointError, match=r"needs 1\.15e\+06 TB, but only .* free"):
        write(safetensors_file, tmp_path / "x", {"w": large})
    assert list(tmp_path.iterdir()) == []


def test_tensors_can_be_filled_in_any_order_and_again(module, tmp_path):
    """Checksums cover what was written, also when a tensor is written a second time."""
    arrays = {name: np.random.default_rng(i).random((50, i + 1)) for i, name in enumerate("abc")}
    tensors = {name: from_array(array) for name, array in arrays.items()}
    write(module, tmp_path / "whole", tensors)
    file = module.lay_out("x", tensors)
    file_writer.create(tmp_path, file)
    bad = from_array(np.zeros((50, 2)))
    file_writer.fill(tmp_path, file, "b", bad, chunk_bytes=100)
    digests = {}
    for name in "cba":
        digests[name] = file_writer.fill(
            tmp_path, file, name, tensors[name], hashed=True, chunk_bytes=136
        )
        data = arrays[name].tobytes()
        assert digests[name].sha256 == hashlib.sha256(data).hexdigest()
        if file.checksums:
            assert digests[name].crc32 == zlib.crc32(data)
        written = file_writer.stored_sha256(
            file_writer.partial_path(tmp_path, file), file.places[name], len(data)
        )
        assert written == digests[name].sha256
    assert not (tmp_path / "x").exists()
    file_writer.finish(tmp_path, file, digests)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()
