"""Model FLOPs: against the matmuls that a traced step has without rematerialization."""

import dataclasses

import pytest
from planned_runs import EXPERTS, TPU, run
from tiny import TINY

from jaxllm.config import LayerKind, with_fields
from jaxllm.train.planning.analytic.step import price_step
from jaxllm.train.planning.model_flops import step_flops, visible_pairs


@pytest.mark.parametrize("model", [TINY, with_fields(TINY, {"head.tied": True})])
def test_a_step_without_remat_executes_little_more(model):
    """Attention in blocks masks half of the diagonal block and recomputes its scores."""
    config = dataclasses.replace(run(model), remat="none")
    executed = price_step(config, TPU.device).flops * TPU.size
    attention = 12 * 64 * 3 * 4 * 16 * (64 * 65 // 2) / 64 * 16
    assert step_flops(config, model) < executed
    assert executed < step_flops(config, model) + 1.5 * attention


def test_only_the_chosen_experts_count():
    one = with_fields(EXPERTS, {}, experts=dataclasses.replace(EXPERTS.experts, top_k=1))
    both = step_flops(run(EXPERTS), EXPERTS) - step_flops(run(one), one)
    assert both == 6 * 16 * 64 * 3 * (3 * 32 * 24)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("full", {}),
        ("full", {"attention.causal": False}),
        ("window", {"attention.window": 5}),
        ("chunk", {"attention.chunk": 5}),
    ],
)
def test_visible_pairs_are_those_of_the_mask(kind, settings):
    import jax.numpy as jnp

    from jaxllm.layers.attention.mask import MaskSpec

    stack = with_fields(TINY, settings, pattern=(LayerKind(attention=kind),))
    at = jnp.arange(17)[None]
    mask = MaskSpec.from_config(stack, stack.kinds[0]).mask(at, at)
    assert visible_pairs(stack, kind, 17) == int(jnp.broadcast_to(mask, (1, 17, 17)).sum())
