"""Wrong sizes are reported by the field of the config file, once for all layers."""

import json
from functools import partial

import pytest
from tiny import random_model

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained
from jaxllm.interop.loading.checkpoint import open_checkpoint
from jaxllm.interop.loading.plan import analyze_checkpoint


@pytest.fixture
def folder(tmp_path):
    save_pretrained(random_model(num_layers=5, mlp_dim=24, vocab_size=40), tmp_path, format="hf")
    return tmp_path


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("field", "wrong", "right", "tensors"),
    [
        ("num_key_value_heads", 4, 2, ("k_proj", "v_proj")),
        ("intermediate_size", 28, 24, ("gate_proj", "up_proj", "down_proj")),
        ("vocab_size", 41, 40, ("embed_tokens",)),
    ],
)
def test_one_wrong_field_is_one_problem(folder, field, wrong, right, tensors):
    change(folder, **{field: wrong})
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{field} is {wrong} in the config, but {right} by the shapes of ")
    for name in tensors:
        layers = "" if name == "embed_tokens" else "layers.{0..4}."
        assert layers in problem
        assert name in problem


def test_a_field_is_found_by_what_it_changes(folder):
    """Three other fields have the value 4 as well."""
    change(folder, num_key_value_heads=4)
    checkpoint = open_checkpoint(folder)
    table = analyze_checkpoint(checkpoint).table
    find = partial(checkpoint.family.find_field, checkpoint.config, checkpoint.tensors, table)
    assert find("K", 2) == "num_key_value_heads"
    assert find("R", 7) is None
