"""A layer that is recomputed gathers each kernel once in each direction, with equal gradients."""

import re

import jax
import numpy as np
import pytest
from collectives import collectives
from mesh_gradients import on_devices, on_one, random_batch, worst_error
from tiny import TINY, random_model, relative_l2

from jaxllm.config import ExpertsConfig, LatentConfig, LayerKind
from jaxllm.layers.gather import sum_in_stages
from jaxllm.params import map_parameters, parameter_shardings, split
from jaxllm.train import make_mesh
from jaxllm.train.data.placement import on_mesh

ROWS, T, L = 8, 13, 3
EXPERTS = {
    "experts": ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24),
    "pattern": (LayerKind(mlp="experts"), LayerKind()),
}
LATENT = {
    "attention.latent": LatentConfig(kv_rank=24, query_rank=16, rope_dim=8, value_dim=16),
    "num_kv_heads": 4,
}


def test_each_kernel_is_gathered_twice_a_step():
    model = random_model(num_layers=L, remat="full")
    bind, params = split(model)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (ROWS, T))
    mesh = make_mesh(fsdp=8)

    def loss(params, batch):
        return bind(params)(batch["tokens"]).logits.std()

    expected = jax.jit(jax.value_and_grad(loss))(params, {"tokens": tokens})
    with jax.set_mesh(mesh):
        shardings = parameter_shardings(model, mesh)
        places = map_parameters(model, lambda name, _: shardings[name])
        given = jax.device_put(params, places), on_mesh({"tokens": tokens}, mesh, ROWS)
        compiled = jax.jit(jax.value_and_grad(loss)).lower(*given).compile()
        found = compiled(*given)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert relative_l2(ours, theirs) < 1e-5
    gathers = [one for one in collectives(compiled) if one.kind == "all-gather" and one.runs == L]
    D, F = TINY.embed_dim, TINY.mlp_dim
    kernels = [one for one in gathers if {D, F} <= {*one.shapes[0]}]
    assert len(kernels) == 2 * 3  # gate, up and down, forward and backward


def test_kernels_travel_in_the_compute_dtype_whatever_that_of_the_residual_stream():
    numerics = {"numerics.dtype": "float16", "numerics.wide_residual": True}
    bind, params = split(random_model(numerics, num_layers=L, remat="full"))
    tokens = np.zeros((ROWS, T), np.int32)
    with jax.set_mesh(make_mesh(fsdp=8)):
        program = jax.jit(lambda params: bind(params)(tokens).logits).lower(params).as_text()
    constraint = rf"sharding_constraint %.* : tensor<{TINY.embed_dim}x{TINY.mlp_dim}x(\w+)>"
    assert {*re.findall(constraint, program)} == {"f16"}


@pytest.mark.cases(2, exhaustive=4)
@pytest.mark.parametrize(
    ("axes", "changes"),
    [
        ({"fsdp": 4, "expert": 2}, {"remat": "full"}),
        ({"data": 2, "fsdp": 2, "expert": 2}, {"remat": "full"}),
        ({"fsdp": 2, "sequence": 2, "tensor": 2}, {"attention.qkv_bias": True}),
        ({"fsdp": 2, "tensor": 2, "expert": 2}, {"head.tied": True, "scan_layers": False}),
        ({"fsdp": 4, "expert": 2}, {"numerics.dtype": "bfloat16", "remat": "full"}),
        ({"fsdp": 2, "sequence": 2, "expert": 2}, EXPERTS),
        ({"fsdp": 4, "expert": 2}, LATENT | {"scan_layers": True}),
    ],
)
def test_several_axes_gather_and_sum_one_after_the_other(axes, changes):
    model, batch = random_model(changes), random_batch(ROWS, 16)
    found, compiled = on_devices(model, batch, make_mesh(**axes))
    most = 5e-2 if "numerics.dtype" in changes else 1e-5
    assert worst_error(found, on_one(model, batch)) < most
    if "remat" in changes and "data" not in axes:
        D, F = TINY.embed_dim, TINY.mlp_dim
        moved = [
            one._replace(shapes=tuple(tuple(n for n in s if n > 1) for s in one.shapes))
            for one in collectives(compiled)
            if one.runs == TINY.num_layers
        ]
        parts = {(D, F), (D // 4, F), (F, D), (F, D // 4)}
        gathers = [one for one in moved if one.kind == "all-gather" and {*one.shapes} & parts]
        scatters = [one for one in moved if one.kind == "reduce-scatter" and F in one.shapes[0]]
        assert len(gathers) == 2 * 3 * 2  # gate, up and down, twice, in two stages
        assert len(scatters) == 3 * 2
        assert not [one for one in moved if one.kind == "all-reduce" and F in one.shapes[0]]


def test_gpus_gather_over_all_axes_at_once(monkeypatch):
    """Their network is no torus."""
    monkeypatch.setattr("jaxllm.layers.gather.platform", lambda: "gpu")
    model, batch = random_model(remat="full"), random_batch(ROWS, 16)
    _, compiled = on_devices(model, batch, make_mesh(fsdp=4, expert=2))
    gathers = [one for one in collectives(compiled) if one.kind == "all-gather"]
    D, F = TINY.embed_dim, TINY.mlp_dim
    assert not [one for one in gathers if {*one.shapes} & {(D // 4, F), (F, D // 4)}]


def test_rows_that_experts_have_sorted_are_not_summed_in_stages():
    """No mesh axis is known to split them."""
    x, dy = np.ones((6, 8), np.float32), np.ones((6, 16), np.float32)
    with jax.set_mesh(make_mesh(fsdp=2, expert=4)):
        assert sum_in_stages(lambda x, dy: x.T @ dy, "MD,DF->MF", x, dy, np.float32) is None
