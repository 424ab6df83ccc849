"""PyTorch zip files: compatible with `torch.save` and `torch.load`; nothing in them is executed."""

import collections
import contextlib
import io
import os
import pickle
import random
import sys
import tarfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.interop.formats.file_writer import create, partial_path, write_files
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array
from jaxllm.interop.formats.pytorch import torch_zip
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

DTYPES = {
    torch.bool: np.bool_,
    torch.uint8: np.uint8,
    torch.uint16: np.uint16,
    torch.uint32: np.uint32,
    torch.uint64: np.uint64,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
    torch.float8_e8m0fnu: ml_dtypes.float8_e8m0fnu,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
}
SHAPES = [(3, 5), (1,), (), (0,), (2, 0, 3)]


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns random bits, which include NaNs; booleans are only 0 or 1."""
    tensor = torch.zeros(shape, dtype=dtype)
    if tensor.numel():
        data = tensor.reshape(-1).view(torch.uint8)
        data.random_(0, 2 if dtype == torch.bool else 256, generator=torch.manual_seed(0))
    return tensor


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Returns the same bits, also for dtypes that `Tensor.numpy` does not support."""
    array = np.zeros(tuple(tensor.shape), DTYPES[tensor.dtype])
    if tensor.numel():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        array.reshape(-1).view(np.uint8)[:] = data
    return array


def sources(arrays: dict) -> dict[str, TensorSource]:
    return {name: from_array(array) for name, array in arrays.items()}


def write(path: Path, tensors: dict[str, TensorSource]) -> None:
    write_files(path.parent, [torch_zip.lay_out(path.name, tensors)], tensors)


def assert_same(stored: dict[str, StoredTensor], tensors: dict) -> None:
    assert list(stored) == list(tensors)
    for name, tensor in tensors.items():
        opened, array = stored[name].read(), to_numpy(tensor)
        assert (opened.dtype, opened.shape) == (array.dtype, array.shape)
        assert opened.tobytes() == array.tobytes()


def problems(path: Path) -> list[str]:
    """Returns the problems of a file, without its name."""
    with pytest.raises(CheckpointError) as error:
        torch_zip.read_header(path)
    return [problem.removeprefix(f"{path}: ") for problem in error.value.problems]


