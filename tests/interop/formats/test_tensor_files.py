"""Tensor files are read and written in the format that their suffix names."""

import numpy as np
import pytest

from jaxllm.interop.formats import tensor_files
from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.interop.formats.stored_tensor import CheckpointError

TENSORS = {name: from_array(np.arange(5.0)) for name in ("a", "b")}


def write(folder, file, max_shard=1 << 20):
    files, texts = tensor_files.lay_out(TENSORS, file, max_shard)
    write_files(folder, files, TENSORS)
    for name, text in texts.items():
        (folder / name).write_bytes(text)


@pytest.mark.parametrize("file", ["w.safetensors", "w.bin", "w.pt", "w.pth", "w.ckpt"])
def test_suffix_decides_how_a_file_is_written_and_read(tmp_path, file):
    write(tmp_path, file)
    found = tensor_files.read_only_file(tmp_path / file)
    assert set(found) == {"a", "b"}
    assert all((tensor.read() == np.arange(5.0)).all() for tensor in found.values())
    assert (tmp_path / file).read_bytes().startswith(b"PK") == (file != "w.safetensors")


def test_only_tensor_file_of_a_folder_is_found(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="has no tensor file: give the path of one file"):
        tensor_files.read_only_file(tmp_path)
    write(tmp_path, "w.pt")
    assert set(tensor_files.read_only_file(tmp_path)) == {"a", "b"}
    write(tmp_path, "x.pt")
    with pytest.raises(CheckpointError, match=r"has w\.pt, x\.pt: give the path of one file"):
        tensor_files.read_only_file(tmp_path)


def test_shards_with_an_index_count_as_one_file(tmp_path):
    write(tmp_path, "model.safetensors", max_shard=40)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert set(tensor_files.read_only_file(tmp_path)) == {"a", "b"}


def test_tensors_of_several_files_are_prefixed_with_the_file_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tensor file \(\*\.safetensors, \*\.gguf,"):
        tensor_files.read_every_file(tmp_path)
    write(tmp_path, "w.pt")
    assert set(tensor_files.read_every_file(tmp_path)) == {"a", "b"}
    write(tmp_path, "x.safetensors")
    names = {"w.pt/a", "w.pt/b", "x.safetensors/a", "x.safetensors/b"}
    assert set(tensor_files.read_every_file(tmp_path)) == names


def test_gguf_files_and_unknown_ones_are_not_written(tmp_path):
    names = ["a.safetensors", "a.pth", "a.gguf", "a.txt"]
    assert [tensor_files.is_writable(tmp_path / name) for name in names] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(CheckpointError, match=r"a.gguf: files of this type are only read: write"):
        tensor_files.lay_out({}, "a.gguf", 1)
