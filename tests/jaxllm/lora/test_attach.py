"""LoRA on models: targets by pattern, stacked layers, experts, merging, dropout, sharding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_model

from jaxllm.config import ExpertsConfig, LayerKind
from jaxllm.errors import UserError
from jaxllm.lora.attach import (
    FACTORS,
    add_lora,
    draw_factors,
    find_targets,
    is_trained,
    merge_lora,
    set_keys,
)
from jaxllm.lora.config import LoraConfig
from jaxllm.models import build_abstract, with_scanned_layers
from jaxllm.params import named_parameters, parameter_shardings, with_arrays
from jaxllm.train import make_mesh

ATOL = 2e-5  # a merged kernel is rounded to float32; logits are up to 3
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 7))
EXPERTS = {"experts": ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24)}
EXPERTS["pattern"] = (LayerKind(mlp="experts"),)


def adapted(lora: LoraConfig, **fields):
    """A model with random numbers in every parameter, those of the factors included."""
    model = add_lora(random_model(**fields), lora)
    rng = np.random.default_rng(5)
    arrays = {
        name: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
        if name.endswith(FACTORS)
        else x
        for name, variable in named_parameters(model).items()
        for x in [variable.get_value()]
    }
    return with_arrays(model, arrays)


def logits(model) -> np.ndarray:
    return np.asarray(jax.jit(lambda model: model(TOKENS)[0])(model))


@pytest.mark.parametrize(
    "fields", [{}, pytest.param(EXPERTS, marks=pytest.mark.exhaustive)], ids=["dense", "experts"]
)
def test_factors_change_the_model_as_the_merged_one_and_the_unstacked_one(fields):
    model = adapted(LoraConfig(rank=3, alpha=5, dropout=0.5), **fields)
    expected = logits(model)
    assert np.abs(expected - logits(random_model(**fields))).max() > 0.1
    np.testing.assert_allclose(logits(merge_lora(model)), expected, atol=ATOL)
    np.testing.assert_allclose(logits(with_scanned_layers(model, False)), expected, atol=ATOL)
    np.testing.assert_array_equal(logits(model), expected)  # merging changed a copy


@pytest.mark.exhaustive
def test_dropout_depends_on_the_layer_and_not_on_stacking():
    model = adapted(LoraConfig(rank=3, dropout=0.5))
    key = jax.random.key(2)
    dropped = logits(set_keys(model, key))
    assert np.abs(dropped - logits(model)).max() > 0.05
    assert set_keys(model, None) is model
    single = set_keys(with_scanned_layers(model, False), key)
    np.testing.assert_allclose(logits(single), dropped, atol=ATOL)


@pytest.mark.exhaustive
def test_drawn_factors_do_not_depend_on_stacking():
    lora = LoraConfig(rank=3)
    models = [add_lora(random_model(scan_layers=scan), lora) for scan in (True, False)]
    stacked, single = (jax.jit(partial(draw_factors, model, 0))() for model in models)
    for name, value in single.items():
        path, _, rest = name.removeprefix("layers.").partition(".")
        np.testing.assert_array_equal(value, stacked[f"layers.0:3.{rest}"][int(path)])


@pytest.mark.exhaustive
def test_a_sharded_model_computes_the_same():
    model = adapted(LoraConfig(rank=3))
    expected, mesh = logits(model), make_mesh(data=2, fsdp=2, tensor=2)
    placed = parameter_shardings(model, mesh)
    assert str(placed["layers.0:3.attn.q_proj.lora.a"].spec).count("fsdp") == 1
    assert str(placed["layers.0:3.attn.q_proj.lora.b"].spec).count("tensor") == 1
    arrays = {
        name: jax.device_put(variable.get_value(), placed[name])
        for name, variable in named_parameters(model).items()
    }
    with jax.set_mesh(mesh):
        found = jax.jit(lambda model: model(TOKENS)[0])(with_arrays(model, arrays))
    np.testing.assert_allclose(found, expected, atol=ATOL)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("q_proj",), ["attn.q_proj"]),
        (("attn.[kv]_proj", "down_proj"), ["attn.k_proj", "attn.v_proj", "mlp.down_proj"]),
        (("layers.*.mlp.*",), ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]),
        (tuple(f"layers.{i}.attn.o_proj" for i in range(3)), ["attn.o_proj"]),
    ],
)
def test_targets_by_pattern(patterns, names):
    found = find_targets(build_abstract(TINY), LoraConfig(targets=patterns))
    assert sorted(found) == [f"layers.0:3.{name}" for name in names]


def test_all_linear_leaves_out_head_and_router():
    found = find_targets(random_model(**EXPERTS), LoraConfig())
    assert len(found) == 7
    assert not any("head" in name or "router" in name for name in found)


def test_patterns_that_fit_nothing_are_reported_together():
    lora = LoraConfig(targets=("q_porj", "lm_head", "layers.1.attn.o_proj"), full=("embd",))
    model = random_model()
    with pytest.raises(UserError) as caught:
        add_lora(model, lora)
    first, second, third = str(caught.value).splitlines()
    assert first.endswith("did you mean 'q_proj'?")
    assert "matches the head, whose loss never holds all logits; train it in full" in second
    assert "match 1 of the 3 layers of layers.0:3.attn.o_proj, which are one array" in third
    with pytest.raises(UserError, match=r"'embd' matches no module .*did you mean 'embed'"):
        add_lora(model, LoraConfig(full=("embd",)))


def test_what_is_trained():
    lora = LoraConfig(full=("embed", "attn_norm"))
    names = named_parameters(add_lora(build_abstract(TINY), lora))
    assert all(is_trained(name, None) for name in names)
    trained = {name for name in names if is_trained(name, lora)}
    factors = {name for name in names if name.endswith(FACTORS)}
    assert trained == factors | {"embed.embedding", "layers.0:3.attn_norm.scale"}