def rewrite(path: Path, change: dict[str, bytes | None], compression: int = 0) -> None:
    """Replaces the bytes of some records of a file; None drops a record."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    top = next(iter(records)).partition("/")[0]
    records |= {f"{top}/{name}": data for name, data in change.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            if data is not None:
                archive.writestr(name, data)


def pickled(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return archive.read(name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_files_saved_by_pytorch_are_read(tmp_path, dtype, shape):
    state = {"w": random_tensor(dtype, shape)}
    torch.save(state, tmp_path / "x")
    assert_same(torch_zip.read_header(tmp_path / "x"), state)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pytorch_loads_written_files(tmp_path, dtype, shape):
    tensor = random_tensor(dtype, shape)
    write(tmp_path / "x", sources({"w": to_numpy(tensor)}))
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "x", weights_only=True, mmap=mmap)
        assert list(loaded) == ["w"]
        assert loaded["w"].dtype == dtype
        assert loaded["w"].stride() == tensor.stride()
        assert to_numpy(loaded["w"]).tobytes() == to_numpy(tensor).tobytes()
    assert_same(torch_zip.read_header(tmp_path / "x"), {"w": tensor})


def test_written_storages_are_aligned_and_intact(tmp_path):
    arrays = {"é" * n: np.full(n, n, np.float32) for n in range(1, 70, 7)}
    write(tmp_path / "x", sources(arrays))
    stored = torch_zip.read_header(tmp_path / "x")
    assert list(stored) == list(arrays)
    assert all(tensor.offset % 64 == 0 for tensor in stored.values())
    assert zipfile.ZipFile(tmp_path / "x").testzip() is None
    loaded = torch.load(tmp_path / "x", weights_only=True)
    assert type(loaded) is collections.OrderedDict
    assert list(loaded) == list(arrays)


def test_equal_tensors_give_equal_files(tmp_path):
    for name in "xy":
        write(tmp_path / name, sources({"w": np.ones(5)}))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_empty_state_dict_round_trips(tmp_path):
    torch.save({}, tmp_path / "x")
    write(tmp_path / "y", {})
    assert torch_zip.read_header(tmp_path / "x") == torch_zip.read_header(tmp_path / "y") == {}
    assert torch.load(tmp_path / "y", weights_only=True) == {}


def test_large_files_use_zip64(tmp_path):
    arrays = {str(n): np.full(100, n) for n in range(3)}
    # Treats offsets from 1000 on as if they were beyond 4 GiB.
    file = torch_zip.lay_out("x", sources(arrays), zip64_from=1000)
    write_files(tmp_path, [file], sources(arrays))
    loaded = torch.load(tmp_path / "x", weights_only=True)
    assert_same(torch_zip.read_header(tmp_path / "x"), loaded)
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


def test_tensors_beyond_4_gib_are_located(tmp_path):
    """The files are laid out but not filled in, so they take no space on disk."""
    shapes = {"a": (5 << 30,), "b": (1 << 20, 3 << 12), "c": (7,)}
    tensors = {
        name: TensorSource(np.dtype(np.int8), shape, lambda box: np.empty(0, np.int8))
        for name, shape in shapes.items()
    }
    file = torch_zip.lay_out("x", tensors)
    create(tmp_path, file)
    path = partial_path(tmp_path, file)
    assert path.stat().st_blocks < 1000
    stored = torch_zip.read_header(path)
    assert {name: tensor.offset for name, tensor in stored.items()} == file.places
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == shapes
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()][2:-1] == [5 << 30, 12 << 30, 7]


def test_views_of_shared_storages_are_read(tmp_path):
    base = torch.arange(60, dtype=torch.bfloat16).reshape(3, 4, 5)
    state = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "strided": base[1:, ::2, ::3],
        "row": base[1, 2],
        "column": base[:, 1, 1],
        "expanded": base[0, 0, :, None].expand(5, 7),
        "scalar": base[1, 1, 1],
        "end": base[3:],
        "thin": base[:, 1:2],
    }
    torch.save(state, tmp_path / "x")
    stored = torch_zip.read_header(tmp_path / "x")
    assert_same(stored, state)
    assert {name for name, tensor in stored.items() if tensor.strides is None} == {
        "base",
        "row",
        "scalar",
        "end",
    }


def test_views_that_repeat_a_storage_more_than_memory_holds_are_rejected(tmp_path):
    """A file of a kilobyte whose tensor has 4 TB, and one of many tensors that share a storage."""
    number = torch.ones(1)
    torch.save({"w": number.expand(2**20, 2**20)}, tmp_path / "wide")
    block = torch.ones(2**18)
    torch.save({f"w{i}": block.view(2**9, 2**9) for i in range(100)}, tmp_path / "many")
    for name, nbytes in (("wide", 2**42), ("many", 100 * 2**20)):
        assert problems(tmp_path / name) == [
            f"the tensors have {nbytes} bytes in all, but the file stores only "
            f"{sum(info.file_size for info in zipfile.ZipFile(tmp_path / name).infolist())}: they "
            "repeat the same numbers, as `expand` makes them"
        ]


def test_parameters_and_module_versions_are_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module.state_dict(), tmp_path / "x")
    assert_same(torch_zip.read_header(tmp_path / "x"), module.state_dict())
    torch.save(dict(module.named_parameters()), tmp_path / "y")
    assert_same(torch_zip.read_header(tmp_path / "y"), dict(module.named_parameters()))


def test_entries_that_cannot_hold_tensors_are_listed_as_skipped(tmp_path):
    state = {
        "layer._extra_state": io.BytesIO(b"\0\xff of Llama 4"),
        "w": torch.ones(2),
        "none": None,
        "step": 3,
        "rate": 0.1,
        "note": "text",
        "raw": b"\xff",
        "size": torch.Size([1, 2]),
    }
    torch.save(state, tmp_path / "x")
    assert_same(torch_zip.read_header(tmp_path / "x"), {"w": state["w"]})


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_pickle_protocol_is_read(tmp_path, protocol):
    state = collections.OrderedDict(w=torch.ones(2), extra=io.BytesIO(b"x"), raw=b"x")
    torch.save(state, tmp_path / "x", pickle_protocol=protocol)
    assert_same(torch_zip.read_header(tmp_path / "x"), {"w": torch.ones(2)})


def test_files_without_checksums_or_byteorder_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(2)}, tmp_path / "x")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(torch_zip.read_header(tmp_path / "x"), {"w": torch.ones(2)})
    torch.save({"w": torch.ones(2)}, tmp_path / "модель")
    rewrite(tmp_path / "модель", {"byteorder": None})
    assert_same(torch_zip.read_header(tmp_path / "модель"), {"w": torch.ones(2)})


def test_reading_needs_no_pytorch(tmp_path, monkeypatch):
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x")
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails
    monkeypatch.setitem(sys.modules, "torch._utils", None)
    stored = torch_zip.read_header(tmp_path / "x")
    write(tmp_path / "y", sources({"w": stored["w"].read()}))
    assert torch_zip.read_header(tmp_path / "y")["w"].read().tolist() == [1, 1]


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def save_pickle(path: Path, data: bytes) -> Path:
    torch.save({}, path)
    rewrite(path, {"data.pkl": data})
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda call: call, lambda call: {"w": call}])
def test_malicious_pickles_are_blocked_and_not_executed(tmp_path, wrap, protocol):
    marker = tmp_path / "executed"
    call = Call(os.system, f"touch {marker}")
    path = save_pickle(tmp_path / "x", pickle.dumps(wrap(call), protocol))
    assert problems(path) == [
        f"the pickle names {os.system.__module__}.system, which no state dict needs; "
        "nothing was executed"
    ]
    assert not marker.exists()


def test_all_forbidden_names_are_reported(tmp_path):
    state = {"a": Call(eval, "1"), "b": Call(os.getcwd), "c": Call(eval, "2"), "w": torch.ones(1)}
    torch.save(state, tmp_path / "x")
    names = ["__builtin__.eval", f"{os.getcwd.__module__}.getcwd"]
    assert problems(tmp_path / "x") == [
        f"the pickle names {name}, which no state dict needs; nothing was executed"
        for name in names
    ]


def test_pickled_module_is_rejected(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "x")
    assert problems(tmp_path / "x")[0].startswith("the pickle names torch.nn.modules.linear.Linear")


GLOBAL_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "opcodes",
    [
        GLOBAL_TENSOR + b"N}(X\1\0\0\0aK\1u\x86b",  # BUILD with (None, {"a": 1}): sets attributes
        GLOBAL_TENSOR + b"}(X\x09\0\0\0argumentsK\1ub",
        b"ccollections\nOrderedDict\nN}(X\4\0\0\0keysK\1u\x86b",
        b"ctorch\nFloatStorage\n)R",  # the name of a storage is called
        b"ctorch\nFloatStorage\n)\x81",
    ],
)
def test_pickle_cannot_modify_or_call_the_records(tmp_path, opcodes):
    path = save_pickle(tmp_path / "x", b"\x80\x02" + opcodes + b".")
    assert problems(path)[0].startswith("damaged pickle: ")
    torch.save({"w": torch.ones(2)}, path)
    assert_same(torch_zip.read_header(path), {"w": torch.ones(2)})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "damaged pickle: "),
        (b"garbage", "damaged pickle: "),
        (b"\x80\x02}", "damaged pickle: "),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "damaged pickle: integer too large at byte 3"),
        (b"\x80\x02\x8a\x09" + b"\x7f" * 9 + b".", "damaged pickle: integer too large at byte 2"),
        (b"\x80\x02X\1\0\0\0aQ.", "damaged pickle: a persistent id is not a storage"),
        (b"\x80\x02]q\0h\0a0" + b"h\0.", "the pickle is not a state dict, which maps names"),
        (pickle.dumps({1: None}), "the pickle is not a state dict, which maps names to tensors"),
        (pickle.dumps([]), "the pickle is not a state dict, which maps names to tensors"),
        (b"\x80\x02}X\1\0\0\0a" + GLOBAL_TENSOR + b")\x81s.", "entry 'a': is not a view of a stor"),
        (
            b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_parameter\n)Rs.",
            "entry 'a': is a parameter without a tensor",
        ),
    ],
)
def test_damaged_pickle_is_described(tmp_path, data, expected):
    (problem,) = problems(save_pickle(tmp_path / "x", data))
    assert problem.startswith(expected)


def tensor_pickle(storage: object, *arguments: object) -> bytes:
    """Pickles a state dict {"w": ...} with any arguments for the function that makes the tensor."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return storage if value is storage else None

    buffer = io.BytesIO()
    call = Call(torch._utils._rebuild_tensor_v2, storage, *arguments)
    Pickler(buffer, 2).dump({"w": call})
    return buffer.getvalue()


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, (2, 4), (4, 1)), "shape [2, 4] with offset 0 and strides [4, 1] reaches element 8 of"),
        ((1, (2, 3), (3, 1)), "shape [2, 3] with offset 1 and strides [3, 1] reaches element 7 of"),
        ((0, (2, 2), (5, 1)), "shape [2, 2] with offset 0 and strides [5, 1] reaches element 7 of"),
        ((0, (2,), (2**62,)), "shape [2] with offset 0 and strides [4611686018427387904] reaches"),
        ((7, (0,), (1,)), "shape [0] with offset 7 and strides [1] reaches element 7 of"),
        ((-1, (2,), (1,)), "offset -1 and strides (1,) are not valid for 1 dimensions"),
        ((5, (2,), (-1,)), "offset 5 and strides (-1,) are not valid for 1 dimensions"),
        ((0, (2,), ()), "offset 0 and strides () are not valid for 1 dimensions"),
        ((0, (2,), None), "offset 0 and strides None are not valid for 1 dimensions"),
        ((True, (2,), (1,)), "offset True and strides (1,) are not valid for 1 dimensions"),
        ((0, (-2,), (1,)), "shape (-2,) is not a list of sizes"),
        ((0, 2, (1,)), "shape 2 is not a list of sizes"),
        ((0, (2**62, 2**62), (0, 0)), "shape (4611686018427387904, 4611686018427387904) is larg"),
    ],
)
def test_tensor_that_overruns_its_storage_is_rejected(tmp_path, arguments, expected):
    data = tensor_pickle(FLOATS, *arguments, False, {})
    torch.save({"w": torch.ones(6)}, tmp_path / "x")
    rewrite(tmp_path / "x", {"data.pkl": data})
    (problem,) = problems(tmp_path / "x")
    assert problem.startswith(f"entry 'w': {expected}")


