"""Every level passes for every family, and each catches what it is there for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hf_cases import CASES, tokens_of
from mutants.training import adamw

from jaxllm.config import with_fields
from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import Inputs, compare
from jaxllm.interop.parity.alignment.router_flips import flips
from jaxllm.interop.parity.comparison import LEVELS
from jaxllm.interop.parity.execution import jax_train
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.levels import generation
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters, with_arrays
from jaxllm.train.optimizers.adamw import OptimizerConfig, make_optimizer

FAMILIES = [name for name in CASES if "/" not in name]
# Of one kind each, for the levels that compile a training step or a decoder: the others differ
# from these in what the levels before them show.
SLOW = ("llama", "mixtral")
QUICK = ("weights", "config", "logits", "layers")
SHORT = Recipe(steps=3)


def both(name, folder):
    """A model of transformers, and ours with its weights."""
    original = CASES[name].build()
    original.save_pretrained(folder)
    return original, load_pretrained(folder, dtype="float32")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name, tmp_path):
    original, model = both(name, tmp_path)
    # Windows and chunks end within these; the forward pass of longer ones is tested elsewhere.
    tokens = tokens_of(original, batch_size=1)[:, :128]
    levels = LEVELS if name in SLOW else QUICK
    report = compare(original, model, tokens, levels=levels, recipe=SHORT)
    assert report.ok, report.first_divergence
    assert report.first_divergence is None
    assert report.verdicts == dict.fromkeys(levels, True)
    assert all(report.rows[level] for level in levels)
    assert report.flips == (), "a tie between experts: the errors after it are no rounding"
    if name in SLOW:
        assert {row.parameter for row in report.gradients} >= {"kernel", "scale"}


@pytest.fixture(scope="module")
def pair(make_llama, tmp_path_factory):
    """A Llama and ours with its weights; not to be changed."""
    llama, folder = make_llama(num_hidden_layers=2), tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    return llama, load_pretrained(folder, dtype="float32")


@pytest.fixture(scope="module")
def short(tokens):
    """A row of tokens that is long enough for what has no positions."""
    return tokens[:1, :64]


def arrays_of(model):
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def changed(model, name, function):
    """The model with one parameter changed."""
    arrays = arrays_of(model)
    return with_arrays(model, {**arrays, name: function(arrays[name])})


def configured(model, changes):
    """The model's weights in one of another config."""
    config = with_fields(model.config, changes)
    return with_arrays(build_abstract(config), arrays_of(model))


def test_one_bit_of_one_weight_is_found(pair, short):
    llama, model = pair

    def flip(kernel):
        bits = np.asarray(kernel).view(np.uint32).copy()
        bits[1, 3, 5] ^= 1
        return jnp.asarray(bits.view(np.float32))

    broken = changed(model, "layers.0:2.mlp.up_proj.kernel", flip)
    report = compare(llama, broken, short, levels=("weights", "config"))
    assert report.verdicts == {"weights": False, "config": True}
    first = report.first_divergence
    assert (first.path, first.parameter) == ("layers.1.mlp.up_proj", "kernel")
    assert (first.measured, first.floor, first.threshold) == (1, 0, 0)
    assert first.stored == ("model.layers.1.mlp.up_proj.weight",)
    assert sum(row.differing_bits for row in report.weights) == 1
    assert {name for row in report.weights for name in row.stored} == set(llama.state_dict())


def test_tensors_that_only_one_side_has_are_found(make_llama, pair, short):
    _, model = pair
    biased = make_llama(num_hidden_layers=2, attention_bias=True)
    report = compare(biased, model, short, levels=("weights",))
    wrong = [row for row in report.weights if not row.ok and row.parameter == "bias"]
    assert {row.path for row in wrong} == {
        f"layers.{i}.attn.{name}_proj" for i in range(2) for name in "qkvo"
    }
    assert {row.remark for row in wrong} == {"the model has no such tensor"}


