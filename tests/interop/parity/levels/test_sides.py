"""Sides of a comparison: derived values are computed once."""

import dataclasses

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.levels.sides import Comparison, JaxSide
from jaxllm.params import named_parameters


def test_the_unstacked_model_is_computed_once(pair):
    _, model = pair
    ours = JaxSide(model=model, levels=("weights",))
    assert "layers.1.mlp.up_proj.kernel" in named_parameters(ours.unstacked)
    assert "layers.0:2.mlp.up_proj.kernel" in named_parameters(ours.model)
    assert ours.unstacked is ours.unstacked


def test_the_rules_cover_the_state_dict_of_the_reference(pair, short):
    llama, model = pair
    both = Comparison(reference=llama, model=model, inputs=Inputs(short), levels=())
    stored = {name for bound in both.rules for name, _ in bound.stored()}
    assert stored == set(llama.state_dict())
    assert both.rules is both.rules
    assert both.recipe.steps == 20
    other = dataclasses.replace(both, levels=("logits",))
    assert other.levels == ("logits",)
    assert other.table is not both.table
