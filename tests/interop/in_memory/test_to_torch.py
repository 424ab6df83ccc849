"""State dicts go there and back with no differing bit, and modules are filled in place."""

import logging

import encoder_decoder_cases
import hf_cases
import numpy as np
import pytest
import source_cases
import torch
import transformers
from hf_cases import randomize
from tiers import examples
from tiny import random_model

from jaxllm.errors import UserError
from jaxllm.interop import CheckpointError, from_torch, load_pretrained, to_torch
from jaxllm.interop.families import FAMILIES
from jaxllm.train import make_mesh

HUGGING_FACE = hf_cases.CASES | encoder_decoder_cases.CASES
NAMES = [*HUGGING_FACE, *source_cases.CASES]
# Fused and tied tensors, fused experts, a head with another name in files, buffers, replicas.
QUICK = ("phi3/window-tied", "mixtral", "gpt_neox", "bart", "nima-gpt", "tlama")


def build(name: str, seed: int = 0) -> torch.nn.Module:
    if name in HUGGING_FACE:
        module = HUGGING_FACE[name].build()
        return randomize(module, seed) if seed else module
    fields = {"model_type": name.partition("/")[0], **source_cases.CASES[name]}
    [family] = [family for family in FAMILIES if family.model_type == fields["model_type"]]
    return randomize(family.reference(fields), seed)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def differing(one: dict, other: dict) -> list[str]:
    assert list(one) == list(other)
    return [
        name
        for name in one
        if (one[name].dtype, one[name].shape) != (other[name].dtype, other[name].shape)
        or not torch.equal(bits(one[name]), bits(other[name]))
    ]


def tied_groups(state: dict) -> set[frozenset[str]]:
    places: dict[int, set[str]] = {}
    for name, tensor in state.items():
        places.setdefault(tensor.data_ptr(), set()).add(name)
    return {frozenset(names) for names in places.values() if len(names) > 1}


@pytest.mark.cases(4, exhaustive=10)
@pytest.mark.parametrize("name", examples(NAMES, *QUICK))
def test_a_state_dict_goes_there_and_back(name):
    module = build(name)
    own, model = module.state_dict(), from_torch(module)
    state = to_torch(model)
    assert differing(state, own) == []
    assert tied_groups(state) == tied_groups(own)
    other = build(name, seed=7)
    assert len(differing(other.state_dict(), own)) > len(own) / 2
    other.load_state_dict(state, strict=True)
    assert differing(other.state_dict(), own) == []
    filled = build(name, seed=8)
    places = {name: tensor.data_ptr() for name, tensor in filled.state_dict().items()}
    assert to_torch(model, into=filled) is filled
    assert differing(filled.state_dict(), own) == []
    assert {name: t.data_ptr() for name, t in filled.state_dict().items()} == places


def test_a_model_on_a_mesh_gives_the_same_state_dict(make_llama):
    module = make_llama().bfloat16()
    model = from_torch(module, mesh=make_mesh(fsdp=2, tensor=2, data=2))
    assert differing(to_torch(model, max_ram="4KiB"), module.state_dict()) == []


def test_a_model_from_files_and_a_new_one_have_a_state_dict(make_llama, tmp_path):
    module = make_llama()
    module.save_pretrained(tmp_path)
    assert differing(to_torch(load_pretrained(tmp_path)), module.state_dict()) == []
    new = random_model()
    state = to_torch(new)
    np.testing.assert_array_equal(
        state["model.embed_tokens.weight"].numpy(), np.asarray(new.embed.embedding)
    )
    assert differing(to_torch(from_torch(state, config=_config_of(new))), state) == []


def _config_of(model) -> dict:
    from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA

    return LLAMA.write_config(model.config, {})


def test_metas_names_have_no_prefix():
    state = to_torch(random_model(head_dim=8), format="meta")
    assert "layers.0.attention.wq.weight" in state
    assert not any("/" in name for name in state)
    with pytest.raises(CheckpointError, match="format='native' has no state dict"):
        to_torch(random_model(), format="native")


