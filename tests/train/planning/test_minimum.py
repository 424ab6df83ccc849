"""The least that a step must move: against counts by hand."""

import dataclasses

import pytest
from planned_runs import EXPERTS, run
from tiny import TINY

from jaxllm.models import build_abstract
from jaxllm.params import count_parameters
from jaxllm.train.planning.minimum import minimum_bytes
from jaxllm.train.planning.step_program import mesh_shape

TABLE = 96 * 32  # of the embedding, which is only looked up


def _minimum(config):
    return minimum_bytes(config, config.model, mesh_shape(config))


def test_fsdp_gathers_twice_and_reduces_once():
    split = count_parameters(build_abstract(TINY)) - TABLE
    whole = split * (2 * 4 + 4)  # float32
    assert _minimum(run(fsdp=8)) == {("fsdp",): pytest.approx(whole * 7 / 8)}


def test_gathers_are_in_the_activations_dtype_and_for_each_microbatch():
    split = count_parameters(build_abstract(TINY)) - TABLE
    config = dataclasses.replace(run(fsdp=8), dtype="bfloat16", accumulate=2)
    assert _minimum(config)["fsdp",] == pytest.approx(split * (2 * 2 * 2 + 4) * 7 / 8)


def test_replicas_reduce_their_gradients():
    split = count_parameters(build_abstract(TINY)) - TABLE
    found = _minimum(run(data=2, fsdp=4))
    assert found["data",] == pytest.approx(split / 4 * 4 * 2 * 1 / 2)


def test_tensor_parallelism_sums_the_residual_stream_four_times_a_layer():
    found = _minimum(run(fsdp=4, tensor=2))
    stream = 16 / 4 * 64 * 32 * 4
    assert found["tensor",] == pytest.approx(4 * 3 * stream * 2 * 1 / 2)


def test_experts_exchange_rows_and_are_not_gathered_over_their_axis():
    found = _minimum(run(EXPERTS, fsdp=2, expert=4))
    rows = 16 / 8 * 64 * 32 * 4 * 2  # two experts for each token
    others = sum(
        value
        for axes, value in _minimum(run(EXPERTS, fsdp=2, expert=4)).items()
        if axes != ("expert",)
    )
    assert found["expert",] >= 4 * 3 * rows * 3 / 4
    assert others > 0
