"""Sharding propagation: small programs whose collectives are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.train.planning.analytic.placement import place_inputs
from jaxllm.train.planning.analytic.program import flatten
from jaxllm.train.planning.analytic.propagation import Propagation, list_collectives
from jaxllm.train.planning.step_program import abstract_mesh

SIZES = {"fsdp": 4, "tensor": 2}
MESH = abstract_mesh(SIZES)


def _collectives(function, specs, shapes, *, params=0, dtype=jnp.float32):
    """Returns (kind, axes, moved) of a function of arrays; the first `params` are parameters."""
    args = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    with jax.sharding.use_abstract_mesh(MESH):
        region = flatten(jax.make_jaxpr(function)(*args), "tpu")
    place_inputs(region, [NamedSharding(MESH, PartitionSpec(*spec)) for spec in specs])
    split = Propagation(SIZES, region.inputs[:params]).run(region)
    return [(one.kind, one.axes, one.moved) for one in list_collectives(split)]


def _constrained(x, *spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(MESH, PartitionSpec(*spec)))


def test_parameters_are_gathered_for_activations_and_once():
    def function(w, x):
        return x @ w + jnp.sin(x) @ w

    found = _collectives(function, [("fsdp",), ("fsdp",)], [(16, 8), (32, 16)], params=1)
    assert found == [("all-gather", ("fsdp",), 16 * 8 * 4 * 3 / 4)]


def test_a_parameter_is_gathered_in_the_dtype_that_it_is_cast_to():
    def function(w, x):
        return x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)

    found = _collectives(function, [("fsdp",), ("fsdp",)], [(16, 8), (32, 16)], params=1)
    assert found == [("all-gather", ("fsdp",), 16 * 8 * 2 * 3 / 4)]


def test_a_gradient_is_scattered_as_its_parameter_is_split():
    def function(w, x, y):
        return w + x.T @ y

    found = _collectives(
        function, [("fsdp",), ("fsdp",), ("fsdp",)], [(16, 8), (32, 16), (32, 8)], params=1
    )
    assert found == [("reduce-scatter", ("fsdp",), 16 * 8 * 4 * 3 / 4)]


def test_a_sum_over_a_split_dimension_is_reduced_or_scattered_by_what_follows():
    shapes, specs = [(32, 16), (16, 8)], [("fsdp", "tensor"), ("tensor",)]
    part = 32 / 4 * 8 * 4
    assert _collectives(jnp.matmul, specs, shapes) == [("all-reduce", ("tensor",), part)]
    scattered = _collectives(lambda x, w: _constrained(x @ w, "fsdp", "tensor"), specs, shapes)
    assert scattered == [("reduce-scatter", ("tensor",), part / 2)]


def test_a_constraint_gathers_slices_and_exchanges():
    shape, whole = [(16, 8)], 16 * 8 * 4
    assert _collectives(_constrained, [("fsdp",)], shape) == [
        ("all-gather", ("fsdp",), whole * 3 / 4)
    ]
    assert _collectives(lambda x: _constrained(x, "fsdp"), [()], shape) == []
    assert _collectives(lambda x: _constrained(x, None, "fsdp"), [("fsdp",)], shape) == [
        ("all-to-all", ("fsdp",), whole / 4 * 3 / 4)
    ]


def test_loops_count_every_trip_and_keep_the_split_of_what_they_carry():
    def function(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    found = _collectives(function, [(None, "fsdp"), ("fsdp",)], [(5, 16, 16), (32, 16)], params=1)
    assert found == [("all-gather", ("fsdp",), 5 * 16 * 16 * 4 * 3 / 4)]


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (lambda x: jax.lax.psum(x, "fsdp"), ("all-reduce", 8 * 8 * 4 * 6 / 4)),
        (lambda x: jax.lax.all_gather(x, "fsdp"), ("all-gather", 32 * 8 * 4 * 3 / 4)),
        (
            lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True),
            ("all-to-all", 8 * 8 * 4 * 3 / 4),
        ),
    ],
)
def test_collectives_of_shard_map_are_read(inner, expected):
    run = jax.shard_map(
        inner, mesh=MESH, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec(), check_vma=False
    )
    ((kind, axes, moved),) = _collectives(run, [("fsdp",)], [(32, 8)])
    assert (kind, axes, moved) == (expected[0], ("fsdp",), expected[1])
