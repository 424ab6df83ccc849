"""Inputs and outputs of transformers' delta rules are recorded, and may be replaced."""

import pytest
import torch
from hf_cases import CASES

from jaxllm.interop.parity.alignment.references.recurrences import RULE, record_delta_rules

TOKENS = torch.arange(7)[None]
PREFIX = "model.layers.0.linear_attn@"


@pytest.fixture(scope="module")
def reference():
    return CASES["qwen3_next"].build()


def test_inputs_and_outputs_have_the_names_of_their_layers(reference):
    shapes = {}
    with record_delta_rules(reference, lambda name, x: shapes.setdefault(name, x.shape) and x):
        reference(input_ids=TOKENS)
    assert {name.partition("@")[0] for name in shapes} == {
        f"model.layers.{i}.linear_attn" for i in (0, 1, 2)
    }
    own = {name[len(PREFIX) :]: tuple(x) for name, x in shapes.items() if name.startswith(PREFIX)}
    assert own == {
        **{"query": (1, 3, 7, 8), "key": (1, 3, 7, 8), "value": (1, 6, 7, 10)},
        **{"decay": (1, 6, 7), "beta": (1, 6, 7), "mixed": (1, 7, 6, 10)},
    }


def test_the_forward_pass_continues_with_what_is_returned(reference):
    with torch.no_grad():
        before = reference(input_ids=TOKENS).logits
        changed = lambda name, x: 0 * x if name.endswith("@beta") else x  # noqa: E731
        with record_delta_rules(reference, changed):
            without = reference(input_ids=TOKENS).logits
        after = reference(input_ids=TOKENS).logits
    assert not torch.allclose(without, before)
    assert torch.equal(after, before)
    assert hasattr(__import__(type(reference).__module__, fromlist=[RULE]), RULE)


def test_models_without_one_are_left_as_they_are():
    reference = CASES["qwen3"].build()
    with record_delta_rules(reference, lambda name, x: pytest.fail(name)):
        reference(input_ids=TOKENS)
