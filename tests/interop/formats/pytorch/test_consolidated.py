"""Model-parallel shards are written and read by their numbers."""

import numpy as np
import pytest
import torch

from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.interop.formats.pytorch import consolidated
from jaxllm.interop.formats.stored_tensor import CheckpointError


def test_torch_reads_each_written_shard(tmp_path):
    arrays = {f"{rank}/w": np.full(3, int(rank)) for rank in ("01", "00", "02")}
    tensors = {name: from_array(array) for name, array in arrays.items()}
    write_files(tmp_path, consolidated.lay_out(tensors), tensors)
    for rank in range(3):
        loaded = torch.load(tmp_path / f"consolidated.{rank:02}.pth", weights_only=True)
        assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"w": [rank] * 3}
    found = consolidated.read_checkpoint(tmp_path)
    assert list(found) == ["00/w", "01/w", "02/w"]
    assert all((found[name].read() == array).all() for name, array in arrays.items())
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match=r"but has consolidated\.00\.pth, consolidated\.02"):
        consolidated.read_checkpoint(tmp_path)


def test_folder_without_shards_is_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="but has none"):
        consolidated.read_checkpoint(tmp_path)
