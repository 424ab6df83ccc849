"""Leaves of any JAX pytree by dotted names, such as `layers.0.attn.q_proj.weight`.

A name joins the keys of dicts, the names of fields and the positions in lists on the way to the
leaf, as `jax.tree_util.keystr` does. The `value` of a Flax variable, or of a Linen parameter with
the names of its axes, is not part of it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import jax
from flax import nnx
from flax.core.meta import AxisMetadata

from jaxllm.errors import CheckpointError
from jaxllm.interop.formats.stored_tensor import DTYPE_NAMES
from jaxllm.interop.rules.rule import Stacks
from jaxllm.params import stack_labels

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NamedLeaves:
    """The leaves of a tree, in the tree's order.

    Attributes:
        names: the name of each leaf.
        values: the leaves.
        treedef: the structure of the tree.
    """

    names: tuple[str, ...]
    values: tuple[Any, ...]
    treedef: Any

    @classmethod
    def of(cls, tree: Any) -> Self:
        """Names the leaves of a tree.

        Raises:
            CheckpointError: two leaves have one name.
        """
        found, treedef = jax.tree_util.tree_flatten_with_path(tree)
        variables = _variables(tree)
        names = tuple(_name(path, variables) for path, _ in found)
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise CheckpointError(f"several leaves of the tree are named {', '.join(twice)}")
        return cls(names, tuple(leaf for _, leaf in found), treedef)

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The arrays of numbers, and the shapes that stand for such, by name.

        Other leaves, such as functions, numbers of Python and random keys, have no tensors.
        """
        pairs = zip(self.names, self.values, strict=True)
        return {name: leaf for name, leaf in pairs if _is_array(leaf)}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the arrays by name."""
        return {name: tuple(leaf.shape) for name, leaf in self.arrays.items()}

    @cached_property
    def stacks(self) -> Stacks:
        """The layers in each list named `layers`; see `rules.rule.Stacks`."""
        return stack_labels(self.arrays)

    def replaced(self, arrays: Mapping[str, Any]) -> Any:
        """Returns the tree with other arrays in place of the leaves of these names."""
        pairs = zip(self.names, self.values, strict=True)
        return jax.tree_util.tree_unflatten(
            self.treedef, [arrays.get(name, leaf) for name, leaf in pairs]
        )


def is_abstract(leaf: Any) -> bool:
    """Whether a leaf has only a shape and a dtype, but no numbers."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and getattr(leaf, "dtype", None) in DTYPE_NAMES


def _variables(tree: Any) -> set[tuple[Any, ...]]:
    """Returns the paths of the Flax variables and of the boxed Linen parameters of a tree."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    return {tuple(path) for path, node in found if _is_variable(node)}


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable | AxisMetadata)


def _name(path: Iterable[Any], variables: set[tuple[Any, ...]]) -> str:
    keys = tuple(path)
    if keys[:-1] in variables:
        keys = keys[:-1]
    return ".".join(re.sub(r"^\.", "", _text(key)) for key in keys)


def _text(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)
