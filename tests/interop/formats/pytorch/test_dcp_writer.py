"""DCP checkpoints are planned as one data file and the metadata that `dcp` reads back."""

import io

import numpy as np
import pytest

from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.interop.formats.pytorch import dcp, dcp_writer, torch_zip
from jaxllm.interop.formats.stored_tensor import CheckpointError

ARRAYS = {
    "model.weight": np.arange(35, dtype=np.float32).reshape(5, 7),
    "step": np.array(4, np.int64),
    "empty": np.zeros((0, 3), np.float16),
}
VALUES = {"optim.lr": 0.1, "optim.betas": (0.9, 0.95), "optim.foreach": None, "names": [1, "x"]}
TENSORS = {name: from_array(array) for name, array in ARRAYS.items()}
PATHS = {name: tuple(name.split(".")) for name in (*ARRAYS, *VALUES)}


def test_data_file_comes_first_and_metadata_needs_no_tensor():
    data, metadata = dcp_writer.lay_out(TENSORS, VALUES, PATHS)
    assert (data.name, metadata.name) == ("__0_0.distcp", ".metadata")
    assert data.places.keys() == data.checksums.keys() == ARRAYS.keys()
    assert not metadata.places
    assert list(metadata.frame) == [0]
    assert len(metadata.frame[0]) == metadata.size


def test_layout_covers_every_byte_of_the_data_file_once():
    data, _ = dcp_writer.lay_out(TENSORS, VALUES, PATHS)
    spans = [(offset, offset + len(part)) for offset, part in data.frame.items()]
    spans += [(place, place + TENSORS[name].nbytes) for name, place in data.places.items()]
    end = 0
    for start, stop in sorted(spans):
        assert start == end
        end = stop
    assert end == data.size


def test_written_checkpoint_is_read_back(tmp_path):
    write_files(tmp_path, dcp_writer.lay_out(TENSORS, VALUES, PATHS), TENSORS)
    assert dcp.is_dcp(tmp_path)
    contents = dcp.read(tmp_path)
    assert {name: value() for name, value in contents.values.items()} == VALUES
    assert contents.tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        tensor = contents.tensors[name]
        assert (tensor.dtype, tensor.shape) == (array.dtype, array.shape)
        found = tensor.read([(0, size) for size in array.shape])
        np.testing.assert_array_equal(found, array)


def test_each_entry_is_a_torch_file_inside_the_data_file(tmp_path):
    files = dcp_writer.lay_out({"step": TENSORS["step"]}, {"lr": 0.1}, {})
    write_files(tmp_path, files, {"step": TENSORS["step"]})
    path = tmp_path / "__0_0.distcp"
    content = path.read_bytes()
    second = torch_zip.lay_out_value("lr", 0.1, {}).size
    first = io.BytesIO(content[:-second])
    assert torch_zip.read_value(first, path).read() == ARRAYS["step"]
    assert torch_zip.read_value(io.BytesIO(content[-second:]), path) == 0.1


def test_dtype_that_pytorch_lacks_is_rejected():
    with pytest.raises(CheckpointError, match="PyTorch has no dtype >f4"):
        dcp_writer.lay_out({"w": from_array(np.zeros(2, ">f4"))}, {}, {})
