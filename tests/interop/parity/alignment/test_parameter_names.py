"""The reference's tensors go by our names and lie as ours do."""

import numpy as np
import pytest
from hf_cases import CASES

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity.alignment.parameter_names import (
    decayed,
    imported,
    our_names,
    read_config,
    split_fused,
    table_of,
    tensors_of,
    unfit,
)
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters, stacked_layers


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request, tmp_path_factory):
    """A reference and ours; gpt2 stores queries, keys and values in one tensor."""
    original, folder = CASES[request.param].build(), tmp_path_factory.mktemp("model")
    original.save_pretrained(folder)
    return original, with_scanned_layers(load_pretrained(folder, dtype="float32"), False)


def bound(reference, model):
    return table_of(reference, model).bound(stacked_layers(model))


def test_imported_tensors_are_our_parameters(pair):
    reference, model = pair
    found = imported(bound(*pair), tensors_of(reference))
    ours = named_parameters(model)
    assert found.keys() == ours.keys()
    for name, variable in ours.items():
        np.testing.assert_array_equal(found[name], variable.get_value())


def test_every_stored_tensor_has_our_names(pair):
    names = our_names(bound(*pair))
    assert {ours for group in names.values() for ours in group} == named_parameters(pair[1]).keys()
    assert names.keys() <= pair[0].state_dict().keys()


def test_kernels_and_embeddings_decay(pair):
    names = our_names(bound(*pair))
    kinds = {stored: ours[0].rpartition(".")[2] for stored, ours in names.items()}
    assert decayed(bound(*pair)) == {n for n, k in kinds.items() if k in ("kernel", "embedding")}
    assert {"scale"} <= set(kinds.values())


def test_a_missing_and_a_larger_tensor_do_not_fit(pair):
    reference, _ = pair
    rules = bound(*pair)
    tensors = split_fused(rules, tensors_of(reference))
    assert not [problem for rule in rules for problem in unfit(rule, tensors)]
    name, shape = next(iter(rules[0].stored()))
    del tensors[name]
    assert list(unfit(rules[0], tensors)) == [f"the reference has no {name}"]
    tensors[name] = np.zeros((*shape, 2))
    [problem] = unfit(rules[0], tensors)
    assert problem == f"{name} has shape {(*shape, 2)} in the reference, {shape} in the model"


def test_a_fused_tensor_is_split_by_rows(pair):
    reference, _ = pair
    whole = tensors_of(reference)
    split = split_fused(bound(*pair), whole)
    assert sum(x.size for x in split.values()) == sum(x.size for x in whole.values())


def test_what_a_config_says_beyond_ours_is_a_problem(pair):
    reference, _ = pair
    values, _, problems = read_config(reference)
    assert (values["vocab_size"], problems) == (reference.config.vocab_size, [])
