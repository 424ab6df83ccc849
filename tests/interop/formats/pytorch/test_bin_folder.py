"""Hugging Face folders with `pytorch_model.bin`, in one file or in shards."""

import json

import pytest
import torch

from jaxllm.interop.formats.pytorch.bin_folder import INDEX_NAME, SINGLE_NAME, read_checkpoint
from jaxllm.interop.formats.stored_tensor import CheckpointError


def test_index_file_decides_which_shards_are_read(tmp_path):
    for number, name in enumerate("ab", 1):
        torch.save({name: torch.full((2,), number)}, tmp_path / f"{number}.bin")
    index = {"weight_map": {"a": "1.bin", "b": "2.bin"}}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    found = {name: tensor.read().tolist() for name, tensor in read_checkpoint(tmp_path).items()}
    assert found == {"a": [1, 1], "b": [2, 2]}
    (tmp_path / "2.bin").unlink()
    with pytest.raises(CheckpointError, match=r"'2\.bin' is not a file in this folder"):
        read_checkpoint(tmp_path)


def test_a_single_file_is_preferred_to_an_index_file(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / SINGLE_NAME)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"w": "gone.bin"}}))
    assert read_checkpoint(tmp_path)["w"].read().tolist() == [1, 1]
