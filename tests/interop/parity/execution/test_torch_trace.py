"""Tracing the reference: modules, attention, replaced outputs, restored state."""

import numpy as np
import pytest
import torch

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.execution.torch_trace import prepared, trace_reference
from jaxllm.interop.parity.report.activation_rows import LOGITS

ATTENTION = "model.layers.0.self_attn"
NAMES = ["model.embed_tokens", f"{ATTENTION}@query", f"{ATTENTION}@probs", ATTENTION, "model.norm"]


@pytest.fixture(scope="module")
def llama(make_llama):
    return make_llama(num_hidden_layers=1)


@pytest.fixture
def inputs(tokens):
    return Inputs(tokens[:1, :12])


def test_modules_and_attention_are_recorded_in_execution_order(llama, inputs):
    outputs = trace_reference(llama, inputs, NAMES)
    assert outputs.keys() == {*NAMES, LOGITS}
    assert next(iter(outputs)) == "model.embed_tokens"
    assert list(outputs)[-1] == LOGITS
    weight = llama.model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(outputs["model.embed_tokens"], weight[inputs.target])
    np.testing.assert_allclose(outputs[f"{ATTENTION}@probs"].sum(-1), 1, rtol=1e-5)
    head = llama.lm_head.weight.detach().numpy()
    np.testing.assert_allclose(
        outputs[LOGITS], outputs["model.norm"] @ head.T, rtol=1e-4, atol=1e-5
    )


def test_given_outputs_replace_the_activations_own(llama, inputs):
    plain = trace_reference(llama, inputs, NAMES)
    given = {"model.norm": np.zeros_like(plain["model.norm"])}
    forced = trace_reference(llama, inputs, NAMES, given)
    assert not forced[LOGITS].any()
    np.testing.assert_array_equal(forced["model.norm"], plain["model.norm"])


def test_only_what_is_named_is_recorded_and_replaced(llama, inputs):
    # Not queries, keys and values: the error of attention alone is that of all it computes.
    assert list(trace_reference(llama, inputs, [ATTENTION])) == [ATTENTION, LOGITS]
    given = {f"{ATTENTION}@mixed": np.zeros((1, 12, 1, 1), np.float32)}
    assert trace_reference(llama, inputs, [ATTENTION], given)[ATTENTION].any()


def test_a_prepared_reference_is_restored(llama):
    llama.train()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with prepared(llama):
            assert not any(module.training for module in llama.modules())
            assert torch.get_float32_matmul_precision() == "highest"
        assert all(module.training for module in llama.modules())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
