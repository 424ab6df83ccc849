"""The analytic plan of a step beside what XLA's own partitioner does, on 8 CPU devices."""

import dataclasses
import math
from collections import Counter

import jax
import pytest
from planned_runs import EXPERTS, run
from tiny import TINY

from jaxllm.distributed.devices import DEVICES
from jaxllm.train import make_mesh
from jaxllm.train.planning.analytic.step import price_step, state_bytes
from jaxllm.train.planning.compiled.hlo import parse
from jaxllm.train.planning.compiled.hlo_collectives import read_collectives
from jaxllm.train.planning.step_program import make_step_program, mesh_shape

CPU = DEVICES["v5p"]._replace(platform="cpu")


def _by_axes(collectives):
    """Sums gathers, and reductions as the all-reduces that XLA makes of them on CPU, by axes."""
    sums = Counter()
    for one in collectives:
        kind = "all-reduce" if one.kind == "reduce-scatter" else one.kind
        sums[kind, one.axes] += one.moved * (1 + (one.kind == "reduce-scatter"))
    return sums


@pytest.mark.parametrize(
    ("model", "mesh"),
    [
        (TINY, {"fsdp": 4, "tensor": 2}),
        pytest.param(TINY, {"data": 2, "fsdp": 4}, marks=pytest.mark.exhaustive),
        pytest.param(TINY, {"fsdp": 8}, marks=pytest.mark.exhaustive),
        pytest.param(EXPERTS, {"fsdp": 4, "tensor": 2}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_collectives_are_those_of_xla_on_cpu(model, mesh):
    config = run(model, **mesh)
    steps, batch = make_step_program(config, make_mesh(**mesh))
    with jax.set_mesh(make_mesh(**mesh)):
        text = steps.train.lower(steps.abstract_state, batch).compile().as_text()
    found = _by_axes(read_collectives(parse(text), mesh_shape(config)))
    ours = _by_axes(price_step(config, CPU).collectives)
    largest = max(found.values())
    for key, moved in found.items():
        # On CPU, XLA gathers the router's logits for top_k, which are small in real models.
        if moved < 0.04 * largest or model is EXPERTS:
            continue
        assert ours[key] == pytest.approx(moved, rel=0.1), key
    total = sum(found.values())
    assert sum(ours.values()) == pytest.approx(total, rel=0.1)


def test_state_bytes_are_those_of_the_shards():
    config = run(fsdp=4, tensor=2)
    held = state_bytes(config)
    steps, _ = make_step_program(config, make_mesh(fsdp=4, tensor=2))
    expected = sum(4 * _size(leaf) for leaf in jax.tree.leaves(steps.abstract_state.params))
    assert held["parameters"] == held["gradients"] == expected
    assert held["optimizer"] == pytest.approx(2 * expected, abs=64)  # and counts of steps
    assert price_step(config, CPU).state == pytest.approx(sum(held.values()) - expected, abs=64)


def _size(leaf):
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


@pytest.mark.exhaustive
def test_rematerialization_trades_memory_for_arithmetic():
    config = run(fsdp=8)
    full = price_step(config, CPU)
    none = price_step(dataclasses.replace(config, remat="none"), CPU)
    assert none.flops < full.flops
    assert none.peak > full.peak
