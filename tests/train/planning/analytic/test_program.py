"""Flattening of traced programs: calls, loops, branches of a platform, and dead code."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxllm.train.planning.analytic.program import Value, flatten, local_bytes, local_shape
from jaxllm.train.planning.step_program import abstract_mesh


def _names(function, *args, platform="tpu"):
    region = flatten(jax.make_jaxpr(function)(*args), platform)
    return [op.name for op in region.ops], region


def test_calls_are_inlined_and_dead_code_is_dropped():
    @jax.jit
    def inner(x):
        jnp.cos(x)
        return jnp.sin(x)

    names, _ = _names(lambda x: (inner(x), jnp.tan(x))[0], jnp.ones(3))
    assert names == ["sin"]


def test_loops_keep_their_bodies_without_what_nobody_needs():
    def step(carry, x):
        return carry + x, jnp.exp(x)

    names, region = _names(lambda xs: jax.lax.scan(step, 0.0, xs)[0], jnp.ones(5))
    assert names == ["scan"]
    found = {op.name: times for op, times in region.walk()}
    assert found.pop("convert_element_type", 5) == 5  # of the carry's weak type
    assert found == {"scan": 1, "add": 5}
    assert len(region.ops[0].outputs) == 1


def test_a_platform_has_its_own_branch():
    def function(x):
        return jax.lax.platform_dependent(x, tpu=jnp.sin, cuda=jnp.cos, default=jnp.tan)

    found = {
        platform: _names(function, jnp.ones(3), platform=platform)[0]
        for platform in ("tpu", "cuda", "cpu")
    }
    for platform, name in {"tpu": "sin", "cuda": "cos", "cpu": "tan"}.items():
        assert found[platform][-1] == name


def test_a_branch_is_also_chosen_in_a_loop():
    def step(carry, _):
        return jax.lax.platform_dependent(carry, tpu=jnp.sin, default=jnp.cos), None

    _, region = _names(lambda x: jax.lax.scan(step, x, None, 3)[0], jnp.ones(3))
    assert "sin" in {op.name for op, _ in region.walk()}
    assert "cos" not in {op.name for op, _ in region.walk()}


def test_local_sizes_round_up():
    value = Value((6, 5), jnp.dtype("bfloat16"), (("data",), ("fsdp", "tensor")))
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    assert local_shape(value, sizes) == (3, 2)
    assert local_bytes(value, sizes) == 12


def test_a_sum_that_leaves_a_shard_map_for_nobody_is_dropped():
    mesh = abstract_mesh({"data": 2, "tensor": 4})

    def local(x):
        return jax.lax.psum(x, "tensor"), 2 * x

    def run(x):
        parts = PartitionSpec("tensor")
        mapped = jax.shard_map(local, in_specs=parts, out_specs=(PartitionSpec(), parts))
        return mapped(x)[1]

    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(run)(jax.ShapeDtypeStruct((8, 4), np.float32))
    names = [op.name for op, _ in flatten(jaxpr, "tpu").walk()]
    assert "mul" in names
    assert not [name for name in names if name.startswith("psum")]
