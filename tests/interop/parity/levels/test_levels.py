"""Every level passes for every family and changes neither side."""

import json

import chex
import numpy as np
import pytest
import torch
from broken_models import arrays_of, changed
from hf_cases import CASES, tokens_of
from tiers import examples

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.levels.table import LEVELS

FAMILIES = [name for name in CASES if "/" not in name]
# Families for the levels that compile a training step or a decoder: the others differ
# from these only in what the quick levels compare.
SLOW = ("llama", "mixtral")
QUICK = ("weights", "config", "logits", "layers")
SHORT = Recipe(steps=3)


def both(name, folder):
    """A model of transformers and the JAX model with its weights."""
    original = CASES[name].build()
    original.save_pretrained(folder)
    return original, load_pretrained(folder, dtype="float32")


@pytest.mark.cases(1, exhaustive=3)
@pytest.mark.parametrize("name", examples(FAMILIES, "gpt2"))
def test_every_family_passes(name, tmp_path):
    original, model = both(name, tmp_path)
    # Windows and chunks end within 128 tokens; other tests cover longer inputs.
    tokens = tokens_of(original, batch_size=1)[:, :128]
    levels = tuple(LEVELS) if name in SLOW else QUICK
    report = compare(original, model, tokens, levels=levels, recipe=SHORT)
    assert report.ok, report.first_divergence
    assert report.first_divergence is None
    assert report.verdicts == dict.fromkeys(levels, True)
    assert all(report.rows[level] for level in levels)
    assert report.flips == (), "a tie between experts: errors after it are not rounding errors"
    if name in SLOW:
        assert {row.parameter for row in report.gradients} >= {"kernel", "scale"}


@pytest.mark.exhaustive
def test_the_first_divergence_is_at_the_level_of_the_cause(pair, short):
    llama, model = pair
    broken = changed(model, "final_norm.scale", lambda scale: scale + 0.1)
    report = compare(llama, broken, short, levels=("layers", "weights", "config"))
    assert list(report.verdicts) == ["layers", "weights", "config"]
    assert [report.verdicts[level] for level in ("weights", "layers")] == [False] * 2
    assert report.first_divergence == next(row for row in report.weights if not row.ok)
    assert report.first_divergence.path == "final_norm"
    assert report.first_divergence.hint is None


@pytest.mark.exhaustive
def test_compare_changes_neither_side(make_llama, convert, short, tmp_path):
    llama = make_llama(num_hidden_layers=1)
    model = convert(llama)
    weights = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    arrays = {name: np.asarray(array) for name, array in arrays_of(model).items()}
    config, generation = llama.config.to_dict(), llama.generation_config
    llama.train()
    report = compare(llama, model, short, recipe=SHORT)
    assert report.ok, report.first_divergence
    assert all(torch.equal(weights[name], t) for name, t in llama.state_dict().items())
    assert all(parameter.grad is None for parameter in llama.parameters())
    assert all(module.training for module in llama.modules())
    assert not any(module._forward_hooks for module in llama.modules())
    assert (llama.config.to_dict(), llama.generation_config) == (config, generation)
    chex.assert_trees_all_equal(arrays_of(model), arrays)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {len(data[name]) > 0 for name in ("config", "weights", "step", "curve")} == {True}
    report.write_html(tmp_path / "parity.html")
    page = (tmp_path / "parity.html").read_text()
    for title in ("Level by level", "Gradients", "One step", "Training", "Generation"):
        assert title in page
