"""Checkpoints in quantized storage: loaded, inspected, exported and compared like any other."""

import json
import logging
from pathlib import Path

import hf_cases
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from jaxllm.interop import CheckpointError, inspect, load_pretrained, save_pretrained, to_torch
from jaxllm.interop.formats.quantized.codecs import take_settings
from jaxllm.interop.parity import check_checkpoint

BLOCK = 8
SETTINGS = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint in bfloat16 whose projections are 8-bit floats."""
    folder = tmp_path_factory.mktemp("quantized") / "llama"
    hf_cases.Case("Llama").build().bfloat16().save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        tensors[name] = tensor
        if "proj" in name:
            rows, columns = (size // BLOCK for size in tensor.shape)
            blocks = tensor.float().reshape(rows, BLOCK, columns, BLOCK)
            scale = blocks.abs().amax((1, 3)) / 448
            small = (blocks / scale[:, None, :, None]).reshape(tensor.shape)
            tensors |= {name: small.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
    save_file(tensors, file, {"format": "pt"})
    rewrite(folder, dtype="bfloat16", quantization_config={**SETTINGS, "fmt": "e4m3"})
    return folder


def rewrite(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_model_is_that_of_transformers_bit_for_bit(folder, dtype, caplog):
    with caplog.at_level(logging.WARNING):
        ours = to_torch(load_pretrained(folder, dtype=dtype))
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype or "bfloat16")
    ).state_dict()
    assert {*ours} == {*theirs}
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor.to(ours[name].dtype)), name
    assert "an export has the decoded numbers, not the bits of these files" in caplog.text


def test_an_export_is_a_plain_checkpoint_of_the_decoded_numbers(folder, tmp_path):
    save_pretrained(load_pretrained(folder), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    decoded = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for name, tensor in decoded.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_inspect_says_how_tensors_are_stored(folder):
    found = inspect(folder)
    assert found.ok
    groups = {group.name.rpartition("}")[2]: group for group in found.tensors}
    up = groups[".mlp.up_proj.weight"]
    assert up.dtype == "float8_e4m3fn in blocks of 8 x 8"
    size = np.prod(up.shape)
    assert up.num_bytes == up.count * (size + 4 * size // BLOCK**2)
    assert "not the bits of these files" in found.notes[0]


@pytest.mark.exhaustive
def test_parity_holds_with_what_transformers_dequantizes(folder):
    levels = ("weights", "config", "logits", "gradients")
    assert check_checkpoint(folder, levels=levels).ok


def test_unknown_storage_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    rewrite(copy, quantization_config={"quant_method": "hqq"})
    with pytest.raises(CheckpointError, match="quant_method='hqq' is not supported, only fp8, "):
        load_pretrained(copy)
    assert "config.json: quantization_config.quant_method='hqq'" in inspect(copy).problems[0]


def test_tensors_that_need_no_decoding_can_be_read_in_spite_of_the_config(folder, tmp_path):
    save_pretrained(load_pretrained(folder), tmp_path / "plain")
    rewrite(tmp_path / "plain", quantization_config={"quant_method": "hqq"})
    load_pretrained(tmp_path / "plain", allow=["quantization_config"])


def test_a_config_without_storage_is_left_as_it_is():
    assert take_settings({"a": 1, "quantization_config": None}) == ({"a": 1}, None)
    settings = {"quant_method": "fp8"}
    assert take_settings({"a": 1, "compression_config": settings}) == ({"a": 1}, settings)
    assert take_settings({"quantization_config": "fp8"})[1] == {"quant_method": "'fp8'"}
