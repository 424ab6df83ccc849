"""Collapses names that differ only in their indices: `model.layers.{0..31}.mlp.up.weight`."""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"(?<![^./])\d+(?![^./])")  # a number that is a whole component of a name


class Folded(NamedTuple):
    """A group of names that differ only in their indices: the collapsed name, and all of them."""

    name: str
    members: tuple[str, ...]


MOST_NAMED = 6  # groups of names in a message


def fold(items: Mapping[str, Hashable]) -> list[Folded]:
    """Collapses names of the same kind that differ only in their indices.

    A collapsed name stands for every combination of its indices. If some combinations are missing,
    the names are split into several groups.

    Args:
        items: the kind of each name; only names of equal kind are collapsed.

    Returns:
        The groups, in the order of their first names.
    """
    kinds: dict[tuple[str, Hashable], dict[tuple[str, ...], str]] = {}
    for name, kind in items.items():
        template = _NUMBER.sub("\0", name)
        kinds.setdefault((template, kind), {})[tuple(_NUMBER.findall(name))] = name
    return [
        Folded(_format(template, product), tuple(names[numbers] for numbers in _members(product)))
        for (template, _), names in kinds.items()
        for product in _products(list(names))
    ]


def _products(rows: Iterable[tuple[str, ...]]) -> Iterator[list[list[str]]]:
    """Splits a set of rows into Cartesian products, one set of values for each column."""
    rests: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        if not row:
            yield []
            return
        rests.setdefault(row[0], []).append(row[1:])
    alike: dict[frozenset[tuple[str, ...]], list[str]] = {}
    for first, rest in rests.items():
        alike.setdefault(frozenset(rest), []).append(first)
    for firsts in alike.values():
        for product in _products(rests[firsts[0]]):
            yield [firsts, *product]


def _members(product: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Yields every row of a Cartesian product."""
    if not product:
        yield ()
        return
    for first in product[0]:
        for rest in _members(product[1:]):
            yield (first, *rest)


def _format(template: str, product: Sequence[Sequence[str]]) -> str:
    columns = iter(product)
    return re.sub("\0", lambda _: _format_numbers(next(columns)), template)


def _format_numbers(numbers: Sequence[str]) -> str:
    """Formats a single number as it is, several as ranges in braces."""
    if len(numbers) == 1:
        return numbers[0]
    ranges: list[list[str]] = []
    for text in sorted(numbers, key=int):
        if ranges and int(text) == int(ranges[-1][-1]) + 1:
            ranges[-1] = [ranges[-1][0], text]
        else:
            ranges.append([text])
    return "{" + ",".join("..".join(ends) for ends in ranges) + "}"


def in_short(names: Sequence[str]) -> str:
    """Returns names for a message: those that differ only in their indices count as one.

    Of many names, only their number and the modules that hold them are told.
    """
    groups = fold(dict.fromkeys(names))
    if len(groups) <= MOST_NAMED:
        return ", ".join(group.name for group in groups)
    modules = dict.fromkeys(name.removeprefix("model.").partition(".")[0] for name in names)
    return f"{len(names):,} tensors of {', '.join(modules)}"
