"""A layer that is recomputed gathers each kernel once in each direction, with equal gradients."""

import re

import jax
import numpy as np
from collectives import collectives
from tiny import TINY, random_model, relative_l2

from jaxllm.params import map_parameters, parameter_shardings, split
from jaxllm.train import make_mesh
from jaxllm.train.data.placement import on_mesh

ROWS, T, L = 8, 13, 3


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
