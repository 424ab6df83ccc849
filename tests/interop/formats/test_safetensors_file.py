"""safetensors files: compatible with the official package, read lazily, and strictly checked."""

import json
import math
import resource
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array
from jaxllm.interop.formats.stored_tensor import DTYPES, CheckpointError, StoredTensor

# The official package has no PyTorch dtype for F8_E8M0.
SHARED_DTYPES = [name for name in DTYPES if name != "F8_E8M0"]
SHAPES = [(3, 5), (1,), (), (0,), (2, 0, 3)]


def random_array(dtype: np.dtype, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Returns random bits, which include NaNs; booleans are only 0 or 1."""
    count = math.prod(shape) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    return (data % 2 if dtype == np.bool_ else data).view(dtype).reshape(shape)


def sources(arrays: dict) -> dict[str, TensorSource]:
    return {name: from_array(array) for name, array in arrays.items()}


def write(path: Path, tensors: dict[str, TensorSource], **options: object) -> None:
    """Writes one file."""
    write_files(path.parent, [safetensors_file.lay_out(path.name, tensors, **options)], tensors)


def write_checkpoint(
    directory: Path, tensors: dict[str, TensorSource], max_shard: int = 5_000_000_000
) -> None:
    """Writes a folder, in shards if it is larger than `max_shard`."""
    directory.mkdir(exist_ok=True)
    files, index = safetensors_file.lay_out_checkpoint(tensors, max_shard)
    write_files(directory, files, tensors)
    for name, text in index.items():
        (directory / name).write_bytes(text)


def assert_same(stored: dict[str, StoredTensor], arrays: dict) -> None:
    assert list(stored) == list(arrays)
    for name, array in arrays.items():
        opened = stored[name].read()
        assert (opened.dtype, opened.shape) == (array.dtype, array.shape)
        assert opened.tobytes() == array.tobytes()


def problems(error: pytest.ExceptionInfo) -> list[str]:
    """Returns the lines of an error without the temporary folder."""
    return [line.rpartition("/")[2] for line in error.value.problems]


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def read_problems(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as error:
        safetensors_file.read_header(path)
    return problems(error)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SHARED_DTYPES)
def test_official_package_reads_written_files(tmp_path, name, shape):
    array = random_array(DTYPES[name], shape)
    write(tmp_path / "x", {"w": from_array(array)})
    tensor = safetensors.torch.load_file(tmp_path / "x")["w"]
    assert tuple(tensor.shape) == shape
    assert tensor.dtype == safetensors.torch._TYPES[name]
    assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SHARED_DTYPES)
def test_files_of_the_official_package_are_read(tmp_path, name, shape):
    array = random_array(DTYPES[name], shape)
    tensor = torch.zeros(shape, dtype=safetensors.torch._TYPES[name])
    if array.size:
        data = torch.from_numpy(array.reshape(-1).view(np.uint8))
        tensor.reshape(-1).view(torch.uint8).copy_(data)
    safetensors.torch.save_file({"w": tensor}, tmp_path / "x")
    assert_same(safetensors_file.read_header(tmp_path / "x"), {"w": array})


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_round_trips_bit_for_bit(tmp_path, name):
    arrays = {str(shape): random_array(DTYPES[name], shape) for shape in SHAPES}
    write(tmp_path / "x", sources(arrays))
    assert_same(safetensors_file.read_header(tmp_path / "x"), arrays)


def test_names_keep_their_order_and_data_is_aligned(tmp_path):
    arrays = {
        "odd": random_array(np.dtype(np.uint8), (3,)),
        "wide": random_array(np.dtype(np.float64), (2,)),
        "half": random_array(np.dtype(ml_dtypes.bfloat16), (5,)),
        "été \"'\\": random_array(np.dtype(np.float32), (1,)),
    }
    write(tmp_path / "x", sources(arrays))
    stored = safetensors_file.read_header(tmp_path / "x")
    assert_same(stored, arrays)
    assert all(tensor.read().flags.aligned for tensor in stored.values())
    assert safetensors.numpy.load_file(tmp_path / "x").keys() == arrays.keys()


def test_strided_arrays_are_written_in_c_order(tmp_path):
    array = np.arange(24.0).reshape(4, 6)
    arrays = {"transposed": array.T, "strided": array[::2, ::-3]}
    write(tmp_path / "x", sources(arrays))
    assert_same(safetensors_file.read_header(tmp_path / "x"), arrays)


def test_metadata_names_pytorch_unless_given(tmp_path):
    write(tmp_path / "x", {})
    write(tmp_path / "y", {}, metadata={"a": "b"})
    for name, metadata in {"x": {"format": "pt"}, "y": {"a": "b"}}.items():
        with safetensors.safe_open(tmp_path / name, "numpy") as file:
            assert file.metadata() == metadata
    assert safetensors_file.read_header(tmp_path / "x") == {}


def test_tensors_that_were_read_hold_no_file_handles(tmp_path):
    arrays = {str(i): np.full(3, i, np.float32) for i in range(1000)}
    write(tmp_path / "x", sources(arrays))
    stored = safetensors_file.read_header(tmp_path / "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    try:
        opened = {name: tensor.read() for name, tensor in stored.items()}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(np.array_equal(opened[name], arrays[name]) for name in arrays)


def test_rewritten_file_is_read_again(tmp_path):
    for value in (1.0, 2.0):
        write(tmp_path / "x", {"w": from_array(np.full(3, value))})
        opened = safetensors_file.read_header(tmp_path / "x")["w"].read()
        assert opened.tolist() == [value] * 3


def test_unsupported_dtype_or_name_is_rejected_before_writing(tmp_path):
    tensors = {"a": np.zeros(1, np.complex128), "b": np.zeros(1, ">f4"), "__metadata__": np.ones(1)}
    with pytest.raises(CheckpointError) as error:
        write(tmp_path / "x", sources(tensors))
    assert problems(error) == [
        "x: tensor 'a': safetensors files have no dtype complex128",
        "x: tensor 'b': safetensors files have no dtype >f4",
        "x: a tensor cannot be named '__metadata__'",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("header", "data", "expected"),
    [
        (b'{"a"', b"", "not valid JSON: Expecting ':' delimiter: line 1 column 5 (char 4)"),
        (b"\xff\xfe", b"", "not valid JSON: 'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, b"", "nested more than 100 levels deep"),
        ([], b"", "the JSON is not an object"),
        (b'{"a": 1, "a": 2, "b": 1}', b"", "key 'a' occurs more than once"),
        (b'{"a": {"dtype": 1, "dtype": 2}}', b"", "key 'dtype' occurs more than once"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ does not map strings to strings"),
        ({"a": 1}, b"", "tensor 'a': the entry is not an object of dtype, shape and data_offsets"),
        ({"a": entry("F31", [1], 0, 4)}, b"4444", "tensor 'a': unknown dtype 'F31'; known: BOOL, "),
        ({"a": entry([], [1], 0, 4)}, b"4444", "tensor 'a': unknown dtype []; known: BOOL, "),
        (
            {"a": entry("F32", [-1], 0, 4)},
            b"4444",
            "tensor 'a': shape [-1] is not a list of sizes",
        ),
        (
            {"a": entry("F32", [True], 0, 4)},
            b"4444",
            "tensor 'a': shape [True] is not a list of sizes",
        ),
        (
            {"a": entry("F32", [0, 2**62, 2**62], 0, 0)},
            b"",
            "tensor 'a': shape [0, 4611686018427387904, 4611686018427387904] is larger than any",
        ),
        (
            {"a": entry("F32", [1] * 65, 0, 4)},
            b"4444",
            "tensor 'a': 65 dimensions, at most 64 are allowed",
        ),
        (
            {"a": entry("F32", [1], 4, 0)},
            b"4444",
            "tensor 'a': data_offsets [4, 0] are not [begin, end]",
        ),
        (
            {"a": entry("F32", [1], -4, 0)},
            b"4444",
            "tensor 'a': data_offsets [-4, 0] are not [begin, end]",
        ),
        (
            {"a": entry("F32", [2], 0, 4)},
            b"4444",
            "tensor 'a': F32 of shape [2] takes 8 bytes, but data_offsets give it 4",
        ),
        (
            {"a": entry("F32", [2], 0, 8)},
            b"4444",
            "cut short: 73 of 77 bytes are there; download it again",
        ),
        ({}, b"4444", "no tensor covers bytes 0 to 4 of the data"),
        (
            {"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 3, 4)},
            b"4444",
            "no tensor covers bytes 1 to 3 of the data",
        ),
        (
            {"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 2, 4)},
            b"4444",
            "tensor 'b': begins at 2, inside the tensor before it",
        ),
    ],
)
def test_damaged_header_is_named(tmp_path, header, data, expected):
    (problem,) = read_problems(write_raw(tmp_path / "x", header, data))
    assert problem.startswith("x: " + expected)


def test_one_error_lists_every_problem(tmp_path):
    header = {
        "a": entry("F31", [1], 0, 4),
        "b": entry("F32", [2], 4, 8),
        "c": entry("F32", [1], 12, 16),
        "d": entry("F32", [1], 14, 18),
    }
    found = read_problems(write_raw(tmp_path / "x", header, bytes(16)))
    assert [problem.partition(";")[0] for problem in found] == [
        "x: tensor 'a': unknown dtype 'F31'",
        "x: tensor 'b': F32 of shape [2] takes 8 bytes, but data_offsets give it 4",
        "x: no tensor covers bytes 8 to 12 of the data",
        "x: tensor 'd': begins at 14, inside the tensor before it",
        "x: tensor 'd': ends at 18, but there are 16 bytes of data",
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "an empty file: download it again"),
        (b"\2\0\0\0\0\0\0", "7 bytes, too short for a safetensors file"),
        (b"\3\0\0\0\0\0\0\0{}", "cut short: only its first 10 bytes are there; download it again"),
        (b"\xff" * 8, "header of 18446744073709551615 bytes, but 0 bytes follow and at most"),
    ],
)
def test_impossible_header_length_is_named(tmp_path, data, expected):
    (tmp_path / "x").write_bytes(data)
    (problem,) = read_problems(tmp_path / "x")
    assert problem.startswith("x: " + expected)


def test_header_beyond_the_size_limit_is_not_read(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(100_000_009)
    assert read_problems(tmp_path / "x") == [
        "x: header of 100000001 bytes, but 100000001 bytes follow and at most 100000000 are allowed"
    ]


ARRAYS = {
    "model.layers.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "model.norm": np.ones(4, ml_dtypes.bfloat16),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), np.int8),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> tuple[Path, bytes]:
    """Returns a file to damage, and its undamaged bytes."""
    path = tmp_path_factory.mktemp("fuzz") / "x"
    write(path, sources(ARRAYS))
    return path, path.read_bytes()


@settings(deadline=None)
@given(st.data())
def test_truncated_file_is_always_rejected(image, data):
    path, content = image
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError):
        safetensors_file.read_header(path)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_header_is_rejected_or_still_covers_the_file(image, data):
    path, content = image
    start = 8 + int.from_bytes(content[:8], "little")
    damaged = bytearray(content)
    for position in data.draw(st.lists(st.integers(0, start - 1), min_size=1, max_size=3)):
        damaged[position] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        stored = safetensors_file.read_header(path)
    except CheckpointError:
        return
    assert sum(tensor.read().nbytes for tensor in stored.values()) == len(content) - start


def test_small_checkpoint_is_one_file(tmp_path):
    write_checkpoint(tmp_path / "new", sources(ARRAYS))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    assert_same(safetensors_file.read_checkpoint(tmp_path / "new"), ARRAYS)


def test_large_checkpoint_is_split_in_the_order_of_its_tensors(tmp_path):
    arrays = {
        name: np.ones(size, np.uint8) for name, size in {"z": 6, "y": 4, "x": 11, "w": 1}.items()
    }
    write_checkpoint(tmp_path, sources(arrays), max_shard=10)
    assert json.loads((tmp_path / safetensors_file.INDEX_NAME).read_text()) == {
        "metadata": {"total_size": 22},
        "weight_map": {
            "z": "model-00001-of-00003.safetensors",
            "y": "model-00001-of-00003.safetensors",
            "x": "model-00002-of-00003.safetensors",
            "w": "model-00003-of-00003.safetensors",
        },
    }
    assert_same(safetensors_file.read_checkpoint(tmp_path), arrays)


def test_folder_without_weights_lists_its_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"found nothing$"):
        safetensors_file.read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError) as error:
        safetensors_file.read_checkpoint(tmp_path)
    assert error.value.problems == (
        f"{tmp_path}: no model.safetensors.index.json and no model.safetensors; "
        "found config.json, pytorch_model.bin",
    )
