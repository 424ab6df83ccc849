"""The family and the config of a module are found wherever it has them."""

import dataclasses

import pytest
import torch
from encoder_decoder_cases import CASES

from jaxllm.errors import UserError
from jaxllm.interop import CheckpointError
from jaxllm.interop.in_memory.module_config import (
    config_fields,
    family_of,
    find_config,
    open_in_memory,
    unwrap_module,
)

# Fields of a GGUF file, and of a config of transformers.
LLAMA_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}


def test_a_module_has_the_fields_of_its_config_file(make_llama, tmp_path):
    module = make_llama()
    family, fields, folder = find_config(module, None, None)
    assert (family.name, folder) == ("llama", "")
    assert fields["architectures"] == ["LlamaForCausalLM"]
    module.config.name_or_path = str(tmp_path)
    assert find_config(module, None, None)[2] == str(tmp_path)


def test_the_start_token_of_the_generation_config_comes_first():
    module = CASES["t5"].build()
    module.generation_config.decoder_start_token_id = 7
    assert find_config(module, None, None)[1]["decoder_start_token_id"] == 7


def test_wrappers_are_taken_off(make_llama):
    class Wrapper(torch.nn.Module):
        def __init__(self, **parts):
            super().__init__()
            for name, part in parts.items():
                self.add_module(name, part)

    module = make_llama()
    assert unwrap_module(Wrapper(module=Wrapper(_orig_mod=module))) is module
    beside = Wrapper(module=module, head=torch.nn.Linear(1, 1))
    assert unwrap_module(beside) is beside  # more than a wrapper
    with pytest.raises(UserError, match="a int is neither a PyTorch module nor a state dict"):
        unwrap_module(3)


def test_a_config_may_be_a_dataclass_or_a_mapping():
    @dataclasses.dataclass
    class Config:
        width: int = 3

    assert config_fields(Config()) == config_fields({"width": 3}) == {"width": 3}
    with pytest.raises(UserError, match="is not a config of transformers, the fields of its"):
        config_fields(Config)


def test_a_config_may_be_that_of_a_gguf_file(make_llama, tmp_path):
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    module, file = make_llama(), tmp_path / "model.gguf"
    sizes = {name: getattr(module.config, target) for name, target in LLAMA_FIELDS.items()}
    write_gguf(file, module, "llama", sizes)
    family, fields, place = find_config(None, str(file), None)
    assert (family.name, place) == ("llama", str(file))
    assert {target: fields[target] for target in LLAMA_FIELDS.values()} == {
        target: getattr(module.config, target) for target in LLAMA_FIELDS.values()
    }


def test_families_are_found_by_their_model_type():
    assert family_of({"model_type": "tlama"}, "here").name == "tlama"
    assert family_of({"dim": 8}, "params.json").name == "meta-llama"
    with pytest.raises(CheckpointError, match="here: model_type 'mamba' is not supported"):
        family_of({"model_type": "mamba"}, "here")


def test_a_tied_module_has_each_tensor_once(make_llama):
    tied = open_in_memory(make_llama(tie_word_embeddings=True)).checkpoint.tensors
    untied = open_in_memory(make_llama()).checkpoint.tensors
    assert untied.keys() - tied.keys() == {"lm_head.weight"}


def test_a_base_model_keeps_its_names(make_llama):
    opened = open_in_memory(make_llama(tie_word_embeddings=True).model)
    assert opened.checkpoint.tensors["norm.weight"].name == "norm.weight"
