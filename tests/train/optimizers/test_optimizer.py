"""Optimizers by name: PyTorch's trajectories, which parameters decay, and state sharding."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AxisType
from tiny import TINY, random_model, relative_l2
from trajectories import compare, decayed

from jaxllm.config import AttentionConfig, MlpConfig
from jaxllm.models import build_abstract
from jaxllm.params import dim_letters, map_parameters, named_parameters, parameter_shardings, split
from jaxllm.train.optimizers.config import BadStepsConfig, OptimizerConfig
from jaxllm.train.optimizers.optimizer import make_optimizer, optimizer_shardings

TOLERANCE = 2e-6  # relative L2 error of parameters, float32
STEPS = 20
HUNDRED = 100


def rate_by_hand(step: int, *, peak: float, final: float, warmup: int, total: int) -> float:
    """The formula of tlama's scheduler, in float64."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= total:
        return final
    r = (step - warmup) / (total - warmup)
    return final + 0.5 * (1 + math.cos(math.pi * r)) * (peak - final)


def flat(model, params) -> dict[str, np.ndarray]:
    bind, _ = split(model)
    named = named_parameters(bind(params))
    return {name: np.asarray(variable.get_value()) for name, variable in named.items()}


def find_decayed(model, config: OptimizerConfig) -> dict[str, bool]:
    """Which parameters a step with zero gradients changes; each must shrink by the decay rate."""
    _, params = split(model)
    optimizer = make_optimizer(config, STEPS, model)

    @jax.jit
    def step(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    before, after = flat(model, params), flat(model, step(params))
    decayed = {name: not np.array_equal(after[name], before[name]) for name in before}
    factor = 1 - config.learning_rate * config.weight_decay
    for name, is_decayed in decayed.items():
        if is_decayed:
            np.testing.assert_allclose(after[name], factor * before[name], rtol=1e-6)
    return decayed


@pytest.mark.parametrize("scan", [True, False])
def test_weight_decay_applies_to_parameters_with_two_or_more_letters(scan):
    """A stacked norm has two dimensions, but only one letter besides L."""
    model = random_model(scan_layers=scan)
    found = find_decayed(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    ranks = {name: len(variable.dims) for name, variable in named_parameters(model).items()}
    assert found == {name: rank >= 2 for name, rank in ranks.items()}
    assert found == {name: not name.endswith("scale") for name in ranks}


@pytest.mark.parametrize("scan", [True, False])
def test_biases_do_not_decay(scan):
    """Every bias is a vector in PyTorch, while here the bias of heads has the letters N and H."""
    model = random_model(
        scan_layers=scan,
        attention=AttentionConfig(qkv_bias=True, out_bias=True),
        mlp=MlpConfig(bias=True),
    )
    found = find_decayed(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    assert found == {name: name.endswith(("kernel", "embedding")) for name in found}


@pytest.mark.parametrize("scan", [True, False])
def test_a_hundred_steps_match_torch_adamw(scan):
    """On the same gradients, with warm-up and decay, and with clipping in some of the steps."""
    config = OptimizerConfig(
        learning_rate=0.03, final_learning_rate=0.003, warmup_steps=5, clip_norm=2.0
    )
    model = random_model(scan_layers=scan, num_layers=2)
    _, params = split(model)
    optimizer = make_optimizer(config, HUNDRED, model)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    ranks = {name: len(variable.dims) for name, variable in named_parameters(model).items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in flat(model, params).items()}
    groups = [
        {"params": [theirs[n] for n in ranks if ranks[n] >= 2], "weight_decay": 0.1},
        {"params": [theirs[n] for n in ranks if ranks[n] < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    rng, clipped = np.random.default_rng(0), 0
    for step in range(HUNDRED):
        scale = 10.0 ** rng.uniform(-3, -0.5)
        drawn = jax.tree.map(
            lambda x, scale=scale: np.float32(scale) * rng.standard_normal(x.shape, np.float32),
            params,
        )
        updates, state = update(drawn, state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in flat(model, drawn).items():
            theirs[name].grad = torch.tensor(gradient)
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), config.clip_norm)
        clipped += bool(norm > config.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = rate_by_hand(step, peak=0.03, final=0.003, warmup=5, total=HUNDRED)
        adamw.step()
        for name, ours in flat(model, params).items():
            assert relative_l2(ours, theirs[name].detach()) < TOLERANCE, (step, name)
    assert 3 < clipped < HUNDRED - 3


def test_moments_are_sharded_like_their_parameters():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    model = build_abstract(TINY)
    _, params = split(model)
    placed = parameter_shardings(model, mesh)
    optimizer = make_optimizer(OptimizerConfig(), STEPS, model)
    state = optimizer_shardings(optimizer, params, model, mesh)
    found = jax.tree.leaves(state)
    parts = jax.tree.leaves(state, is_leaf=lambda part: hasattr(part, "mu"))
    adam = next(part for part in parts if hasattr(part, "mu"))
    for moment in (adam.mu, adam.nu):
        assert jax.tree.leaves(moment) == jax.tree.leaves(
            map_parameters(model, lambda n, _: placed[n])
        )
    assert adam.count.is_fully_replicated
    assert all(sharding.mesh == mesh for sharding in found)
    assert any(not sharding.is_fully_replicated for sharding in found)


def test_dimension_letters_of_a_stacked_norm():
    model = build_abstract(TINY)
    assert dim_letters(named_parameters(model)["layers.0:3.attn_norm.scale"]) == "LD"


def test_a_hundred_steps_of_sgd_match_torch():
    config = OptimizerConfig(
        **{"name": "sgd", "learning_rate": 0.05, "decay": "constant", "clip_norm": None},
        **{"momentum": 0.8, "weight_decay": 0.02},
    )

    def make(theirs):
        return [torch.optim.SGD(decayed(theirs, 0.02), lr=0.05, momentum=0.8, nesterov=True)]

    compare(config, make, limit=2e-5)


class Lion(torch.optim.Optimizer):
    """Lion as in the paper (Chen et al., 2023, algorithm 2); PyTorch has none."""

    def __init__(self, groups, **options):
        super().__init__(groups, options)

    def step(self):
        with torch.no_grad():
            for group in self.param_groups:
                b1, b2 = group["betas"]
                for x in group["params"]:
                    m = self.state[x].setdefault("m", torch.zeros_like(x))
                    sign = torch.sign(b1 * m + (1 - b1) * x.grad)
                    x.sub_(group["lr"] * (sign + group["weight_decay"] * x))
                    m.mul_(b2).add_(x.grad, alpha=1 - b2)


@pytest.mark.exhaustive
def test_a_hundred_steps_of_lion_match_its_paper():
    config = OptimizerConfig(
        **{"name": "lion", "learning_rate": 1e-3, "decay": "constant", "clip_norm": None},
        **{"b2": 0.99, "weight_decay": 0.02},
    )
    compare(
        config,
        lambda theirs: [Lion(decayed(theirs, 0.02), lr=1e-3, betas=(0.9, 0.99))],
        limit=5e-3,  # a sign of nearly zero may differ, by twice the rate
    )


@pytest.mark.exhaustive
def test_clipping_by_value_is_before_that_by_norm():
    config = OptimizerConfig(name="sgd", learning_rate=1.0, decay="constant", clip_value=0.5)
    config = dataclasses.replace(config, momentum=0.0, nesterov=False, weight_decay=0.0)
    model = random_model(num_layers=1)
    _, params = split(model)
    optimizer = make_optimizer(config, STEPS, model)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), params)
    updates, _ = optimizer.update(drawn, optimizer.init(params), params)
    theirs = [torch.nn.Parameter(torch.zeros(x.shape)) for x in jax.tree.leaves(drawn)]
    for one, gradient in zip(theirs, jax.tree.leaves(drawn), strict=True):
        one.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_value_(theirs, 0.5)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for one, update in zip(theirs, jax.tree.leaves(updates), strict=True):
        np.testing.assert_allclose(-np.asarray(update), one.grad, rtol=1e-5)


@pytest.mark.cases(1, exhaustive=3)
@pytest.mark.parametrize("name", ["muon", "lion", "adafactor", "sgd"])
def test_the_state_of_each_is_sharded(name):
    """Each array of the state that is as large as its parameter is split as that is."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    model = build_abstract(TINY)
    _, params = split(model)
    settings = {
        "precision": "bfloat16_master",
        "ema": 0.9,
        "bad_steps": BadStepsConfig(action="skip"),
    }
    optimizer = make_optimizer(OptimizerConfig(name=name, **settings), STEPS, model)
    placed = parameter_shardings(model, mesh)
    state = jax.eval_shape(optimizer.init, params)
    shardings = optimizer_shardings(optimizer, params, model, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    checked = 0
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        text = jax.tree_util.keystr(path, simple=True, separator=".")
        own = next((n for n in placed if text.endswith(f".{n}")), None)
        if own and leaf.shape == named_parameters(model)[own].get_value().shape:
            assert sharding == placed[own]
            checked += 1
    assert checked >= 2 * len(placed)  # the average and the copy in float32, at least