@pytest.mark.parametrize("size", [5, 7, -6])
def test_storage_of_the_wrong_size_is_rejected(tmp_path, size):
    torch.save({"w": torch.ones(6)}, tmp_path / "x")
    data = tensor_pickle((*FLOATS[:4], size), 0, (0,), (1,), False, {})
    rewrite(tmp_path / "x", {"data.pkl": data})
    (problem,) = problems(tmp_path / "x")
    assert problem.startswith("entry 'w': ")


def test_one_error_lists_every_wrong_entry(tmp_path):
    state = {
        "a": torch.ones(6),
        "b": torch.ones(2, dtype=torch.complex64).conj(),
        "c": torch.ones(3),
        "d": [torch.ones(1)],
        "e": torch.ones(4),
    }
    torch.save(state, tmp_path / "x")
    rewrite(tmp_path / "x", {"data/0": bytes(20), "data/2": None})
    assert problems(tmp_path / "x") == [
        "entry 'a': record 'data/0' has 20 bytes, but its storage should have 24",
        "entry 'b': is lazily conjugated or negated: resolve it before saving",
        "entry 'c': record 'data/2' is missing",
        "entry 'd': is a list, not a tensor",
    ]


@pytest.mark.parametrize("keys", [["model"], ["state_dict"], ["module"], ["model", "module"]])
def test_the_state_dict_in_a_trainers_dictionary_is_read(keys, tmp_path, caplog):
    state = {"wq": torch.arange(3.0), "wk": torch.ones(2)}
    nested = state
    for key in keys:
        nested = {key: nested, "step": 5, "optimizer": {"state": {0: torch.zeros(9)}}}
    torch.save(nested, tmp_path / "x")
    found = torch_zip.read_header(tmp_path / "x")
    assert {name: tensor.read().tolist() for name, tensor in found.items()} == {
        "wq": [0, 1, 2],
        "wk": [1, 1],
    }
    said = f"only the entry {keys[-1]!r} is read, not step, optimizer"
    assert caplog.messages[0] == f"{tmp_path / 'x'}: {said}"


