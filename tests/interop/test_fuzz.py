"""Fuzzing: damaged and malicious checkpoints raise a CheckpointError without side effects."""

import json
import os
import pickle
import shutil
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiers import examples
from tiny import random_model

from jaxllm.interop import CheckpointError, inspect, load_pretrained, save_pretrained

NAME = "model.safetensors"
BIN = "pytorch_model.bin"
INDEX = "model.safetensors.index.json"
# Far more than loading a folder with one small layer takes.
MAX_SECONDS = 20
MAX_BYTES = 64 << 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A tiny model in safetensors (one file; two with an index), .bin, Meta and tlama formats."""
    root = tmp_path_factory.mktemp("sound")
    model = random_model(num_layers=1, head_dim=8, vocab_size=16, mlp_dim=8)
    for form, name in (("hf", "one"), ("meta", "meta"), ("tlama", "tlama")):
        save_pretrained(model, root / name, format=form)
    save_pretrained(model, root / "two", format="hf", max_shard=12_000)
    (root / "bin").mkdir()
    shutil.copy(root / "one" / "config.json", root / "bin")
    torch.save(load_file(root / "one" / NAME), root / "bin" / BIN)
    return {folder.name: folder for folder in root.iterdir()}


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


@contextmanager
def bounded() -> Iterator[None]:
    """Asserts that the block takes little time and memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
        assert time.monotonic() - start < MAX_SECONDS
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


def try_to_load(folder: Path) -> str | None:
    """Loads a folder and returns the error message, or None; any other exception is a failure.

    Also checks that nothing in the folder changes and that `inspect` agrees.
    """
    before = content(folder)
    message = None
    with bounded():
        try:
            load_pretrained(folder)
        except CheckpointError as error:
            message = str(error)
        found = inspect(folder)
    assert content(folder) == before
    assert found.ok == (message is None)
    return message


@contextmanager
def changed(folder: Path, files: dict[str, bytes]) -> Iterator[None]:
    """Replaces the content of some files in a folder, and restores it at the end."""
    before = {name: (folder / name).read_bytes() for name in files}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        yield
    finally:
        for name, data in before.items():
            (folder / name).write_bytes(data)


@st.composite
def damage(draw: Callable, size: int, first: int = 0) -> Callable[[bytes], bytes]:
    """Draws a damage from position `first` on: changed, removed or inserted bytes, or a cut."""
    kind = draw(st.sampled_from(["change", "cut", "insert", "remove"]))
    at = draw(st.integers(first, max(size - 1, first)))
    some = draw(st.binary(min_size=1, max_size=9))
    return {
        "change": lambda data: data[:at] + some + data[at + len(some) :],
        "cut": lambda data: data[:at],
        "insert": lambda data: data[:at] + some + data[at:],
        "remove": lambda data: data[:at] + data[at + len(some) :],
    }[kind]


# Damaged parts: the header of a safetensors file, a whole JSON file, and the pickle or the
# directory of a zip file.
TARGETS = [
    ("one", NAME, "header"),
    ("one", "config.json", "all"),
    ("two", INDEX, "all"),
    ("two", "model-00001-of-00002.safetensors", "header"),
    ("meta", "params.json", "all"),
    ("meta", "consolidated.00.pth", "pickle"),
    ("bin", BIN, "pickle"),
    ("bin", BIN, "directory"),
    ("tlama", "state_dict.pth", "pickle"),
]


def span(data: bytes, part: str) -> tuple[int, int]:
    """Returns the start and end of a part of a file."""
    if part == "header":
        return 0, 8 + int.from_bytes(data[:8], "little")
    if part == "pickle":
        begin = data.index(b"data.pkl") + len(b"data.pkl")
        return begin, data.index(b"PK", begin)
    return (
        (data.rindex(b"PK\1\2", 0, -100) - 600, len(data))
        if part == "directory"
        else (
            0,
            len(data),
        )
    )


@pytest.mark.parametrize(
    ("form", "name", "part"), examples(TARGETS, *TARGETS[::3]), ids=lambda value: value
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage_is_harmless_or_reported(folders, form, name, part, data):
    folder = folders[form]
    whole = (folder / name).read_bytes()
    begin, end = span(whole, part)
    damaged = data.draw(damage(end - begin))(whole[begin:end])
    with changed(folder, {name: whole[:begin] + damaged + whole[end:]}):
        message = try_to_load(folder)
    assert message is None or name in message or "config" in message or str(folder) in message


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([2**31, 2**63, 10**30, -(10**30)])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.mark.parametrize("form", examples(["one", "meta", "tlama"], "one"))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_config_values_are_harmless_or_reported(folders, form, data):
    """Such as a huge number of layers, heads of size 0, and lists in place of numbers."""
    name = "params.json" if form == "meta" else "config.json"
    config = json.loads((folders[form] / name).read_bytes())
    for field in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        config[field] = data.draw(VALUES)
    with changed(folders[form], {name: json.dumps(config).encode()}):
        try_to_load(folders[form])


@pytest.mark.parametrize(
    ("form", "name"), [(form, name) for form, name, _ in TARGETS if name != "config.json"]
)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 64])
def test_truncated_files_are_reported(folders, form, name, size):
    with changed(folders[form], {name: (folders[form] / name).read_bytes()[:size]}):
        assert name in try_to_load(folders[form])


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8 + 1, 10**7])
def test_a_header_longer_than_the_file_is_reported(folders, length):
    whole = (folders["one"] / NAME).read_bytes()
    with changed(folders["one"], {NAME: length.to_bytes(8, "little") + whole[8:]}):
        assert NAME in try_to_load(folders["one"])


