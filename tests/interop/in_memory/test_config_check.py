"""A module whose config computes something else is not filled."""

import pytest
import torch
from encoder_decoder_cases import CASES

from jaxllm.interop import CheckpointError, from_torch, to_torch


def test_fields_that_change_numbers_must_be_equal(make_llama):
    """Other fields, such as the longest length, may differ."""
    model = from_torch(make_llama())
    free = {"max_position_embeddings": 99, "initializer_range": 0.5, "use_cache": False}
    module = make_llama(seed=5, **free)
    to_torch(model, into=module)
    assert torch.equal(module.lm_head.weight, make_llama().lm_head.weight)
    other = make_llama(seed=5, rms_norm_eps=1e-3, rope_theta=777.0)
    with pytest.raises(CheckpointError) as raised:
        to_torch(model, into=other)
    assert str(raised.value).splitlines() == [
        "LlamaForCausalLM:",
        "  norms.eps is 0.001 in the module's config, 1e-06 in the model's",
        "  rope.theta is 777.0 in the module's config, 10000.0 in the model's",
    ]
    assert torch.equal(other.lm_head.weight, make_llama(seed=5).lm_head.weight)


def test_encoders_and_decoders_are_compared():
    model, module = from_torch(CASES["t5"].build()), CASES["t5"].build()
    module.config.relative_attention_max_distance = 77
    with pytest.raises(CheckpointError, match=r"encoder.positions.relative is .*77") as raised:
        to_torch(model, into=module)
    assert "decoder.positions.relative is" in str(raised.value)


def test_a_config_that_is_not_understood_is_named(make_llama):
    module = make_llama()
    module.config.hidden_act = "tanh"
    with pytest.raises(CheckpointError, match="hidden_act='tanh'"):
        to_torch(from_torch(make_llama()), into=module)
