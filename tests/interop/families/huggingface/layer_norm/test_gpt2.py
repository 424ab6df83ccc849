"""GPT-2 as released: no prefix, no head, the causal mask as a buffer, old config fields."""

import json

import pytest
import torch
from decoder_family import DecoderFamily
from hf_case import Case, stored, tokens_of
from safetensors.torch import load_file, save_file
from tiny import relative_l2
from transformers import GPT2LMHeadModel

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained

# Of families that derive the width of a head, and have a key and a value for each query.
ALIKE = ("num_key_value_heads", "head_dim")

CASES = {
    "gpt2": Case("GPT2", {"n_inner": 56}, "GPT2LMHeadModel", without=(*ALIKE, "intermediate_size")),
    "gpt2/scaled-by-depth": Case(
        "GPT2",
        {"scale_attn_by_inverse_layer_idx": True},
        "GPT2LMHeadModel",
        without=(*ALIKE, "intermediate_size"),
    ),
    "gpt2/unscaled-untied-relu": Case(
        "GPT2",
        {"scale_attn_weights": False, "tie_word_embeddings": False, "activation_function": "relu"},
        "GPT2LMHeadModel",
        without=(*ALIKE, "intermediate_size"),
    ),
}

# Of `gpt2` on the hub.
RELEASED = {
    "n_ctx": 512,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "summary_type": "cls_index",
    "summary_first_dropout": 0.1,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "n_inner": None,
}


@pytest.fixture
def released(tmp_path):
    """A model, and a folder with its tensors without prefix but with masks."""
    original = CASES["gpt2/unscaled-untied-relu"].build()
    original.config.tie_word_embeddings = True
    original.tie_weights()
    original.save_pretrained(tmp_path)
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if name != "lm_head.weight"
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    edit(tmp_path, **RELEASED)
    return original, tmp_path


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_names_without_a_prefix_are_written_without_it(released, tmp_path):
    original, folder = released
    model = load_pretrained(folder)
    tokens = tokens_of(original)
    with torch.no_grad():
        expected = original(input_ids=torch.tensor(tokens)).logits
    assert relative_l2(model(tokens).logits, expected) <= 1e-5
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(folder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written[name] for name in RELEASED} == RELEASED
    again, info = GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(again.lm_head.weight, original.transformer.wte.weight)


def test_masks_are_ignored_but_biases_are_required(released):
    original, folder = released
    file = folder / "model.safetensors"
    mask = torch.tril(torch.ones(512, 512, dtype=torch.bool))[None, None]
    masks = {f"h.{i}.attn.bias": mask.clone() for i in range(4)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(4)}
    tensors = load_file(file)
    save_file(tensors | masks, file)
    tokens = tokens_of(original)
    with torch.no_grad():
        expected = original(input_ids=torch.tensor(tokens)).logits
    assert relative_l2(load_pretrained(folder)(tokens).logits, expected) <= 1e-5
    del tensors["h.1.attn.c_attn.bias"]
    save_file(tensors | masks, file)
    with pytest.raises(CheckpointError, match=r"h.1.attn.c_attn.bias\S* is missing"):
        load_pretrained(folder)


def test_unsupported_options_are_refused(released):
    _, folder = released
    edit(folder, add_cross_attention=True)
    with pytest.raises(CheckpointError, match="add_cross_attention=True is not supported"):
        load_pretrained(folder)


class TestGpt2(DecoderFamily):
    cases = CASES
