"""Adapters read, call and record references of every kind in the same way."""

import numpy as np
import pytest
import source_cases
import torch
from hf_cases import CASES

from jaxllm.interop.parity.alignment.adapters import adapter_of, outputs_of
from jaxllm.interop.parity.alignment.inputs import Inputs


@pytest.fixture(scope="module")
def llama(make_llama):
    return make_llama(num_hidden_layers=1).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of a source system."""
    return source_cases.write("llm", tmp_path_factory.mktemp("llm")).eval()


def test_outputs_of_returns_the_output_of_the_reference(llama, source, tokens):
    given = torch.as_tensor(tokens[:1, :16])
    with torch.no_grad():
        assert torch.equal(outputs_of(llama, Inputs(tokens[:1, :16])), llama(given).logits)
        ours = outputs_of(source, Inputs(tokens[:1, :16] % 50))
    assert ours.shape[:2] == (1, 16)


def test_given_parameters_replace_the_modules_own(llama, tokens):
    zeros = {"lm_head.weight": torch.zeros_like(llama.lm_head.weight)}
    with torch.no_grad():
        assert not outputs_of(llama, Inputs(tokens[:1, :8]), zeros).any()
        assert outputs_of(llama, Inputs(tokens[:1, :8])).any()


def test_fields_and_family_of_a_reference(llama, source):
    assert adapter_of(llama).fields(llama)["hidden_size"] == 32
    assert adapter_of(llama).family(llama).model_type == "llama"
    assert adapter_of(source).fields(source) == source.fields
    assert adapter_of(source).family(source).model_type == source.fields["model_type"]


def test_an_unknown_module_has_no_family():
    module = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="a Linear, which is neither a model of transformers nor"):
        adapter_of(module).family(module)
    module.fields = {"model_type": "strange"}
    with pytest.raises(ValueError, match="model_type='strange' of the reference is not a known"):
        adapter_of(module).family(module)


def test_attention_is_recorded_and_can_be_replaced(llama, tokens):
    shapes = {}

    def keep(name, x):
        shapes[name] = tuple((x[0] if name.endswith("@mixed") else x).shape)
        return torch.zeros_like(x) if name.endswith("@value") else x

    adapter = adapter_of(llama)
    plain = outputs_of(llama, Inputs(tokens[:1, :8]))
    with adapter.record_attention(llama, keep):
        watched = outputs_of(llama, Inputs(tokens[:1, :8]))
    attention = "model.layers.0.self_attn"
    assert shapes == {
        f"{attention}@query": (1, 4, 8, 16),
        f"{attention}@key": (1, 2, 8, 16),
        f"{attention}@value": (1, 2, 8, 16),
        f"{attention}@mixed": (1, 8, 4, 16),
    }
    assert not torch.equal(watched, plain)
    assert torch.equal(outputs_of(llama, Inputs(tokens[:1, :8])), plain)


def test_plain_attention_is_undone_on_exit():
    model = CASES["llama"].build()
    model.set_attn_implementation("sdpa")
    with adapter_of(model).plain_attention(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


def test_the_source_is_the_encoder_input(llama):
    given = dict.fromkeys(("source", "target", "source_mask"), np.zeros(1))
    _, options = adapter_of(llama).arguments(llama, given)
    assert options.keys() == {"input_ids", "attention_mask", "decoder_input_ids", "use_cache"}