def test_the_state_dict_shares_no_memory_with_the_model(make_llama):
    module = make_llama()
    model = from_torch(module)
    before = np.array(model.embed.embedding)
    for tensor in to_torch(model).values():
        tensor.zero_()
    np.testing.assert_array_equal(np.asarray(model.embed.embedding), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_module_keeps_its_dtype_and_memory(dtype, make_llama):
    """It is filled with numbers rounded to nearest; autograd notices that they changed."""
    model, module = from_torch(make_llama()), make_llama(seed=5).to(dtype)
    versions = [parameter._version for parameter in module.parameters()]
    to_torch(model, into=module)
    expected = make_llama().to(dtype).state_dict()
    assert differing(module.state_dict(), expected) == []
    assert all(p._version > v for p, v in zip(module.parameters(), versions, strict=True))


def test_a_module_of_other_names_and_shapes_is_refused_untouched(make_llama):
    model = from_torch(make_llama())
    module = make_llama(seed=5, intermediate_size=60, attention_bias=True)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        to_torch(model, into=module)
    text = str(raised.value)
    assert text.startswith("LlamaForCausalLM:\n")
    assert "model.layers.{0..1}.self_attn.q_proj.bias is in the module, but not in the mo" in text
    assert "model.layers.{0..1}.mlp.up_proj.weight has shape [60, 48] in the module, [56" in text
    assert differing(module.state_dict(), before) == []


def test_a_module_without_a_config_is_named_with_the_part_that_has_one(make_llama):
    model, trainer = from_torch(make_llama()), torch.nn.ModuleDict({"net": make_llama()})
    message = "into=ModuleDict has no config, but its part net has one: give a module of trans"
    with pytest.raises(UserError, match=message):
        to_torch(model, into=trainer)


def test_a_module_whose_tensors_are_tied_otherwise_is_refused(make_llama):
    untied, tied = make_llama(), make_llama(tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head.weight are one tensor in the module, but"):
        to_torch(from_torch(untied), into=tied)
    to_torch(from_torch(tied), into=untied)
    assert torch.equal(untied.lm_head.weight, untied.model.embed_tokens.weight)
    assert torch.equal(untied.lm_head.weight, tied.lm_head.weight)


def test_numbers_beyond_the_range_of_the_module_are_all_named(make_llama):
    source, module = make_llama(), make_llama(seed=5).half()
    with torch.no_grad():
        source.model.norm.weight[:3] = 1e6
        source.lm_head.weight[0, 0] = -1e7
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        to_torch(from_torch(source), into=module)
    text = str(raised.value)
    assert "overflow: 4 beyond 65504, the largest number of float16" in text
    assert "model.norm.weight: 3 of 48, up to 1e+06" in text
    assert "lm_head.weight: 1 of 4,608, up to 1e+07" in text
    assert differing(module.state_dict(), before) == []


def test_numbers_that_become_zero_in_the_module_are_counted(make_llama, caplog):
    source, module = make_llama(), make_llama(seed=5).half()
    with torch.no_grad():
        source.model.norm.weight[:3] = 1e-9
    to_torch(from_torch(source), into=module)
    assert "underflow: " in caplog.text
    assert "become zero in float16" in caplog.text
    assert "model.norm.weight: 3 of 48" in caplog.text


def test_a_meta_module_cannot_be_filled(make_llama):
    with torch.device("meta"):
        module = type(make_llama())(make_llama().config)
    with pytest.raises(CheckpointError, match=r"q_proj.weight is on the meta device"):
        to_torch(from_torch(make_llama()), into=module)


def test_a_class_that_ties_what_the_model_does_not_is_warned_about(caplog):
    """transformers 5 builds every T5 with a tied head, whatever its checkpoint holds."""
    with caplog.at_level(logging.WARNING):
        to_torch(from_torch(build("t5/v1.1")))
    assert "lm_head.weight are one tensor in the module, but not in the model" in caplog.text


def test_a_classifiers_head_stays_in_its_module():
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, pad_token_id=0)
    module, other = (transformers.LlamaForSequenceClassification(config) for _ in range(2))
    model, head = from_torch(module), other.score.weight.clone()
    with pytest.raises(CheckpointError, match=r"score\.weight .* give the module as into="):
        to_torch(model)
    assert to_torch(model, into=other) is other
    expected = module.state_dict() | {"score.weight": head}
    assert all(torch.equal(tensor, expected[n]) for n, tensor in other.state_dict().items())
