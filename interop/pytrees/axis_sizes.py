"""Sizes of the axes in rules, found from the shapes and the names on both sides.

A leaf `wq` of shape (48, 6, 8) and the right side `wq : D N H` give D = 48, N = 6, H = 8.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import Rule, Stacks

Shapes = Mapping[str, tuple[int, ...]]


class Product(NamedTuple):
    """Axes, and the product of their sizes."""

    axes: tuple[str, ...]
    size: int


def solve_sizes(
    rules: Sequence[Rule],
    given: Mapping[str, int],
    leaves: Shapes,
    stacks: Stacks,
    tensors: Shapes,
) -> dict[str, int]:
    """Returns the sizes of axes that labels, leaves and stored tensors determine.

    Where they contradict each other, the leaves decide: tensors are compared with them later.

    Args:
        rules: the rules.
        given: sizes that take precedence.
        leaves: the shapes of the leaves by name.
        stacks: the layers of the tree; see `rules.rule.Stacks`.
        tensors: the shapes of the stored tensors by name.
    """
    sizes = dict(given)
    counted = list(_labels(rules))
    for rule in rules:
        if rule.layered is not None and rule.layered[0] in stacks:
            path, axis = rule.layered
            counted.append(Product((axis,), sum(map(len, stacks[path].values()))))
    _solve(counted, sizes)
    _solve([p for rule in rules for p in _of_leaves(rule, leaves, stacks)], sizes)
    _solve([p for rule in rules for p in _of_side(rule.stored, tensors)], sizes)
    return sizes


def _labels(rules: Sequence[Rule]) -> Iterator[Product]:
    for rule in rules:
        for side in (rule.stored, rule.model):
            for axes, labels in side.labels.items():
                yield Product(tuple(axes.split()), len(labels))


def _of_leaves(rule: Rule, leaves: Shapes, stacks: Stacks) -> Iterator[Product]:
    """Yields what the leaves say about the axes of a rule's right side."""
    if rule.layered is None:
        yield from _of_side(rule.model, leaves)
        return
    of_layers = (rule.layered[1],)  # the layers of one array, which may be some of all
    for side in model_sides(rule, stacks):
        yield from (found for found in _dims(side, leaves) if found.axes != of_layers)


def model_sides(rule: Rule, stacks: Stacks) -> Iterator[Side]:
    """Yields the right side of a rule, and as it is for each array of several stacked layers."""
    yield rule.model
    if rule.layered is not None:
        path, axis = rule.layered
        for label, positions in stacks.get(path, {}).items():
            if len(positions) > 1:
                yield rule.model.stacked(axis, label)


def _of_side(side: Side, arrays: Shapes) -> Iterator[Product]:
    """Yields what the names and the shapes of arrays say about the axes of a side."""
    found = [texts for name in arrays if (texts := side.find(name)) is not None]
    for number, axes in enumerate(side.placeholders):
        if found and " ".join(axes) not in side.labels:
            yield Product(axes, 1 + max(int(texts[number]) for texts in found))
    yield from _dims(side, arrays)


def _dims(side: Side, arrays: Shapes) -> Iterator[Product]:
    """Yields the product of each dimension, from the first array that a side names."""
    for name, shape in arrays.items():
        if side.find(name) is not None and len(shape) == len(side.dims):
            yield from map(Product, side.dims, shape)
            return


def _solve(products: Sequence[Product], sizes: dict[str, int]) -> None:
    """Adds every size that follows from the products, in place."""
    changed = True
    while changed:
        changed = False
        for axes, size in products:
            unknown = [axis for axis in axes if axis not in sizes]
            rest = math.prod(sizes[axis] for axis in axes if axis in sizes)
            if len(unknown) == 1 and rest and size and size % rest == 0:
                sizes[unknown[0]] = size // rest
                changed = True
