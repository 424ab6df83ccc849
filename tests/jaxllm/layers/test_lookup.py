"""Lookups on a mesh equal those in the whole table, which is never gathered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives

from jaxllm.layers.lookup import look_up
from jaxllm.sharding import named_sharding
from jaxllm.train import make_mesh

V, D, B, T = 96, 32, 8, 6


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ({"fsdp": 4, "tensor": 2}, B),
        ({"data": 2, "fsdp": 2, "expert": 2}, B),
        ({"data": 4, "expert": 2}, 4),  # too few rows for all devices
        ({"fsdp": 4, "sequence": 2}, B),
        ({"fsdp": 8}, 1),
    ],
)
def test_values_and_gradient_equal_those_of_one_device(sizes, rows):
    rng = np.random.default_rng(0)
    table, weights = rng.standard_normal((V, D)), rng.standard_normal((rows, T, D))
    table, weights = table.astype(np.float32), weights.astype(np.float32)
    tokens = rng.integers(0, V, (rows, T)).astype(np.int32)
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, weights)
    mesh = make_mesh(**sizes)

    @jax.jit
    def both(table, tokens):
        value = lambda table: jnp.vdot(look_up(table, tokens, "float32"), weights)  # noqa: E731
        return look_up(table, tokens, "float32"), jax.grad(value)(table)

    with jax.set_mesh(mesh):
        places = named_sharding("VD", table.shape, mesh), named_sharding("BT", tokens.shape, mesh)
        given = jax.device_put((table, tokens), places)
        found, gradient = both(*given)
        outside = both(given[0], given[1].at[0, 0].set(V).at[0, 1].set(-1))[0]
    np.testing.assert_array_equal(found, table[tokens])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(outside).all(-1).sum() == 2


def test_activations_move_and_not_the_table():
    mesh = make_mesh(fsdp=8)
    wide = jax.ShapeDtypeStruct(
        (8192, D), jnp.float32, sharding=named_sharding("VD", (8192, D), mesh)
    )
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=named_sharding("BT", (B, T), mesh))
    with jax.set_mesh(mesh):
        gradient = jax.grad(lambda table, tokens: look_up(table, tokens, "float32").std())
        found = collectives(jax.jit(gradient).lower(wide, tokens).compile())
    assert {one.kind for one in found} >= {"all-to-all"}
    assert sum(one.bytes * one.runs for one in found) < 4 * B * T * D * 4


def test_the_gradient_is_added_up_in_float32():
    """In bfloat16, 256 + 1 is 256."""
    table, tokens = jnp.ones((3, 2)), jnp.array([[1] * 1000 + [0]])
    gradient = jax.grad(lambda table: look_up(table, tokens, "bfloat16").astype(float).sum())(table)
    np.testing.assert_array_equal(gradient, [[1, 1], [1000, 1000], [0, 0]])
