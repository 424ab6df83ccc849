"""Tensor parallelism sums a layer's activations five times a step, and computes the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from flax import nnx
from mesh_gradients import on_devices, on_one, random_batch, worst_error
from tiny import TINY, random_model

from jaxllm.layers.linear import Linear
from jaxllm.layers.together import project_together
from jaxllm.params import split
from jaxllm.train import make_mesh

ROWS, T, L = 8, 13, 3


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention.qkv_bias": True, "mlp.bias": True},
        {"num_kv_heads": 1},  # fewer than devices: k and v are not split
        {"numerics.dtype": "bfloat16"},  # XLA for CPUs cannot sum it inside the shard_map
    ],
)
def test_gradients_of_one_input_are_summed_together(changes):
    """The outputs of attention and MLP, once more in the backward pass; then both inputs'."""
    model, batch = random_model(changes, num_layers=L, remat="full"), random_batch(ROWS, T)
    found, compiled = on_devices(model, batch, make_mesh(fsdp=4, tensor=2))
    most = 5e-2 if "numerics.dtype" in changes else 1e-5
    assert worst_error(found, on_one(model, batch)) < most
    if "num_kv_heads" not in changes:
        stream = (ROWS // 4, T, TINY.embed_dim)
        sums = [one for one in collectives(compiled) if one.kind == "all-reduce"]
        assert sum(one.runs for one in sums if stream in one.shapes and one.runs == L) == 5 * L


@pytest.mark.cases(1)
@pytest.mark.parametrize("changes", [{"attention.out_bias": True, "mlp.bias": True}, {}])
def test_outputs_are_rounded_before_they_are_summed(changes, monkeypatch):
    """XLA for CPUs cannot sum bfloat16 there, so the program for GPUs is read."""
    model = random_model(changes | {"numerics.dtype": "bfloat16"})
    batch, mesh = random_batch(ROWS, T), make_mesh(fsdp=4, tensor=2)
    found, _ = on_devices(model, batch, mesh)
    assert worst_error(found, on_one(model, batch)) < 5e-2
    monkeypatch.setattr("jaxllm.layers.together.platform", lambda: "gpu")
    bind, params = split(model)
    with jax.set_mesh(mesh):
        trace = jax.make_jaxpr(lambda params: bind(params)(batch["tokens"][:, :T]).logits)
        text = str(trace(params))
    sums = re.findall(rf"(\w+)\[{ROWS},{T},{TINY.embed_dim}\]\S* = psum", text)
    assert sums == ["bf16"] * 2  # of the scanned layer


def test_projections_with_hooks_are_called_one_by_one():
    """Inside a shard_map hooks would get nothing, and parity would compare no projection."""
    equations = "BTD,DNH->BTNH", "BTD,DKH->BTKH"
    shapes = (TINY.embed_dim, TINY.num_heads, TINY.head_dim), (TINY.embed_dim, 2, TINY.head_dim)
    q_proj, k_proj = (
        Linear(*each, config=TINY, rngs=nnx.Rngs(0)) for each in zip(equations, shapes, strict=True)
    )
    x_BTD = jnp.zeros((2, T, TINY.embed_dim))

    def is_mapped():
        run = jax.make_jaxpr(lambda x_BTD: project_together((q_proj, k_proj), x_BTD))
        return "shard_map" in str(run(x_BTD))

    with jax.set_mesh(make_mesh(fsdp=4, tensor=2)):
        assert is_mapped()
        k_proj.hook = lambda name, value: value
        assert not is_mapped()


def test_a_mesh_may_lack_the_axis():
    linear = Linear("BTD,DF->BTF", (8, 16), config=TINY, rngs=nnx.Rngs(0))
    x_BTD = jnp.ones((4, 2, 8))
    with jax.set_mesh(jax.make_mesh((4,), ("data",))):
        (found,) = project_together((linear,), x_BTD)
    np.testing.assert_array_equal(found, linear(x_BTD))
