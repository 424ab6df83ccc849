"""Placement: one sharding, a tree, a function, the leaves' own; and what is wrong with them."""

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxllm.errors import UserError
from jaxllm.interop.pytrees.leaves import NamedLeaves
from jaxllm.interop.pytrees.placement import place_leaves

TREE = {"w": np.zeros((4, 6), np.float32), "b": np.zeros(6, np.float32)}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def place(shardings, tree=TREE):
    leaves = NamedLeaves.of(tree)
    found = place_leaves(leaves, list(leaves.arrays), shardings)
    return {name: found(name) for name in leaves.arrays}


def test_one_sharding_is_for_all(mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    assert place(everywhere) == {"w": everywhere, "b": everywhere}


def test_a_tree_and_a_function_give_one_for_each(mesh):
    rows, columns = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("x", "y"))
    assert place({"w": rows, "b": columns}) == {"w": rows, "b": columns}
    assert place({"w": rows, "b": columns, "more": rows}) == {"w": rows, "b": columns}

    def choose(name, leaf):
        assert leaf == jax.ShapeDtypeStruct(TREE[name].shape, np.float32)
        return rows if leaf.ndim == 2 else columns

    assert place(choose) == {"w": rows, "b": columns}


def test_a_callable_module_is_a_tree(mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    norm = eqx.nn.RMSNorm(6, use_bias=False)
    assert place(jax.tree.map(lambda _: everywhere, norm), norm) == {"weight": everywhere}


def test_by_default_leaves_stay_where_they_are(mesh):
    rows = NamedSharding(mesh, PartitionSpec("x"))
    first = SingleDeviceSharding(jax.devices()[0])
    tree = {
        "a": jax.device_put(np.zeros(4), rows),
        "b": jax.ShapeDtypeStruct((4,), np.float32, sharding=rows),
        "c": jax.ShapeDtypeStruct((4,), np.float32),
        "d": np.zeros(4),
    }
    assert place(None, tree) == {"a": rows, "b": rows, "c": first, "d": first}


def test_every_wrong_sharding_is_named(mesh):
    rows = NamedSharding(mesh, PartitionSpec("x"))
    with pytest.raises(UserError) as caught:
        place({"b": rows})
    assert "w has NoneType in place of a sharding" in str(caught.value)
    assert "b: " in str(caught.value)  # 6 does not divide over 4 devices
    advice = r"is no sharding: give NamedSharding\(mesh, PartitionSpec\(...\)\)"
    with pytest.raises(UserError, match=f"shardings: a Mesh {advice}"):
        place(mesh)
    with pytest.raises(UserError, match=rf"shardings: a P\w* {advice}"):
        place(PartitionSpec("x"))
    with pytest.raises(UserError, match=r"w has P\w* in place of a sharding"):
        place(lambda name, leaf: PartitionSpec())
