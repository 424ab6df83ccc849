"""PEFT adapters read: what does not fit the model is reported, and ranks may differ by layer."""

import numpy as np
import pytest
from adapter_cases import logits_of, make_adapter, our_logits
from safetensors.numpy import load_file, save_file

from jaxllm.interop import CheckpointError, load_pretrained
from jaxllm.interop.adapters.merging import load_adapter, open_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and an adapter of Llama, whose second layer has another rank but the same scale."""
    place = tmp_path_factory.mktemp("adapter")
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}}
    patterns |= {"alpha_pattern": {"layers.1.self_attn.q_proj": 3}}
    np.save(place / "logits", logits_of(make_adapter("llama", place, use_rslora=False, **patterns)))
    return place


def changed(folder, name, tensors):
    new = folder / name
    new.mkdir()
    (new / "adapter_config.json").write_text((folder / "adapter/adapter_config.json").read_text())
    save_file(tensors, new / "adapter_model.safetensors")
    return new


@pytest.mark.exhaustive
def test_a_smaller_rank_of_a_layer_is_filled_with_zeros(folder):
    expected = np.load(folder / "logits.npy")
    assert np.abs(our_logits(load_adapter(folder / "adapter")) - expected).max() < 1e-5


def test_what_does_not_fit_is_reported(folder):
    base = load_pretrained(folder / "base")
    tensors = load_file(folder / "adapter/adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    extra = {**tensors, "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": tensors[name]}
    with pytest.raises(CheckpointError, match="1 tensors fit no module of the model"):
        open_adapter(changed(folder, "extra", extra), base)
    wide = {**tensors, name: np.zeros((65, 4), np.float32)}
    with pytest.raises(CheckpointError, match=r"lora_A is \[4, 32\] and lora_B \[65, 4\], but"):
        open_adapter(changed(folder, "wide", wide), base)
    (folder / "none").mkdir()
    text = (folder / "adapter/adapter_config.json").read_text()
    (folder / "none/adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        open_adapter(folder / "none", base)
