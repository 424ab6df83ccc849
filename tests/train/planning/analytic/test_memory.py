"""Memory of split programs: small ones whose arrays can be counted."""

import jax
import jax.numpy as jnp

from jaxllm.train.planning.analytic.memory import Liveness, vector_traffic
from jaxllm.train.planning.analytic.program import flatten

SIZES = {"fsdp": 1}
X, KIB4 = jnp.zeros((32, 32)), 32 * 32 * 4


def _peak(function, *args, is_donated=False):
    region = flatten(jax.make_jaxpr(function)(*args), "tpu")
    return Liveness(region, SIZES, is_donated=is_donated).peak()[0]


def test_fused_operations_take_no_memory_and_matmuls_do():
    assert _peak(lambda x: jnp.sin(x).sum(), X) < KIB4
    assert _peak(lambda x: jnp.sin(x @ x).sum(), X) < 2 * KIB4
    assert _peak(lambda x: (x @ x) @ x, X) == 2 * KIB4


def test_a_conversion_after_a_matmul_narrows_it():
    narrow = _peak(lambda x: (x @ x).astype(jnp.bfloat16).sum(dtype=jnp.float32), X)
    assert narrow < KIB4


def test_arrays_die_after_their_last_use():
    def chain(x):
        for _ in range(6):
            x = x @ x
        return x

    assert _peak(chain, X) == 2 * KIB4
    assert _peak(chain, X, is_donated=True) == 2 * KIB4


def test_a_loop_keeps_what_it_stacks_and_carries_in_place():
    def stack(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), c), x @ x, None, 10)

    # The stack of ten, what is carried, and one that the body returns in its place.
    assert 11 * KIB4 <= _peak(stack, X) <= 13 * KIB4


def test_traffic_counts_kept_arrays_that_no_matmul_makes():
    region = flatten(jax.make_jaxpr(lambda x: jnp.sin(x @ x) @ x)(X), "tpu")
    assert vector_traffic(region, SIZES) == 2 * KIB4  # the product is read, its sine is written
