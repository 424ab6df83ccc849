"""Operations of transformers: a small Llama, an exported folder, greedy continuations."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from jaxllm.errors import MissingPackageError
from jaxllm.interop.reference.transformers_models import (
    generate_greedily,
    open_exported,
    require_torch,
    save_random_llama,
)

FIELDS = {
    **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64},
}


@pytest.fixture
def folder(tmp_path):
    save_random_llama(FIELDS, tmp_path / "llama", seed=3)
    return tmp_path / "llama"


@pytest.mark.parametrize(("seed", "is_same"), [(3, True), (4, False)])
def test_a_seed_gives_the_same_llama(seed, is_same, folder, tmp_path):
    save_random_llama(FIELDS, tmp_path / "again", seed=seed)
    ours, again = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    name = "model.embed_tokens.weight"
    assert torch.equal(ours[name], again[name]) == is_same


def test_a_sound_folder_lacks_nothing(folder):
    model, complaints = open_exported(folder)
    assert complaints == {"missing_keys": [], "unexpected_keys": []}
    assert not model.training
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(model.model.norm.weight, stored["model.norm.weight"])


def test_what_is_missing_and_unexpected_is_named(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, file, {"format": "pt"})
    _, complaints = open_exported(folder)
    assert complaints["missing_keys"] == ["model.norm.weight"]
    assert complaints["unexpected_keys"] == ["model.layers.0.mlp.extra.weight"]


def test_greedy_tokens_are_the_most_likely_ones(folder):
    """Also after token 0, which stands for padding elsewhere."""
    model, _ = open_exported(folder)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    prompts = [[0, 5, 0, 7], [2, 9]]
    found = generate_greedily(model, prompts, 6)
    for prompt, continued in zip(prompts, found, strict=True):
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(6):
                logits = model(torch.tensor([tokens]), use_cache=False).logits
                tokens.append(int(logits[0, -1].argmax()))
        assert continued == tokens[len(prompt) :]


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_what_is_not_installed_is_named(name, monkeypatch):
    assert [module.__name__ for module in require_torch()] == ["torch", "transformers"]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=rf"{name} is not installed.*jaxllm\[torch\]"):
        require_torch()