def with_header(data: bytes, change: Callable[[dict], object]) -> bytes:
    """Returns the safetensors file with a changed header and the same tensor data."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        (lambda header: header[NORM]["data_offsets"].__setitem__(1, 10**15), NORM),
        (lambda header: header[NORM].update(data_offsets=header[EMBEDDING]["data_offsets"]), NORM),
        (lambda header: header[NORM].update(data_offsets=[-8, 120]), NORM),
        (lambda header: header[NORM].update(data_offsets=[0.0, 128.0]), NORM),
        (lambda header: header[NORM].update(shape=[2**62, 2**62]), NORM),
        (lambda header: header[NORM].update(shape=[1] * 1000), NORM),
        (lambda header: header[NORM].update(shape="wide"), NORM),
        (lambda header: header[NORM].update(dtype="F4"), NORM),
        (lambda header: header.update({NORM: None}), NORM),
        (lambda header: header.update({"extra": header[NORM]}), NORM),
        (lambda header: header.pop(NORM), NORM),
        (lambda header: header.update(__metadata__=7), "__metadata__"),
    ],
)
def test_an_inconsistent_header_is_reported(folders, change, tensor):
    whole = (folders["one"] / NAME).read_bytes()
    with changed(folders["one"], {NAME: with_header(whole, change)}):
        message = try_to_load(folders["one"])
    assert NAME in message
    assert tensor in message or "no tensor covers" in message


def test_a_tensor_in_two_files_is_reported(folders):
    """The index lists it in one file, and the other contains it as well."""
    folder = folders["two"]
    first, second = sorted(file.name for file in folder.glob("*.safetensors"))
    with changed(folder, {second: (folder / first).read_bytes()}):
        message = try_to_load(folder)
    assert second in message
    assert EMBEDDING in message


class Intruder:
    """An object that runs a shell command when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def hostile_pickles(mark: Path) -> dict[str, bytes]:
    """Pickles that would create the file `mark` or exhaust memory, each in a different way."""
    code = f"open({str(mark)!r}, 'w')"
    return {
        "reduce": pickle.dumps({"w": Intruder(mark)}, 2),
        "global": b"cposix\nsystem\n(V" + f"touch {mark}".encode() + b"\ntR.",
        "eval": b"c__builtin__\neval\n(V" + code.encode() + b"\ntR.",
        "instance": b"(V" + code.encode() + b"\niposix\nsystem\n.",
        "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
        "build": b"ctorch._utils\n_rebuild_tensor_v2\n}Va\nc__builtin__\neval\nsb.",
        "getattr": b"c__builtin__\ngetattr\n(cos\n__dict__\nVsystem\ntR.",
        "torch": b"ctorch.hub\nload\n(Vsomewhere\ntR.",
        "codecs": b"c_codecs\ndecode\n(Vx\nVrot13\ntR.",
        "memo without end": b"\x80\x02}r\xff\xff\xff\x7f.",
        "long without end": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "nested": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02K\x01Q.",
        "nothing": b"",
    }


@pytest.mark.parametrize("how", hostile_pickles(Path("mark")))
@pytest.mark.parametrize(
    ("form", "name"),
    examples(
        [("bin", BIN), ("meta", "consolidated.00.pth"), ("tlama", "state_dict.pth")], ("bin", BIN)
    ),
)
def test_malicious_pickles_do_not_run_code(folders, tmp_path, form, name, how):
    mark = tmp_path / "mark"
    file = tmp_path / "file"
    with zipfile.ZipFile(folders[form] / name) as sound, zipfile.ZipFile(file, "w") as archive:
        for info in sound.infolist():
            is_pickle = info.filename.endswith("data.pkl")
            data = hostile_pickles(mark)[how] if is_pickle else sound.read(info)
            archive.writestr(info.filename, data)
    with changed(folders[form], {name: file.read_bytes()}):
        assert name in try_to_load(folders[form])
    assert not mark.exists()


def test_the_malicious_pickle_would_run_code(tmp_path):
    """Control: without protection, unpickling does run the command."""
    pickle.loads(pickle.dumps({"w": Intruder(tmp_path / "mark")}))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(("form", "name"), [("one", NAME), ("bin", BIN), ("one", "config.json")])
def test_a_folder_in_place_of_a_file_is_reported(folders, tmp_path, form, name):
    folder = Path(shutil.copytree(folders[form], tmp_path / "copy"))
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=name):
        load_pretrained(folder)
    assert not inspect(folder).ok


@example(b"")
@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_file_content_is_reported(folders, data):
    for form, name in {(form, name) for form, name, _ in TARGETS}:
        with changed(folders[form], {name: data}):
            assert try_to_load(folders[form]) is not None
