"""Files that change while they are read are noticed, by any of size, time, inode and headers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import random_model

from jaxllm.interop import CheckpointError, convert, load_pretrained, save_pretrained
from jaxllm.interop.conversion import convert as conversion
from jaxllm.interop.formats.source_files import (
    HEADER_BYTES,
    SAMPLE_BYTES,
    SAMPLE_EVERY,
    SourceChangedError,
    check_unchanged,
    identify,
    sample,
)
from jaxllm.interop.loading.streaming import array_reads

SIZE = 2 * HEADER_BYTES + 500


def keep_times(change: Callable[[Path], object], file: Path) -> None:
    stat = file.stat()
    change(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def put(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"!")


def replace(file: Path) -> None:
    shutil.copy2(file, file.with_name("copy"))
    file.with_name("copy").replace(file)


CHANGES = {
    "time": lambda file: os.utime(file, ns=(5, 5)),
    "size": lambda file: keep_times(lambda f: os.truncate(f, SIZE - 1), file),
    "inode": replace,
    "first header": lambda file: keep_times(lambda f: put(f, HEADER_BYTES - 1), file),
    "last header": lambda file: keep_times(lambda f: put(f, SIZE - 1), file),
    "removed": lambda file: file.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_kind_of_change_is_noticed(change, tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(bytes(SIZE))
    before = identify(files)
    check_unchanged(before)
    CHANGES[change](files[1])
    with pytest.raises(SourceChangedError) as error:
        check_unchanged(before)
    assert str(files[1]) in error.value.problems[0]
    assert str(files[0]) not in str(error.value)


@pytest.fixture
def llama(tmp_path) -> Path:
    save_pretrained(random_model(head_dim=8), tmp_path / "llama")
    return tmp_path / "llama"


def overwrite(folder: Path) -> None:
    """Writes other numbers into the file, in place."""
    content = np.fromfile(folder / "model.safetensors", np.uint8)
    content[-40_000::4] ^= 1  # the last bit of the last 10,000 numbers
    (folder / "model.safetensors").write_bytes(content.tobytes())


def after(function: Callable, change: Callable[[], object]) -> Callable:
    """Returns the function, after whose first call `change` is called."""
    pending = [change]

    def called(*arguments, **options):
        result = function(*arguments, **options)
        if pending:
            pending.pop()()
        return result

    return called


def test_a_source_that_is_overwritten_is_not_converted(llama, tmp_path, monkeypatch):
    work = conversion._Work
    changed = after(work._write, lambda: overwrite(llama))
    monkeypatch.setattr(work, "_write", changed)
    with pytest.raises(SourceChangedError, match="the checkpoint changed while it was read"):
        convert(llama, tmp_path / "out", to="hf", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]
    convert(llama, tmp_path / "out", to="hf")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, array in load_file(llama / "model.safetensors").items():
        np.testing.assert_array_equal(stored[name], array)


def test_a_source_that_is_truncated_is_an_error(llama, tmp_path, monkeypatch):
    work = conversion._Work
    changed = after(work._write, lambda: os.truncate(llama / "model.safetensors", 5000))
    monkeypatch.setattr(work, "_write", changed)
    with pytest.raises(CheckpointError, match=r"the file ends \d+ bytes early"):
        convert(llama, tmp_path / "out", to="hf", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_overwritten_is_not_loaded(llama, monkeypatch):
    monkeypatch.setattr(array_reads, "stream", after(array_reads.stream, lambda: overwrite(llama)))
    with pytest.raises(SourceChangedError):
        load_pretrained(llama)
    load_pretrained(llama)


def test_samples_of_copies_are_the_same_and_see_every_change_in_them(tmp_path):
    size = 2 * SAMPLE_EVERY + 3 * SAMPLE_BYTES
    for name in ("a", "b"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        with (tmp_path / name / "part" / "weights").open("wb") as stream:
            stream.truncate(size)

    def sample_all(name):
        return sample((tmp_path / name).rglob("*"), tmp_path / name)

    expected = sample_all("a")
    assert sorted(expected) == ["config.json", "part/weights"]
    assert sample_all("b") == expected
    changed = tmp_path / "b" / "part" / "weights"
    for place in (0, SAMPLE_EVERY, 2 * SAMPLE_EVERY + SAMPLE_BYTES - 1, size - 1):
        put(changed, place)
        found = sample_all("b")
        assert found["part/weights"] != expected["part/weights"]
        assert found["config.json"] == expected["config.json"]
        expected = found
