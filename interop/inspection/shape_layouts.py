"""Layouts of a tensor beside an array of the same size: which axes each dimension consists of."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

Shape = tuple[int, ...]
MOST_DIMS = 5  # dimensions whose orders are all tried


class Layout(NamedTuple):
    """A way to read one shape as a change of order of another.

    Attributes:
        atoms: the sizes of the axes.
        left: the axes merged into each dimension of the left shape, as indices into `atoms`.
        right: the same of the right shape.
    """

    atoms: Shape
    left: tuple[tuple[int, ...], ...]
    right: tuple[tuple[int, ...], ...]

    @property
    def is_transposed(self) -> bool:
        """Whether the axes are in another order on the right."""
        order = list(itertools.chain.from_iterable(self.right))
        return order != sorted(order)

    @property
    def keeps_order(self) -> bool:
        """Whether the axes that are merged on one side are in the same order on the other."""
        order = list(itertools.chain.from_iterable(self.right))
        places = [[order.index(axis) for axis in dim] for dim in self.left]
        return all(list(dim) == sorted(dim) for dim in (*places, *self.right))


@lru_cache(1024)
def list_layouts(left: Shape, right: Shape) -> tuple[Layout, ...]:
    """Lists the layouts with the fewest axes; merged axes keep their order.

    Dimensions of size 1 have no axes.

    Args:
        left: the shape of the stored tensor.
        right: the shape of the array.
    """
    if math.prod(left) != math.prod(right) or max(len(left), len(right)) > MOST_DIMS:
        return ()
    wide = [dim for dim, size in enumerate(right) if size > 1]
    found: dict[Layout, None] = {}
    for order in itertools.permutations(wide):
        layout = _refine(left, right, order)
        if layout is not None and layout.keeps_order:
            found[layout] = None
    fewest = min((len(layout.atoms) for layout in found), default=0)
    return tuple(layout for layout in found if len(layout.atoms) == fewest)


def _refine(left: Shape, right: Shape, order: Sequence[int]) -> Layout | None:
    """Returns the layout whose axes, in the order of the left side, fill `right[order]`."""
    atoms: list[int] = []
    lefts: list[list[int]] = [[] for _ in left]
    rights: list[list[int]] = [[] for _ in right]
    ones = [(dim, size) for dim, size in enumerate(left) if size > 1]
    others = [(dim, right[dim]) for dim in order]
    while ones and others:
        (one, rest), (other, needed) = ones[0], others[0]
        size = min(rest, needed)
        if rest % size or needed % size:
            return None
        lefts[one].append(len(atoms))
        rights[other].append(len(atoms))
        atoms.append(size)
        ones[0], others[0] = (one, rest // size), (other, needed // size)
        ones = ones[1:] if rest == size else ones
        others = others[1:] if needed == size else others
    if ones or others:
        return None
    return Layout(tuple(atoms), tuple(map(tuple, lefts)), tuple(map(tuple, rights)))


def stacked_layouts(
    left: Shape, right: Shape, left_counts: Shape, right_counts: Shape
) -> Iterator[Layout]:
    """Yields the layouts of arrays that names count on both sides, such as the layers of a list.

    An axis that only one name has is a dimension of the other side, or part of one. The axes of
    names come first in `Layout.left` and `Layout.right`, one for each count.

    Args:
        left: the shape of each stored tensor.
        right: the shape of each array.
        left_counts: how many tensors there are along each number in their names.
        right_counts: how many arrays there are along each number in their names.
    """
    shared = list(_shared(left_counts, right_counts))
    if len(shared) not in (len(left_counts), len(right_counts)):
        return  # each side would count what the other one does not
    only_left = [c for i, c in enumerate(left_counts) if i not in {one for one, _ in shared}]
    only_right = [c for i, c in enumerate(right_counts) if i not in {other for _, other in shared}]
    for layout in list_layouts((*only_left, *left), (*only_right, *right)):
        heads = layout.left[: len(only_left)], layout.right[: len(only_right)]
        if any(len(axes) != 1 for head in heads for axes in head):
            continue  # the axis of a name is one axis
        yield _with_shared(layout, shared, left_counts, right_counts)


def _shared(left: Shape, right: Shape) -> Iterator[tuple[int, int]]:
    """Yields the positions of equal counts, each used once, from left to right."""
    free = list(range(len(right)))
    for one, count in enumerate(left):
        other = next((place for place in free if right[place] == count), None)
        if other is not None:
            free.remove(other)
            yield one, other


def _with_shared(
    layout: Layout, shared: Sequence[tuple[int, int]], left: Shape, right: Shape
) -> Layout:
    """Adds the axes that both names have to a layout, and puts the axes of names first."""
    atoms = list(layout.atoms)
    lefts, rights = list(layout.left), list(layout.right)
    named: tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]] = ({}, {})
    for one, other in shared:
        named[0][one] = named[1][other] = (len(atoms),)
        atoms.append(left[one])
    heads = []
    for own, dims, counts in ((named[0], lefts, left), (named[1], rights, right)):
        heads.append([own[i] if i in own else dims.pop(0) for i in range(len(counts))])
    return Layout(tuple(atoms), (*heads[0], *lefts), (*heads[1], *rights))
