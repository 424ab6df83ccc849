"""Norms of groups of gradients: every parameter is in one, and their squares make the whole."""

import jax
import numpy as np
import optax
import pytest
from kinds import CONFIGS
from tiny import random_of

from jaxllm.models import build_abstract
from jaxllm.params import named_parameters, split
from jaxllm.train.optimizers.group_norms import group_norms, group_of


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_parameter_has_a_group(kind):
    names = named_parameters(build_abstract(CONFIGS[kind]))
    ungrouped = [name for name in names if group_of(name) == "other"]
    assert [name for name in ungrouped if not name.startswith("image_proj")] == []


def test_the_squares_of_the_groups_add_up():
    gradients = split(random_of(CONFIGS["each vector"]))[1]
    norms = jax.jit(group_norms)(gradients)
    assert set(norms) == {
        f"grad_norm/{name}"
        for name in ("attention", "embeddings", "head", "mlp", "norms", "router")
    }
    whole = float(optax.tree.norm(gradients))
    assert np.sqrt(sum(float(x) ** 2 for x in norms.values())) == pytest.approx(whole, rel=1e-6)
    router = gradients["layers"]["0:2"]["mlp"]["router"]["kernel"]
    assert float(norms["grad_norm/router"]) == pytest.approx(float(np.linalg.norm(router)))


@pytest.mark.pinned
def test_groups_cost_no_further_pass_over_the_gradients():
    """XLA computes each sum of squares once, for the whole norm and for the groups."""
    gradients = split(random_of(CONFIGS["each vector"]))[1]

    def both(gradients):
        return {"whole": optax.tree.norm(gradients), **group_norms(gradients)}

    alone, together = (
        jax.jit(each).lower(gradients).compile().as_text() for each in (optax.tree.norm, both)
    )
    assert alone.count(" reduce(") == together.count(" reduce(") > 0
