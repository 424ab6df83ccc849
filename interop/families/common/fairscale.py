"""Rules for fairscale's model-parallel shards, one file each, and for unsharded checkpoints.

A rule names its T shards with the prefix `SHARD`. A lower-case letter is one shard's part of a
split axis: the rows of a column-parallel projection, the columns of a row-parallel one.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping

from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.rule import Rule

SHARD = "{T:02}/"


def split_sizes(
    sizes: Sizes, shards: int, split: Mapping[str, str], wrong: Collection[str] = ()
) -> dict[str, int]:
    """Adds to the axis sizes the number of shards, T, and the size of each split axis per shard.

    Args:
        sizes: the sizes of all axes.
        shards: the number of shards.
        split: maps the config's names of the split axes to their letters.
        wrong: other sizes that the shards do not divide, for the message.

    Raises:
        ValueError: the shards do not divide an axis, or `wrong` is not empty.
    """
    found = [f"{name}={sizes[axis]}" for name, axis in split.items() if sizes[axis] % shards]
    if found or wrong:
        raise ValueError(
            f"{shards} model-parallel shards do not divide {', '.join([*found, *wrong])}"
        )
    cut = {axis.lower(): sizes[axis] // shards for axis in split.values()}
    return {**sizes, **cut, "T": shards}


def without_shards(rule: Rule) -> Rule:
    """Returns the rule for an unsharded checkpoint, whose names have no shard prefix."""
    stored = dataclasses.replace(rule.stored, name=re.sub(r"^\{[^}]*\}/", "", rule.stored.name))
    dims = (tuple(axis for axis in dim if axis not in ("T", "U")) for dim in rule.model.dims)
    return Rule(stored, dataclasses.replace(rule.model, dims=tuple(dims)), layers=rule.layers)
