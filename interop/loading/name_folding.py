"""Many names that differ in their numbers as a few, as in `model.layers.{0..31}.mlp.up.weight`."""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"(?<![^./])\d+(?![^./])")  # a whole part of a name


class Folded(NamedTuple):
    """Names that have everything but their numbers in common."""

    name: str
    members: tuple[str, ...]


def fold(items: Mapping[str, Hashable]) -> list[Folded]:
    """The names, those of one kind folded, in the order of the first of each.

    A fold stands for every combination of its numbers: where some are missing there are several.
    """
    kinds: dict[tuple[str, Hashable], dict[tuple[str, ...], str]] = {}
    for name, kind in items.items():
        template = _NUMBER.sub("\0", name)
        kinds.setdefault((template, kind), {})[tuple(_NUMBER.findall(name))] = name
    return [
        Folded(_spell(template, product), tuple(names[numbers] for numbers in _members(product)))
        for (template, _), names in kinds.items()
        for product in _products(list(names))
    ]


def _products(rows: Iterable[tuple[str, ...]]) -> Iterator[list[list[str]]]:
    """Cuts a set of rows into products of sets, one set for each column."""
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
    """Every row of a product."""
    if not product:
        yield ()
        return
    for first in product[0]:
        for rest in _members(product[1:]):
            yield (first, *rest)


def _spell(template: str, product: Sequence[Sequence[str]]) -> str:
    axes = iter(product)
    return re.sub("\0", lambda _: _numbers(next(axes)), template)


def _numbers(spelled: Sequence[str]) -> str:
    """One number as it is; several as their ranges in braces."""
    if len(spelled) == 1:
        return spelled[0]
    ranges: list[list[str]] = []
    for text in sorted(spelled, key=int):
        if ranges and int(text) == int(ranges[-1][-1]) + 1:
            ranges[-1] = [ranges[-1][0], text]
        else:
            ranges.append([text])
    return "{" + ",".join("..".join(ends) for ends in ranges) + "}"
