"""Where sums over devices are headed for."""

import jax
import jax.numpy as jnp

from jaxllm.train.planning.analytic.destinations import Destinations
from jaxllm.train.planning.analytic.program import flatten


def _find(function, *shapes, params):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    region = flatten(jax.make_jaxpr(function)(*args), "tpu")
    product = next(op.outputs[0] for op in region.ops if op.name == "dot_general")
    ahead = Destinations(region, {"fsdp": 4}, params)
    return ahead.axes(product), ahead.dtype(product)


def test_a_transposed_sum_has_the_transposed_split_of_its_parameter():
    split = {(8, 16): (("fsdp",), ())}
    axes, dtype = _find(lambda x, y: (x @ y).T * 2, (16, 4), (4, 8), params=split)
    assert axes == ((), ("fsdp",))
    assert dtype == jnp.float32


def test_a_conversion_is_moved_ahead_of_the_sum():
    _, dtype = _find(lambda x, y: (x @ y).astype(jnp.bfloat16), (16, 4), (4, 8), params={})
    assert dtype == jnp.bfloat16


def test_a_sum_that_becomes_another_shape_is_no_gradient():
    axes, _ = _find(lambda x, y: (x @ y).sum(), (16, 4), (4, 8), params={(8, 16): ((), ())})
    assert axes is None
