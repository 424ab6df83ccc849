"""FLOPs of attention kernels: against counts by hand, and of programs that have no scores."""

import dataclasses

import numpy as np
import pytest
from planned_runs import GPU, TPU, run
from tiny import TINY

from jaxllm.config import AttentionConfig, DeltaConfig, LayerKind, with_fields
from jaxllm.layers.attention.mask import MaskSpec
from jaxllm.train.planning.analytic.attention import attention_flops, mean_keys_seen
from jaxllm.train.planning.analytic.program import flatten
from jaxllm.train.planning.analytic.step import price_step
from jaxllm.train.planning.step_program import abstract_mesh, mesh_shape, trace_step

T = 256


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("limits", [{}, {"window": 40}, {"chunk": 48}])
def test_keys_that_queries_see_are_those_of_the_mask(causal, limits):
    kind = LayerKind(attention=next(iter(limits), "full"))
    attention = AttentionConfig(causal=causal, **limits)
    found = mean_keys_seen(with_fields(TINY, attention=attention, pattern=(kind,)), T)
    places = np.arange(T)
    sees = np.asarray(MaskSpec(causal, **limits).sees(places[:, None], places[None]))
    assert found == np.broadcast_to(sees, (T, T)).sum(1).mean()


def test_layers_of_several_kinds_count_each():
    kinds = (LayerKind(attention="window"), LayerKind())
    mixed = with_fields(TINY, {"attention.window": 40}, pattern=kinds, num_layers=4)
    in_window = np.minimum(np.arange(T) + 1, 40).mean()
    assert mean_keys_seen(mixed, T) == (in_window + (T + 1) / 2) / 2


def test_layers_with_a_recurrent_state_see_no_keys():
    delta = DeltaConfig(num_heads=4, num_key_heads=2, key_dim=3, value_dim=5)
    kinds = (LayerKind(attention="delta"), LayerKind())
    mixed = with_fields(TINY, {"attention.delta": delta}, pattern=kinds, num_layers=4)
    assert mean_keys_seen(mixed, T) == (T + 1) / 2
    assert mean_keys_seen(with_fields(mixed, pattern=kinds[:1]), T) == 0


@pytest.mark.parametrize(
    "topology",
    [pytest.param(TPU, id="tpu"), pytest.param(GPU, id="gpu", marks=pytest.mark.exhaustive)],
)
def test_kernels_compute_nine_products_of_a_layer(topology):
    config = dataclasses.replace(run(seq_len=T, fsdp=8), dtype="bfloat16", remat="none")
    platform = topology.device.platform
    jaxpr, _, _ = trace_step(config, abstract_mesh(mesh_shape(config), platform))
    keys = mean_keys_seen(TINY, T)
    found = [
        times * (attention_flops(op, keys) or 0)
        for op, times in flatten(jaxpr, platform).walk()
        if op.name == "pallas_call"
    ]
    product = 2 * (config.batch_size / 8 * T) * 4 * 16 * (T + 1) / 2  # 4 heads of 16
    assert sum(found) == TINY.num_layers * 9 * product


@pytest.mark.exhaustive
@pytest.mark.parametrize("topology", [TPU, GPU], ids=["tpu", "gpu"])
def test_kernels_hold_no_scores(topology):
    config = dataclasses.replace(run(seq_len=T, fsdp=8), dtype="bfloat16", remat="none")
    by_kernel, in_blocks = (
        price_step(dataclasses.replace(config, attention_kernel=kernel), topology.device)
        for kernel in ("auto", "blocks")
    )
    assert by_kernel.peak < in_blocks.peak
    assert by_kernel.traffic < in_blocks.traffic
    assert by_kernel.matmul_seconds < in_blocks.matmul_seconds
