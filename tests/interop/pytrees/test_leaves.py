"""Names of leaves: those of dicts, lists, dataclasses, Linen, Equinox and NNX."""

import dataclasses
from typing import NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import core, nnx
from tiny import random_model

from jaxllm.errors import CheckpointError
from jaxllm.interop.pytrees.leaves import NamedLeaves, is_abstract

ONE, KEY = jnp.ones(1), jax.random.key(0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Part:
    w: jax.Array
    rest: list


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def linen(freeze=lambda tree: tree, **options):
    """The variables of a Linen layer."""
    return freeze(nn.Dense(3, **options).init(KEY, jnp.ones((1, 2))))


def state():
    return nnx.state(Mlp(nnx.Rngs(0)), nnx.Param)


BOXED = {"kernel_init": nn.with_partitioning(nn.initializers.ones, ("a", "b"))}
LAYERS = ("layers.0.bias", "layers.0.kernel", "layers.1.bias", "layers.1.kernel")
MLP = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")
DENSE = ("params.bias", "params.kernel")
TREES = {
    "containers": ({"a": [ONE, (ONE,)], "b": {3: ONE}}, ("a.0", "a.1.0", "b.3")),
    "dataclass": (Part(ONE, [ONE, Pair(ONE, ONE)]), ("w", "rest.0", "rest.1.a", "rest.1.b")),
    "nnx state": (state(), LAYERS),
    "nnx dict": (nnx.to_pure_dict(state()), LAYERS),
    "nnx module": (Mlp(nnx.Rngs(0)), ("dropout.rngs.count", *LAYERS)),
    "nnx shapes": (nnx.eval_shape(lambda: Mlp(nnx.Rngs(0))), ("dropout.rngs.count", *LAYERS)),
    "linen": (linen(), DENSE),
    "linen frozen": (linen(core.freeze), DENSE),
    "linen boxed": (linen(**BOXED), DENSE),
    "equinox": (eqx.nn.MLP(2, 3, 4, 1, key=KEY), MLP),
}


@pytest.mark.parametrize("name", TREES)
def test_every_array_has_the_name_of_its_path(name):
    tree, names = TREES[name]
    leaves = NamedLeaves.of(tree)
    assert set(leaves.arrays) == set(names)
    assert leaves.shapes == {name: tuple(x.shape) for name, x in leaves.arrays.items()}


@pytest.mark.parametrize("name", TREES)
def test_replaced_leaves_are_in_the_same_tree(name):
    tree, names = TREES[name]
    leaves = NamedLeaves.of(tree)
    given = {name: np.full(leaves.shapes[name], i, np.float32) for i, name in enumerate(names)}
    found = leaves.replaced(given)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    chex.assert_trees_all_equal(NamedLeaves.of(found).arrays, given)
    assert NamedLeaves.of(tree).values == leaves.values  # the tree itself is as it was


def test_leaves_that_are_no_arrays_of_numbers_stay():
    tree = {"f": jnp.tanh, "x": 1.5, "key": KEY, "s": "text", "w": np.ones(2), "no": None}
    leaves = NamedLeaves.of(tree)
    assert set(leaves.arrays) == {"w"}
    found = leaves.replaced({"w": 7})
    assert (found["f"], found["x"], found["key"], found["w"]) == (jnp.tanh, 1.5, KEY, 7)


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(CheckpointError, match=r"several leaves of the tree are named a\.b"):
        NamedLeaves.of({"a": {"b": ONE}, "a.b": ONE})


def test_layers_of_lists_and_of_jaxllms_stacks_are_found():
    model = random_model()
    assert NamedLeaves.of(nnx.state(model)).stacks == {"layers": {"0:3": range(3)}}
    tree = {"net": {"layers": [{"w": ONE}, {"w": ONE}], "w": {"layers": {"q": ONE}}}}
    assert NamedLeaves.of(tree).stacks == {"net.layers": {"0": range(1), "1": range(1, 2)}}


def test_shapes_have_no_numbers():
    assert is_abstract(jax.ShapeDtypeStruct((2,), np.float32))
    assert not is_abstract(ONE)
