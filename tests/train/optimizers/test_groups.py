"""Groups of parameters: PyTorch's over 100 steps, patterns, and what matches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiers import examples
from tiny import random_model
from trajectories import compare

from jaxllm.errors import UserError
from jaxllm.lora.attach import add_lora
from jaxllm.lora.config import LoraConfig
from jaxllm.lora.parts import partition
from jaxllm.params import named_parameters, split, unstack_name
from jaxllm.train.optimizers.config import GroupConfig, OptimizerConfig
from jaxllm.train.optimizers.groups import decay_of, rate_of
from jaxllm.train.optimizers.optimizer import make_optimizer

GROUPS = (
    GroupConfig(params=("layers.0.attn.q_proj",), rate=0.5),
    GroupConfig(params=("layers.1",), rate=0.25, weight_decay=0.3),
    GroupConfig(params=("embed",), rate=0.1, weight_decay=0.0),
    GroupConfig(params=("attn", "*norm*"), rate=3.0),
)


def expected(name: str) -> tuple[float, float]:
    """The rate and the weight decay of `GROUPS`, by hand."""
    usual = 0.0 if name.endswith("scale") else 0.1
    if name == "layers.0.attn.q_proj.kernel":
        return 0.5, usual
    if name.startswith("layers.1."):
        return 0.25, 0.3
    if name == "embed.embedding":
        return 0.1, 0.0
    return (3.0 if ".attn." in name or "norm" in name else 1.0), usual


def parameter_groups(theirs: dict) -> list[dict]:
    return [
        {"params": [one], "lr": 0.01 * expected(name)[0], "weight_decay": expected(name)[1]}
        for name, one in theirs.items()
    ]


def adamw(theirs):
    return [torch.optim.AdamW(parameter_groups(theirs), lr=0.01, betas=(0.9, 0.95), eps=1e-8)]


def sgd(theirs):
    groups = parameter_groups(theirs)
    return [torch.optim.SGD(groups, lr=0.01, momentum=0.95, nesterov=True)]


@pytest.mark.parametrize("scan", [True, False])
def test_the_first_group_that_matches_counts(scan):
    names = [
        one
        for name in named_parameters(random_model(num_layers=2, scan_layers=scan))
        for one, _ in unstack_name(name)
    ]
    found = {name: rate_of(name, GROUPS) for name in names}
    assert found == {name: expected(name)[0] for name in names}
    assert set(found.values()) == {0.5, 0.1, 0.25, 1.0, 3.0}
    decays = {
        name: decay_of(name, GROUPS, 0.0 if name.endswith("scale") else 0.1) for name in names
    }
    assert decays == {name: expected(name)[1] for name in names}


@pytest.mark.parametrize("make", examples([adamw, sgd], adamw), ids=lambda make: make.__name__)
def test_a_hundred_steps_are_those_of_pytorch_s_groups(make):
    config = OptimizerConfig(
        name=make.__name__,
        learning_rate=0.01,
        decay="constant",
        clip_norm=None,
        weight_decay=0.1,
        groups=GROUPS,
    )
    compare(config, make, 2e-5)


def test_a_rate_of_zero_freezes():
    model = random_model(num_layers=2)
    _, params = split(model)
    config = OptimizerConfig(groups=(GroupConfig(params=("layers.1.attn",), rate=0.0),))
    optimizer = make_optimizer(config, 10, model)
    drawn = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(drawn, optimizer.init(params), params)
    moved = {
        name: [bool(np.abs(layer).min() > 0) for layer in variable.get_value()]
        for name, variable in named_parameters(split(model)[0](updates)).items()
        if ".attn." in name
    }
    assert moved
    assert all(layers == [True, False] for layers in moved.values())


def test_factors_of_lora_have_rates_of_their_own():
    """LoRA+ (Hayou et al., 2024)."""
    lora = LoraConfig(rank=2, targets=("q_proj",))
    model = add_lora(random_model(num_layers=2), lora)
    groups = (GroupConfig(params=("lora.b",), rate=16.0),)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), split(model)[1])
    nested, _ = partition(ones, lora)
    updates = []
    for own in (groups, ()):
        config = OptimizerConfig(lora=lora, groups=own, clip_norm=None)
        optimizer = make_optimizer(config, 10, model)
        updates.append(optimizer.update(nested, optimizer.init(nested), nested)[0])
    ratio = jax.tree.map(lambda a, b: float(np.mean(a / b)), *updates)
    np.testing.assert_allclose(sorted(jax.tree.leaves(ratio)), [1.0, 16.0], rtol=1e-6)
    wrong = OptimizerConfig(lora=lora, groups=(GroupConfig(params=("embed",)),))
    with pytest.raises(UserError, match="'embed' matches no parameter that is trained"):
        make_optimizer(wrong, 10, model)


def test_patterns_that_match_nothing_are_all_reported():
    groups = (GroupConfig(params=("embeed", "attn")), GroupConfig(params=("q_prj",)))
    with pytest.raises(UserError) as caught:
        make_optimizer(OptimizerConfig(groups=groups), 10, random_model())
    first, second = str(caught.value).splitlines()
    assert first.startswith("optimizer.groups: 'embeed' matches no parameter that is trained;")
    assert "embed" in first
    assert "'q_prj'" in second


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor", "sgd"])
def test_every_optimizer_takes_groups(name):
    """The rate multiplies the update, and the decay is that of the group."""
    model = random_model(num_layers=1)
    bind, params = split(model)
    found = {}
    for label, settings in {"": {}, "rate": {"rate": 4.0}, "decay": {"weight_decay": 0.0}}.items():
        groups = (GroupConfig(params=("up_proj", "embed"), **settings),) if settings else ()
        config = OptimizerConfig(name=name, groups=groups, clip_norm=None)
        optimizer = make_optimizer(config, 10, model)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        named = named_parameters(bind(updates)).items()
        found[label] = {own: np.asarray(variable.get_value()) for own, variable in named}
    for own, plain in found[""].items():
        is_in = "up_proj" in own or "embed" in own
        np.testing.assert_allclose(found["rate"][own], (4 if is_in else 1) * plain, rtol=1e-6)
        assert np.array_equal(found["decay"][own], plain) != is_in, own
