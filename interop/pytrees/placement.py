"""Where the leaves of a tree go: the argument `shardings`, as a sharding for each leaf."""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec, Sharding, SingleDeviceSharding

from jaxllm.errors import UserError, listed

from .leaves import NamedLeaves


def place_leaves(
    leaves: NamedLeaves, names: Collection[str], shardings: Any
) -> Callable[[str], Sharding]:
    """Returns a function from the name of a leaf to its sharding.

    Args:
        leaves: the leaves of the tree.
        names: the leaves to place.
        shardings: the argument of `load_into`.

    Raises:
        UserError: there is no sharding for a leaf, or it does not divide the leaf. Lists each.
    """
    arrays, found, problems = leaves.arrays, {}, {}
    given = _by_name(leaves, shardings)
    for name in names:
        sharding = given(name)
        if not isinstance(sharding, Sharding):
            problems[name] = f"{name} has {type(sharding).__name__} in place of a sharding"
            continue
        try:
            sharding.shard_shape(tuple(arrays[name].shape))
        except ValueError as error:
            problems[name] = f"{name}: {error}"
        found[name] = sharding
    if problems:
        raise UserError("\n".join(["shardings:", *listed(list(problems.values()), str)]))
    return found.__getitem__


def _by_name(leaves: NamedLeaves, shardings: Any) -> Callable[[str], Any]:
    """Returns a function from the name of a leaf to what `shardings` say about it."""
    if isinstance(shardings, Sharding):
        return lambda name: shardings
    if isinstance(shardings, Mesh | PartitionSpec):
        raise UserError(
            f"shardings: a {type(shardings).__name__} is no sharding: give "
            "NamedSharding(mesh, PartitionSpec(...))"
        )
    if shardings is None:
        alone = SingleDeviceSharding(jax.local_devices()[0])
        return lambda name: getattr(leaves.arrays[name], "sharding", None) or alone
    if callable(shardings) and jax.tree_util.all_leaves([shardings]):  # modules are callable, too
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in leaves.arrays.items()}
        return lambda name: shardings(name, shapes[name])
    tree = NamedLeaves.of(shardings)
    return dict(zip(tree.names, tree.values, strict=True)).get
