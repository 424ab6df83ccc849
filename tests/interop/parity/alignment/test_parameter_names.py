"""The reference's tensors are converted to JAX names and layouts."""

import chex
import numpy as np
import pytest
from broken_models import arrays_of
from hf_cases import CASES

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity.alignment.parameter_names import (
    Imported,
    decayed,
    mismatches,
    our_names,
    read_config,
    split_fused,
    table_of,
    tensors_of,
)
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters, stacked_layers


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def pair(request, tmp_path_factory):
    """A reference and its JAX model; gpt2 fuses tensors, gpt_neox names its head differently."""
    original, folder = CASES[request.param].build(), tmp_path_factory.mktemp("model")
    original.save_pretrained(folder)
    return original, with_scanned_layers(load_pretrained(folder, dtype="float32"), False)


def bound(reference, model):
    return table_of(reference, model).bound(stacked_layers(model))


def test_imported_tensors_equal_the_models_parameters(pair):
    reference, model = pair
    found = dict(Imported(bound(*pair), tensors_of(reference)))
    chex.assert_trees_all_equal(found, arrays_of(model))


def test_every_stored_tensor_maps_to_parameters(pair):
    names = our_names(bound(*pair))
    assert {ours for group in names.values() for ours in group} == named_parameters(pair[1]).keys()
    assert names.keys() <= pair[0].state_dict().keys()


def test_kernels_and_embeddings_decay(pair):
    names = our_names(bound(*pair))
    kinds = {stored: ours[0].rpartition(".")[2] for stored, ours in names.items()}
    found = decayed(bound(*pair), pair[1])
    assert found == {name for name, kind in kinds.items() if kind in ("kernel", "embedding")}
    assert {"scale"} <= set(kinds.values())


def test_missing_and_wrongly_shaped_tensors_are_described(pair):
    reference, _ = pair
    rules = bound(*pair)
    tensors = split_fused(rules, tensors_of(reference))
    assert not [problem for rule in rules for problem in mismatches(rule, tensors)]
    name, shape = next(iter(rules[0].stored()))
    del tensors[name]
    assert list(mismatches(rules[0], tensors)) == [f"the reference has no {name}"]
    tensors[name] = np.zeros((*shape, 2))
    [problem] = mismatches(rules[0], tensors)
    assert problem == f"{name} has shape {(*shape, 2)} in the reference, {shape} in the model"


def test_a_fused_tensor_is_split_by_rows(pair):
    reference, _ = pair
    whole = tensors_of(reference)
    split = split_fused(bound(*pair), whole)
    assert sum(x.size for x in split.values()) == sum(x.size for x in whole.values())


def test_a_known_config_is_read_without_problems(pair):
    reference, _ = pair
    values, _, problems = read_config(reference)
    assert (values["vocab_size"], problems) == (reference.config.vocab_size, [])