def test_tensors_of_another_shape_are_found(make_llama, pair, short):
    _, model = pair
    report = compare(
        make_llama(num_hidden_layers=2, intermediate_size=40), model, short, levels=("weights",)
    )
    [row] = [row for row in report.weights if row.path == "layers.0.mlp.gate_proj"]
    assert row.differing_bits == row.num_bits
    assert "is (40, 32), the model has (56, 32)" in row.remark


def test_a_tied_copy_is_compared_with_its_original(make_llama, convert, short):
    llama = make_llama(num_hidden_layers=1, tie_word_embeddings=True)
    model = convert(llama)
    assert compare(llama, model, short, levels=("weights",)).ok
    llama.lm_head.weight = torch.nn.Parameter(llama.lm_head.weight.detach() + 1)
    report = compare(llama, model, short, levels=("weights",))
    assert [row.stored for row in report.weights if not row.ok] == [("lm_head.weight",)]


@pytest.mark.parametrize(
    "changes",
    [
        {"norms.eps": 1e-4},
        {"rope.theta": 10200.0},
        {"mlp.activation": "gelu"},
        {"attention.scale": 0.3},
        {"embed_scale": 2.0},
        {"head.softcap": 30.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_field_that_bears_on_the_numbers_must_agree(pair, short, changes):
    llama, model = pair
    report = compare(llama, configured(model, changes), short, levels=("config",))
    [(name, value)] = changes.items()
    assert [row.path for row in report.config if not row.ok] == [f"config.{name}"]
    assert report.first_divergence.ours == repr(value)
    assert report.first_divergence.measured == 1


def test_fields_of_layers_are_compared_layer_by_layer(pair, short):
    llama, model = pair
    kinds = (*model.config.pattern, dataclasses.replace(model.config.pattern[0], rope="none"))
    config = dataclasses.replace(model.config, pattern=kinds)
    report = compare(llama, build_abstract(config), short, levels=("config",))
    [row] = [row for row in report.config if not row.ok]
    assert (row.path, row.ours, row.theirs) == (
        "config.pattern.rope",
        "global none",
        "global global",
    )


def test_what_does_not_bear_on_the_numbers_may_differ(pair, short):
    llama, model = pair
    other = configured(model, {"remat": "full", "max_len": 4096, "init.std": 0.5})
    assert compare(llama, other, short, levels=("config",)).ok


def test_a_gradient_that_is_cut_is_named(pair, short, monkeypatch):
    llama, model = pair
    honest = jax_train.mean_loss

    def cut(params, bind, tokens):
        stopped = jax.lax.stop_gradient(params["final_norm"])
        return honest({**params, "final_norm": stopped}, bind, tokens)

    monkeypatch.setattr(jax_train, "mean_loss", cut)
    report = compare(llama, model, short, levels=("gradients",))
    assert [row.path for row in report.gradients if not row.ok] == ["final_norm"]
    assert report.first_divergence.what == "gradient"


def test_a_gradient_that_is_nothing_but_noise_is_measured_against_all(tmp_path):
    """Without RoPE all scores of a query shift with the bias of keys, and softmax does not care."""
    original, model = both("smollm3/windows-biases", tmp_path)
    tokens = tokens_of(original, batch_size=1)[:, :64]
    report = compare(original, model, tokens, levels=("gradients", "step"))
    assert report.ok, report.first_divergence
    noise = {(row.path, row.parameter) for row in report.gradients if row.relative_to == "all"}
    assert noise == {("layers.2.attn.k_proj", "bias")}


def test_optimizers_that_are_right_pass(pair, short):
    llama, model = pair
    trainers = make_optimizer(
        OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-4, decay="linear"), 3, model
    )
    for optimizer in (None, trainers, adamw(model)):
        report = compare(
            llama, model, short, levels=("step", "curve"), recipe=SHORT, optimizer=optimizer
        )
        assert report.ok, report.first_divergence


def test_a_hundred_steps_stay_together(pair, short):
    llama, model = pair
    report = compare(llama, model, short, levels=("curve",), recipe=Recipe(steps=100))
    assert report.ok, report.first_divergence
    assert len(report.curve) == 100
    assert max(row.measured for row in report.curve) <= 1e-4
    assert report.curve[-1].theirs != report.curve[0].theirs


def test_an_optimizer_without_moments_is_refused(pair, short):
    llama, model = pair
    with pytest.raises(ValueError, match="no mu and no nu"):
        compare(llama, model, short, levels=("step",), optimizer=optax.sgd(1e-3))


def test_other_tokens_are_found(pair, tokens, monkeypatch):
    llama, model = pair
    honest = generation.beam_search

    def wrong(*args, **options):
        first, *others = honest(*args, **options)
        return [[*first[:-1], (first[-1] + 1) % 96], *others]

    monkeypatch.setattr(generation, "beam_search", wrong)
    report = compare(llama, model, tokens, levels=("generate",))
    assert [row.path for row in report.generate if not row.ok] == ["generate.beams"]
    assert report.first_divergence.prompt_tokens == 1
    assert report.first_divergence.measured == 1


def test_a_token_that_a_tie_decides_is_no_error():
    logits_NV = np.array([[0.0, 3.0, 1.0], [2.0, 1.0, 2.0 - 1e-6]])
    tie = generation._is_greedy_tie([1, 2], [1, 0], logits_NV, noise=1e-6)
    no_tie = generation._is_greedy_tie([1, 1], [1, 0], logits_NV, noise=1e-6)
    assert (tie, no_tie) == (True, False)
    assert not generation._is_greedy_tie([1, 0], [1, 0], logits_NV, noise=1e-6)


def test_prompts_are_of_unequal_lengths(tokens):
    assert [len(prompt) for prompt in generation.prompts_of(Inputs.of(tokens))] == [1, 9, 34, 97]
    assert [len(prompt) for prompt in generation.prompts_of(Inputs.of(tokens[:1, :20]))] == [
        1,
        9,
        20,
    ]


def test_tokens_that_a_router_sends_elsewhere_are_counted():
    reference = {"layers.0.mlp.router": np.array([[[3.0, 2.0, 1.0], [1.0, 2.0, 1.999]]])}
    ours = {"layers.0.mlp.router": np.array([[[3.0, 2.0, 1.0], [1.0, 1.99, 2.0]]])}
    path = "layers.0.mlp.router"
    [found] = flips(ours, reference, {path: [reference[path]]}, top_k=1)
    assert (found.path, found.tokens, found.by_noise) == (path, 1, 0)
    assert found.margin == pytest.approx(0.001)
    assert flips(ours, reference, {path: [reference[path]]}, top_k=2) == []
    [found] = flips(reference, reference, {path: [ours[path]]}, top_k=1)
    assert (found.tokens, found.by_noise) == (0, 1)


def test_levels_are_walked_from_causes_to_effects(pair, short):
    llama, model = pair
    broken = changed(model, "final_norm.scale", lambda scale: scale + 0.1)
    report = compare(llama, broken, short, levels=("gradients", "layers", "weights", "config"))
    assert list(report.verdicts) == ["gradients", "layers", "weights", "config"]
    assert [report.verdicts[level] for level in ("weights", "layers", "gradients")] == [False] * 3
    assert report.first_divergence == next(row for row in report.weights if not row.ok)
    assert report.first_divergence.path == "final_norm"
    assert report.first_divergence.hint is None


def test_nothing_is_left_changed(make_llama, convert, short, tmp_path):
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
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(np.asarray(array), arrays[name])
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {len(data[name]) > 0 for name in ("config", "weights", "step", "curve")} == {True}
    report.write_html(tmp_path / "parity.html")
    page = (tmp_path / "parity.html").read_text()
    for title in ("Level by level", "Gradients", "One step", "Training", "Generation"):
        assert title in page
