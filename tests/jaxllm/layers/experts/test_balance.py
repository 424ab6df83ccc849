"""Balance of experts: the load of the fullest one, over layers and stacks."""

import jax.numpy as jnp
import pytest

from jaxllm.config import ExpertsConfig
from jaxllm.layers.experts.balance import Balance, Load, balance_of, load_balance

EXPERTS = ExpertsConfig(num_experts=2, top_k=1, mlp_dim=4, aux_weight=0.5)


def test_model_balance_lets_layers_balance_each_other():
    """Two layers each send all tokens to a single expert, but to different ones."""
    chosen, none = jnp.asarray([[8.0, 0.0], [0.0, 8.0]]), jnp.asarray([8.0, 8.0])
    loads = Load(tokens=none, chosen_E=chosen, probs_E=chosen, weights_E=chosen)
    assert load_balance(loads, "model") == 1
    assert load_balance(loads, "layer") == 2


def test_the_fullest_expert_of_any_layer_counts():
    """One layer alone, and two stacked: their fullest experts have 1.75 and 1.5 even shares."""
    single = Load(jnp.asarray(8.0), *[jnp.asarray([1.0, 7.0])] * 3)
    chosen, tokens = jnp.asarray([[4.0, 4.0], [12.0, 4.0]]), jnp.asarray([8.0, 16.0])
    stacked = Load(tokens, chosen, chosen, chosen)
    assert balance_of(EXPERTS, [None, stacked]).fullest == 1.5
    both = balance_of(EXPERTS, [single, None, stacked])
    assert both.fullest == 1.75
    assert both.aux_loss > 0


def test_a_model_without_experts_has_no_fullest():
    none = balance_of(None, [None])
    assert none == Balance(jnp.zeros(()), None)
    assert none.joined_with(none).fullest is None


def test_two_stacks_are_as_full_as_the_fuller_one():
    one, two = (Balance(jnp.asarray(x), jnp.asarray(y)) for x, y in ((0.5, 1.25), (0.25, 3.0)))
    joined = one.joined_with(two)
    assert (float(joined.aux_loss), float(joined.fullest)) == (0.75, 3.0)
    assert float(one.joined_with(Balance(jnp.zeros(()))).fullest) == pytest.approx(1.25)
