"""Places of kernels in stored tensors: fused, transposed and those of experts."""

import numpy as np
import pytest
from tiny import random_model

from jaxllm.config import ExpertsConfig, LayerKind
from jaxllm.interop.adapters.places import find_places, group_places, module_names, module_rules


def test_a_kernel_is_a_matrix_of_inputs_and_outputs():
    model = random_model()
    _, rules = module_rules(model)
    places = group_places(find_places(model, rules, ["layers.0:3.attn.o_proj"]))
    assert list(places) == [f"model.layers.{i}.self_attn.o_proj.weight" for i in range(3)]
    (place,) = places["model.layers.1.self_attn.o_proj.weight"]
    assert (place.position, place.shape, place.input_dim) == ((1,), (64, 32), 1)
    np.testing.assert_array_equal(place.inputs, np.arange(64))
    np.testing.assert_array_equal(place.outputs, np.arange(32))
    assert "model.layers.2.mlp.up_proj" in module_names(rules)


@pytest.mark.exhaustive
def test_experts_share_a_tensor_and_gate_and_up_its_rows():
    model = random_model(
        experts=ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24, normalize=True),
        pattern=(LayerKind(mlp="experts"),),
    )
    _, rules = module_rules(model)
    names = ["layers.0:3.mlp.gate_proj", "layers.0:3.mlp.up_proj"]
    places = group_places(find_places(model, rules, names))
    own = places["model.layers.0.mlp.experts.gate_up_proj"]
    assert len(own) == 8
    assert {place.expert for place in own} == {0, 1, 2, 3}
    rows = {place.projection.rpartition(".")[2]: place.outputs for place in own}
    np.testing.assert_array_equal(rows["gate_proj"], np.arange(24))
    np.testing.assert_array_equal(rows["up_proj"], np.arange(24, 48))
