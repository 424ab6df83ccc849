"""Model-parallel shards as fairscale cuts them, one file each: rules for them, and for one alone.

A rule names T shards by the prefix `SHARD`. It has in lower case what a shard has of an axis that
is cut: rows of a column-parallel projection, columns of a row-parallel one.
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
    """The sizes, the number of shards, and what a shard has of each axis that is cut.

    Raises ValueError, with what else is `wrong`, if the shards do not divide what they must.

    Args:
        sizes: of all axes.
        shards: how many.
        split: the axes that are cut, by what the config calls them.
        wrong: other sizes that these shards do not divide.
    """
    found = [f"{name}={sizes[axis]}" for name, axis in split.items() if sizes[axis] % shards]
    if found or wrong:
        raise ValueError(
            f"{shards} model-parallel shards do not divide {', '.join([*found, *wrong])}"
        )
    cut = {axis.lower(): sizes[axis] // shards for axis in split.values()}
    return {**sizes, **cut, "T": shards}


def without_shards(rule: Rule) -> Rule:
    """The rule for a checkpoint of one shard, whose names do not say so."""
    stored = dataclasses.replace(rule.stored, name=re.sub(r"^\{[^}]*\}/", "", rule.stored.name))
    dims = (tuple(axis for axis in dim if axis not in ("T", "U")) for dim in rule.model.dims)
    return Rule(stored, dataclasses.replace(rule.model, dims=tuple(dims)), layers=rule.layers)