def test_a_trainers_dictionary_inside_itself_is_rejected(tmp_path):
    state: dict = {"step": 1}
    state["model"] = state
    torch.save(state, tmp_path / "x")
    with pytest.raises(CheckpointError):
        torch_zip.read_header(tmp_path / "x")


def test_other_nested_dictionaries_are_rejected_by_name(tmp_path):
    inner = {"wq": torch.ones(1), "wk": torch.ones(1)}
    said = "is a dictionary of 'wq', 'wk', not a tensor: only a flat state dict is read"
    torch.save({"ema": inner}, tmp_path / "x")
    assert problems(tmp_path / "x") == [f"entry 'ema': {said}"]
    torch.save({"model": inner, "norm": torch.ones(3)}, tmp_path / "x")  # which of them is meant?
    assert problems(tmp_path / "x") == [f"entry 'model': {said}"]


def test_files_from_before_pytorch_1_6_are_rejected(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x", _use_new_zipfile_serialization=False)
    advice = "as PyTorch wrote before 1.6, is not supported: load it with PyTorch and save it again"
    assert problems(tmp_path / "x") == [f"a pickle file, {advice}"]
    with tarfile.open(tmp_path / "y", "w") as archive:
        archive.add(tmp_path / "x", "storages")
    assert problems(tmp_path / "y") == [f"a tar file, {advice}"]


@pytest.mark.parametrize("data", [b"", b"{}", b"\x89HDF"])
def test_file_that_is_not_a_zip_is_rejected(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert problems(tmp_path / "x") == ["not a zip file, which is what PyTorch writes"]


def test_damaged_zip_is_described(tmp_path):
    path = tmp_path / "x"

    def found(compression: int = 0, **change: bytes | None) -> list[str]:
        torch.save({"w": torch.ones(6)}, path)
        rewrite(path, {name.replace("_", "."): data for name, data in change.items()}, compression)
        return problems(path)

    assert found(byteorder=b"big") == ["the byte order is not little-endian"]
    assert found(data_pkl=None) == ["record 'data.pkl' is missing"]
    assert found(zipfile.ZIP_DEFLATED) == [
        "record 'byteorder' is compressed or encrypted, not stored"
    ]
    torch.save({"w": torch.ones(6)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y/data/0", b"")
    assert problems(path) == ["the zip has several records with the same name"]
    torch.save({"w": torch.ones(6)}, path)
    path.write_bytes(path.read_bytes().replace(pickled(path), pickled(path).replace(b"w", b"v")))
    assert problems(path) == ["record 'data.pkl' does not match its checksum"]


def test_swapped_records_are_detected(tmp_path):
    torch.save({"a": torch.zeros(6), "b": torch.ones(6)}, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as archive:
        offsets = [archive.getinfo(f"x/data/{key}").header_offset for key in "01"]
    first, second = (offset.to_bytes(4, "little") for offset in offsets)
    start, directory = (content := (tmp_path / "x").read_bytes()).split(b"PK\1\2", 1)
    swapped = directory.replace(first, b"????").replace(second, first).replace(b"????", second)
    (tmp_path / "x").write_bytes(start + b"PK\1\2" + swapped)
    assert len(content) == (tmp_path / "x").stat().st_size
    assert problems(tmp_path / "x") == [
        f"entry '{name}': record 'data/{key}' is not where the zip's directory says"
        for name, key in zip("ab", "01", strict=True)
    ]


def save_example(path: Path, writer: str) -> dict[str, torch.Tensor]:
    """Saves a file with one of the two writers, small enough to damage every byte in turn."""
    base = torch.arange(12.0)
    state = {"a": base.reshape(3, 4).T, "b": base[3:5], "c": torch.zeros(8, dtype=torch.int8)}
    if writer == "torch":
        torch.save(state, path)
    else:
        write(path, sources({name: to_numpy(t) for name, t in state.items()}))
    return state


def data_bytes(path: Path) -> set[int]:
    """Returns the positions of tensor data, whose checksums are not verified."""
    positions = set()
    for tensor in torch_zip.read_header(path).values():
        positions |= set(range(tensor.offset, tensor.offset + tensor.nbytes))
    return positions


@pytest.mark.parametrize("writer", ["torch", "own"])
def test_truncated_file_is_always_rejected(tmp_path, writer):
    path = tmp_path / "x"
    save_example(path, writer)
    for length in range(path.stat().st_size - 1, -1, -3):
        os.truncate(path, length)
        with pytest.raises(CheckpointError):
            torch_zip.read_header(path)


@pytest.mark.parametrize("writer", ["torch", "own"])
def test_damaged_byte_is_detected_or_changes_nothing(tmp_path, writer):
    path = tmp_path / "x"
    state = save_example(path, writer)
    content = path.read_bytes()
    generator = random.Random(0)
    with path.open("r+b", buffering=0) as file:
        for position in sorted(set(range(len(content))) - data_bytes(path)):
            os.pwrite(
                file.fileno(), bytes([content[position] ^ generator.randrange(1, 256)]), position
            )
            with contextlib.suppress(CheckpointError):
                assert_same(torch_zip.read_header(path), state)
            os.pwrite(file.fileno(), content[position : position + 1], position)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> tuple[Path, bytes]:
    """Returns a file whose pickle is to be damaged, and the undamaged pickle."""
    path = tmp_path_factory.mktemp("fuzz") / "x"
    save_example(path, "torch")
    return path, pickled(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_forged_pickle_never_reads_beyond_the_file(image, data):
    path, content = image
    damaged = bytearray(content)
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    rewrite(path, {"data.pkl": bytes(damaged)})
    try:
        stored = torch_zip.read_header(path)
    except CheckpointError:
        return
    for tensor in stored.values():
        tensor.read().tobytes()


def test_unsupported_dtype_is_rejected_before_writing(tmp_path):
    arrays = {"a": np.zeros(1, ">f4"), "b": np.zeros(1, ml_dtypes.int4), "c": np.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        write(tmp_path / "x", sources(arrays))
    assert error.value.problems == (
        "x: tensor 'a': PyTorch has no dtype >f4",
        "x: tensor 'b': PyTorch has no dtype int4",
    )
    assert list(tmp_path.iterdir()) == []
