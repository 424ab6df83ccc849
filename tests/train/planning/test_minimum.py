"""The least that a step must move: against counts by hand."""

import dataclasses

import pytest
from planned_runs import EXPERTS, run
from tiny import TINY

from jaxllm.config import with_fields
from jaxllm.models import build_abstract
from jaxllm.params import count_parameters
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.planning.minimum import minimum_bytes
from jaxllm.train.planning.step_program import mesh_shape

TABLE = 96 * 32  # the size of the embedding and of the head
STREAM = 16 / 8 * 64 * 32  # elements of the residual stream of a device's tokens


def _minimum(config):
    return minimum_bytes(config, config.model, mesh_shape(config))


def test_fsdp_gathers_layers_twice_the_head_once_and_reduces_once():
    layers = count_parameters(build_abstract(TINY)) - 2 * TABLE
    whole = layers * (2 * 4 + 4) + TABLE * (4 + 4)  # float32
    exchanged = 2 * STREAM * 4  # rows of the embedding, and their gradients
    assert _minimum(run(fsdp=8)) == {("fsdp",): pytest.approx((whole + exchanged) * 7 / 8)}


def test_gathers_are_in_the_activations_dtype_and_for_each_microbatch():
    layers = count_parameters(build_abstract(TINY)) - 2 * TABLE
    config = dataclasses.replace(run(fsdp=8), dtype="bfloat16", accumulate=2)
    whole = layers * (2 * 2 * 2 + 4) + TABLE * (2 * 2 + 4) + 2 * STREAM * 2
    assert _minimum(config)["fsdp",] == pytest.approx(whole * 7 / 8)


def test_a_tied_table_is_the_head():
    tied = with_fields(TINY, {"head.tied": True})
    layers = count_parameters(build_abstract(tied)) - TABLE
    whole = layers * (2 * 4 + 4) + TABLE * (4 + 4)
    assert _minimum(run(tied)) == {("fsdp",): pytest.approx(whole * 7 / 8)}


def test_replicas_reduce_their_gradients():
    found = _minimum(run(data=2, fsdp=4))
    all_of_them = count_parameters(build_abstract(TINY))
    assert found["data",] == pytest.approx(all_of_them / 4 * 4 * 2 * 1 / 2)


def test_tensor_parallelism_sums_the_residual_stream_four_times_a_layer():
    found = _minimum(run(fsdp=4, tensor=2))
    stream = 16 / 4 * 64 * 32 * 4
    assert found["tensor",] == pytest.approx(4 * 3 * stream * 2 * 1 / 2)


def test_context_parallelism_gathers_keys_and_values_and_reduces_their_gradients():
    found = _minimum(run(fsdp=2, sequence=4))
    layers = count_parameters(build_abstract(TINY)) - 2 * TABLE
    whole = layers * (2 * 4 + 4) + TABLE * (4 + 4) + 2 * STREAM * 4
    assert found["fsdp", "sequence"] == pytest.approx(whole * 7 / 8)
    keys_and_values = 16 / 2 * 64 * 3 * 2 * (2 * 16) * 4  # of all tokens, in 3 layers
    assert found["sequence",] == pytest.approx(3 * keys_and_values * 3 / 4)


def test_kernels_gradients_are_reduced_in_the_dtype_of_reduction():
    config = dataclasses.replace(run(fsdp=4, data=2), dtype="bfloat16")
    halved = dataclasses.replace(config, optimizer=OptimizerConfig(reduce_dtype="bfloat16"))
    norms = (3 * 2 + 1) * 32
    kernels = count_parameters(build_abstract(TINY)) - TABLE - norms
    saved = {axis: _minimum(config)[axis] - _minimum(halved)[axis] for axis in _minimum(config)}
    assert saved["fsdp",] == pytest.approx(kernels * 2 * 3 / 4)
    assert saved["data",] == pytest.approx(kernels / 4 * 2 * 2 * 1 / 2)


def test_experts_exchange_rows_and_are_not_gathered_over_their_axis():
    found = _minimum(run(EXPERTS, fsdp=2, expert=4))
    rows = STREAM * 4 * 2  # two experts for each token
    assert found["expert",] == pytest.approx(4 * 3 * rows * 3 / 4)
    kernels = 4 / 4 * 3 * 3 * 32 * 24  # one expert's of each layer, split over fsdp
    assert found["fsdp",] == pytest.approx(kernels * (2 * 4 + 4) * 1 / 2)
