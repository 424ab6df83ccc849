"""Matching stored tensors to leaves of any tree: shapes say what fits, names what is likely."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from .layout_search import EPSILON, NUMBER
from .name_similarity import words
from .shape_layouts import Layout, Shape, stacked_layouts

# Words of leaves that are often stored as one fused tensor, in this order; arrays of decoders have
# those of `decoder_matching.FUSED`.
FUSED = (("q", "k", "v"), ("k", "v"), ("gate", "up"))

GAP = "\0"  # in place of each number in a name


class Group(NamedTuple):
    """Arrays of one shape whose names differ only in numbers that count from 0.

    Attributes:
        name: their name, with `GAP` in place of each number that counts.
        shape: the shape of each.
        counts: how many there are along each of these numbers.
    """

    name: str
    shape: Shape
    counts: Shape


class Part(NamedTuple):
    """Rows of a fused tensor, and the leaf that they fill."""

    tensor: Group
    leaf: Group


def group_names(
    shapes: Mapping[str, Shape], allowed: Sequence[Collection[int]] = ()
) -> list[Group]:
    """Groups arrays whose names differ only in numbers that count from 0.

    Args:
        shapes: the shapes of the arrays by name.
        allowed: if given, the counts that the first, the second, ... counting number may have;
            other numbers are part of the name.
    """
    alike: dict[tuple[str, Shape], list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        template = NUMBER.sub("\1", name)
        alike.setdefault((template, shape), []).append(tuple(map(int, NUMBER.findall(name))))
    groups: list[Group] = []
    for (template, own), rows in alike.items():
        groups += _split(Group(template, own, ()), rows, allowed)
    return groups


def _split(
    group: Group, rows: Sequence[tuple[int, ...]], allowed: Sequence[Collection[int]]
) -> Iterator[Group]:
    """Yields the groups of rows of numbers, which stand at the marks `\\1` of a name."""
    if "\1" not in group.name:
        yield group
        return
    rests: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in rows:
        rests.setdefault(first, []).append(tuple(rest))
    counts = sorted(rests) == list(range(len(rests))) and len(rests) > 1
    place = len(group.counts)
    may_count = not allowed or (place < len(allowed) and len(rests) in allowed[place])
    if counts and may_count and len({frozenset(rest) for rest in rests.values()}) == 1:
        name = group.name.replace("\1", GAP, 1)
        yield from _split(Group(name, group.shape, (*group.counts, len(rests))), rests[0], allowed)
        return
    for number, others in rests.items():
        name = group.name.replace("\1", str(number), 1)
        yield from _split(group._replace(name=name), others, allowed)


class LeafMatcher:
    """Stored tensors and the leaves of a tree, and how well they fit each other.

    Args:
        tensors: the shapes of the stored tensors by name.
        leaves: the shapes of the leaves by name.
        aliases: other names of stored tensors, such as those of jaxllm's arrays.
    """

    def __init__(
        self,
        tensors: Mapping[str, Shape],
        leaves: Mapping[str, Shape],
        aliases: Mapping[str, str],
    ):
        self.stored = group_names(tensors)
        places = itertools.zip_longest(*(group.counts for group in self.stored), fillvalue=0)
        # Without numbers in names, the layers may be the first dimension.
        stacked = {group.shape[0] for group in self.stored if len(group.shape) > 1}
        self.leaves = group_names(leaves, [set(place) for place in places] or [stacked])
        self._aliases = aliases

    @cached_property
    def _wanted(self) -> dict[Group, frozenset[str]]:
        """The words of each leaf's name."""
        return {group: _words(group) for group in self.leaves}

    @cached_property
    def _known(self) -> dict[Group, list[frozenset[str]]]:
        """The words of each stored tensor's name, and of its other name if there is one."""
        known = {group: [_words(group)] for group in self.stored}
        for group in self.stored:
            alias = self._aliases.get(re.sub(GAP, "0", group.name))
            known[group] += [] if alias is None else [words(re.sub(r"\d+", ".", alias))]
        return known

    @cached_property
    def _weights(self) -> dict[str, float]:
        used = Counter(word for wanted in self._wanted.values() for word in wanted)
        return {word: math.log(1 + len(self.leaves) / count) for word, count in used.items()}

    def likeness(self, stored: Group, leaf: Group) -> float:
        """Returns the similarity of two names, from 0 to 1."""
        wanted = self._wanted[leaf]
        return max(
            self._sum(given & wanted) / max(self._sum(given | wanted), EPSILON)
            for given in self._known.get(stored, [_words(stored)])
        )

    def fit(self, stored: Group, leaf: Group) -> float:
        """Returns the similarity of two names; 0 if the shapes rule them out."""
        return self.likeness(stored, leaf) + EPSILON if self.layouts(stored, leaf) else 0.0

    def layouts(self, stored: Group, leaf: Group) -> list[Layout]:
        """Lists the ways in which the tensors may hold the leaves."""
        return list(stacked_layouts(stored.shape, leaf.shape, stored.counts, leaf.counts))

    def pairs(self) -> dict[Group, Group]:
        """Returns the pairs of tensors and leaves with the best total similarity."""
        fits = np.array([[self.fit(one, leaf) for leaf in self.leaves] for one in self.stored])
        if not fits.size:
            return {}
        rows, columns = (np.linspace(0, 1, size) for size in fits.shape)
        # Both sides mostly define their parts in the same order, which decides between equals.
        fits += (fits > 0) * EPSILON * (1 - np.square(rows[:, None] - columns))
        chosen = zip(*linear_sum_assignment(-fits), strict=True)
        return {self.stored[i]: self.leaves[j] for i, j in chosen if fits[i, j] > 0}

    def fused(self, pairs: Mapping[Group, Group]) -> dict[Group, list[Part]]:
        """Returns the tensors without a pair that leaves without one fill together."""
        taken = set(pairs.values())
        found: dict[Group, list[Part]] = {}
        for stored in (one for one in self.stored if one not in pairs and one.shape):
            for names in FUSED:
                parts = self._parts(stored, names, [x for x in self.leaves if x not in taken])
                if parts and sum(part.tensor.shape[0] for part in parts) == stored.shape[0]:
                    found[stored] = parts
                    taken |= {part.leaf for part in parts}
                    break
        return found

    def _parts(
        self, stored: Group, names: Sequence[str], leaves: Sequence[Group]
    ) -> list[Part] | None:
        """Returns the leaves of these words that may be the rows of a tensor, if all exist."""
        found = []
        for name in names:
            parts = (self._part(stored, name, leaf) for leaf in leaves)
            fitting = [part for part in parts if part is not None]
            if not fitting:
                return None
            found.append(max(fitting, key=lambda part: self.likeness(stored, part.leaf)))
        return found

    def _part(self, stored: Group, name: str, leaf: Group) -> Part | None:
        """Returns the rows of a tensor that a leaf with this word fills, if it can."""
        rest = math.prod(stored.counts) * math.prod(stored.shape[1:])
        rows, left_over = divmod(math.prod(leaf.counts) * math.prod(leaf.shape), rest)
        if left_over or name not in _words(leaf) or not 0 < rows < stored.shape[0]:
            return None
        if ("bias" in _words(leaf)) != ("bias" in _words(stored)):
            return None
        tensor = Group(f"{stored.name}#{name}", (rows, *stored.shape[1:]), stored.counts)
        return Part(tensor, leaf) if self.layouts(tensor, leaf) else None

    def _sum(self, chosen: frozenset[str]) -> float:
        # A word that no leaf has tells little: what it means here is not known.
        return sum(self._weights.get(word, 1.0) for word in chosen)


def _words(group: Group) -> frozenset[str]:
    return words(group.name.replace(GAP, ".")) - {"params"}
