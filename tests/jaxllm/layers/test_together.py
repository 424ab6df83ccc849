"""Tensor parallelism sums a layer's activations five times a step, and computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from flax import nnx
from tiny import TINY, random_model, relative_l2

from jaxllm.layers.linear import Linear
from jaxllm.layers.together import project_together
from jaxllm.params import map_parameters, parameter_shardings, split
from jaxllm.train import make_mesh
from jaxllm.train.data.placement import on_mesh
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss

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
    model = random_model(changes, num_layers=L, remat="full")
    bind, params = split(model)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, TINY.vocab_size, (ROWS, T + 1)),
        "mask": rng.random((ROWS, T)) < 0.6,
    }
    mesh = make_mesh(fsdp=4, tensor=2)

    def loss(params, batch):
        return next_token_loss(bind(params), batch, LossConfig(chunk_tokens=512))[0]

    expected = jax.jit(jax.value_and_grad(loss))(params, batch)
    with jax.set_mesh(mesh):
        shardings = parameter_shardings(model, mesh)
        places = map_parameters(model, lambda name, _: shardings[name])
        given = jax.device_put(params, places), on_mesh(batch, mesh, ROWS)
        compiled = jax.jit(jax.value_and_grad(loss)).lower(*given).compile()
        found = compiled(*given)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert relative_l2(ours, theirs) < (5e-2 if "numerics.dtype" in changes else 1e-5)
    if "num_kv_heads" not in changes:
        stream = (ROWS // 4, T, TINY.embed_dim)
        sums = [one for one in collectives(compiled) if one.kind == "all-reduce"]
        assert sum(one.runs for one in sums if stream in one.shapes and one.runs == L) == 5 * L


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
