"""Checkpoint rules: one line says how stored tensors and a model's array hold the same numbers.

    Rule("model.layers.{L}.self_attn.q_proj.weight : (N r h) D",
         "layers.{L}.attn.q_proj.kernel : D N (r h)")

Each side is a name and the dimensions of the array under that name. A dimension is an axis or,
in brackets, several axes merged, the first varying slowest. An axis may also live in the name:
`{L}` stands for its index, `{T:02}` for its index in two digits, `{G=gate|up}` for its label,
`{K R}` for the index of two axes merged. A stored name that ends in `#part` is a part of a fused
tensor, whose parts follow each other along its first dimension in the order of their rules:

    Rule("h.{L}.qkv.weight#q : (N H) D", "layers.{L}.attn.q_proj.kernel : D N H"),
    Rule("h.{L}.qkv.weight#k : (K H) D", "layers.{L}.attn.k_proj.kernel : D K H"),

Both sides must have the same axes. A rule is thereby a relabelling of indices, so it is a
bijection, both directions come from the one line, a round trip returns the same bits, and any
part of an array pulls back to the parts of the tensors that hold it.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from .copying import copy_bits

Sizes = Mapping[str, int]
Index = Mapping[str, int]
Range = tuple[int, int]
Ranges = Mapping[str, Range]
# By the path of a list of layers, each array's label and the layers that it holds. One layer's
# array is not stacked and its label is the layer's number; that of others is a slice, as in "0:32".
Stacks = Mapping[str, Mapping[str, range]]

_PLACEHOLDER = re.compile(r"\{(\w+(?: \w+)*)(?::(\d+))?(?:=([^}]*))?\}")
_DIMENSION = re.compile(r"\(([^()]*)\)|(\w+)")


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a rule: a name in which axes may stand, and an array's dimensions."""

    name: str
    dims: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The side written as `name : dims`."""
        name, colon, pattern = text.partition(" : ")
        if not colon or _DIMENSION.sub("", pattern).strip():
            raise ValueError(f"{text!r} is not of the form 'name : A (B C)'")
        if braces := re.findall(r"\{[^}]*\}?|\}", _PLACEHOLDER.sub("", name)):
            raise ValueError(
                f"{braces[0]!r} in {name!r} is not {{A}}, {{A:02}}, {{A=x|y}} or {{A B}}"
            )
        dims = tuple(
            tuple((merged or single).split()) for merged, single in _DIMENSION.findall(pattern)
        )
        return cls(name.strip(), dims)

    @cached_property
    def name_axes(self) -> tuple[str, ...]:
        """The axes that live in the name."""
        return tuple(
            axis for match in _PLACEHOLDER.finditer(self.name) for axis in match[1].split()
        )

    @cached_property
    def labels(self) -> dict[str, list[str]]:
        """By the axes of a placeholder, as in `K R`, the labels that stand for their positions."""
        return {
            match[1]: match[3].split("|")
            for match in _PLACEHOLDER.finditer(self.name)
            if match[3] is not None
        }

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """All axes: those in the name, then those of the array."""
        return (*self.name_axes, *self.array_axes)

    @cached_property
    def array_axes(self) -> tuple[str, ...]:
        """The axes of the array, merged or not."""
        return tuple(itertools.chain.from_iterable(self.dims))

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape of the array under each name."""
        return tuple(math.prod(sizes[axis] for axis in dim) for dim in self.dims)

    def spell(self, index: Index, sizes: Sizes) -> str:
        """The name at these positions of its axes."""

        def fill(match: re.Match[str]) -> str:
            axes, width, labels = match.groups()
            position = 0
            for axis in axes.split():
                position = position * sizes[axis] + index[axis]
            if labels is not None:
                return labels.split("|")[position]
            return f"{position:0{width or 1}}"

        return _PLACEHOLDER.sub(fill, self.name)

    def names(self, sizes: Sizes) -> Iterator[tuple[str, Index]]:
        """Every name, and the positions of its axes."""
        for positions in itertools.product(*(range(sizes[axis]) for axis in self.name_axes)):
            index = dict(zip(self.name_axes, positions, strict=True))
            yield self.spell(index, sizes), index

    def at(self, axis: str, positions: Sequence[int], sizes: Sizes) -> Self:
        """This side with `axis`, which lives in the name, cut down to some of its positions."""

        def label(match: re.Match[str]) -> str:
            if match[1] != axis:
                return match[0]
            whole = Side(match[0], ())
            labels = "|".join(whole.spell({axis: i}, sizes) for i in positions)
            return f"{{{axis}={labels}}}"

        return dataclasses.replace(self, name=_PLACEHOLDER.sub(label, self.name))

    def stacked(self, axis: str, label: str) -> Self:
        """This side with `axis` moved from its name, where `label` replaces it, to the array."""
        name = re.sub(rf"\{{{axis}(:\d+)?(=[^}}]*)?\}}", label, self.name)
        return dataclasses.replace(self, name=name, dims=((axis,), *self.dims))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Stored tensors on the left, a model's arrays on the right, the same numbers in both.

    A `replicated` axis is in the stored name alone: every tensor along it is a copy. `layers` are
    the positions of the axis in the model's name `layers.{L}` at which the rule holds; None: all.
    """

    stored: Side
    model: Side
    replicated: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None

    def __init__(
        self,
        stored: str | Side,
        model: str | Side,
        replicated: str = "",
        layers: Sequence[int] | None = None,
    ):
        sides = [Side.parse(side) if isinstance(side, str) else side for side in (stored, model)]
        copies = tuple(replicated.split())
        object.__setattr__(self, "layers", None if layers is None else tuple(layers))
        object.__setattr__(self, "stored", sides[0])
        object.__setattr__(self, "model", sides[1])
        object.__setattr__(self, "replicated", copies)
        self._check_bijection()

    def _check_bijection(self) -> None:
        axes = [set(side.axes) for side in (self.stored, self.model)]
        problems = [
            f"{', '.join(sorted(only))} only on the {where}"
            for only, where in (
                (axes[0] - axes[1] - set(self.replicated), "left"),
                (axes[1] - axes[0], "right"),
            )
            if only
        ]
        for side in (self.stored, self.model):
            twice = {axis for axis in side.axes if side.axes.count(axis) > 1}
            if twice:
                problems.append(f"{', '.join(sorted(twice))} twice in {side.name!r}")
            for placeholder, labels in side.labels.items():
                if again := sorted({label for label in labels if labels.count(label) > 1}):
                    problems.append(f"{placeholder} has {', '.join(map(repr, again))} twice")
        if wrong := [a for a in self.replicated if a not in self.stored.name_axes or a in axes[1]]:
            problems.append(f"replicated {', '.join(wrong)} must be in the left name alone")
        problems += self._misplaced_layers() + self._misplaced_parts()
        if problems:
            raise ValueError(f"not a bijection: {self}: " + "; ".join(problems))

    def _misplaced_layers(self) -> list[str]:
        """What is wrong with `layers`, and with where the layers' axis stands."""
        problems = []
        if self.layers is not None:
            if self.layered is None:
                problems.append(f"layers={self.layers} without layers.{{L}} in the right name")
            if wrong := [i for i in self.layers if i < 0 or self.layers.count(i) > 1]:
                problems.append(f"layers has {', '.join(map(str, wrong))} twice or below 0")
        if self.layered is not None:
            axis = self.layered[1]
            merged = [m[1] for m in _PLACEHOLDER.finditer(self.stored.name) if " " in m[1]]
            if any(axis in placeholder.split() for placeholder in merged):
                problems.append(f"{axis}, of the layers, is merged in {self.stored.name!r}")
        return problems

    def _misplaced_parts(self) -> list[str]:
        """What is wrong with the `#part` of a name."""
        problems = []
        if "#" in self.model.name:
            problems.append(f"a #part in {self.model.name!r}, on the right")
        if self.stored.name.count("#") > 1 or self.stored.name.endswith("#"):
            problems.append(f"{self.stored.name!r} does not name one part")
        if "#" in self.stored.name and not self.stored.dims:
            problems.append(f"{self.stored.name!r} has no dimension along which parts follow")
        return problems

    def __str__(self) -> str:
        return f"{self.stored.name} <-> {self.model.name}"

    @cached_property
    def layered(self) -> tuple[str, str] | None:
        """The path of the layers that it is about and their axis, as in `layers` and `L`."""
        match = re.match(r"((?:\w+\.)*layers)\.\{(\w+)\}\.", self.model.name)
        return match and (match[1], match[2])

    def importing(self, sizes: Sizes) -> "Transfer":
        """From the stored tensors to the model's arrays."""
        return Transfer(self.stored, self.model, sizes)

    def exporting(self, sizes: Sizes) -> "Transfer":
        """From the model's arrays to the stored tensors."""
        return Transfer(self.model, self.stored, sizes)

    def bound(self, sizes: Sizes, stacks: Stacks) -> "Iterator[BoundRule]":
        """The rule for a model whose layers are stacked so: once for each stack it holds for.

        Raises ValueError if the sizes do not fit the rule, or a stack only in part.
        """
        if problems := [*self._unfit_sizes(sizes), *self._unfit_stacks(sizes, stacks)]:
            raise ValueError(f"{self}: " + "; ".join(problems))
        if self.layered is None:
            yield BoundRule(self, sizes)
            return
        path, axis = self.layered
        for label, positions in stacks[path].items():
            if self.layers is not None and not set(positions) <= set(self.layers):
                continue
            stored = self.stored.at(axis, positions, sizes)
            one = self.model.at(axis, positions, sizes)
            model = one.stacked(axis, label) if len(positions) > 1 else one
            rule = Rule(stored, model, " ".join(self.replicated))
            yield BoundRule(rule, {**sizes, axis: len(positions)})

    def _unfit_sizes(self, sizes: Sizes) -> Iterator[str]:
        """Axes that have no size, and labels that are more or fewer than their axis's positions."""
        for axis in dict.fromkeys(self.stored.axes):
            if sizes.get(axis, 0) < 1:
                yield f"{axis} has no size" if axis not in sizes else f"{axis} is {sizes[axis]}"
        for side in (self.stored, self.model):
            for placeholder, labels in side.labels.items():
                count = math.prod(sizes.get(axis, 0) for axis in placeholder.split())
                if count and count != len(labels):
                    yield f"{placeholder} is {count}, but has the labels {'|'.join(labels)}"

    def _unfit_stacks(self, sizes: Sizes, stacks: Stacks) -> Iterator[str]:
        """Layers that the model does not have, and stacks that the rule holds for only in part."""
        if self.layered is None:
            return
        path, axis = self.layered
        if path not in stacks:
            yield f"{axis}: the model has no {path}"
            return
        count = sum(map(len, stacks[path].values()))
        if axis in sizes and sizes[axis] != count:
            yield f"{axis} is {sizes[axis]}, the model has {count} layers"
        holds = set(range(count)) if self.layers is None else set(self.layers)
        if beyond := sorted(holds - set(range(count))):
            yield f"{axis}: layers {', '.join(map(str, beyond))} are not of the model's {count}"
        for label, positions in stacks[path].items():
            own = holds & set(positions)
            if own and own != set(positions):
                yield f"{axis}: {path}.{label} are one array, it holds for {sorted(own)} of them"
            if own and axis in self.stored.array_axes and len(positions) < count:
                yield (
                    f"{axis} is in the array of {self.stored.name!r}, but {path}.{label} are only "
                    f"{len(positions)} of {count} layers"
                )


class BoundRule(NamedTuple):
    """A rule and the sizes of its axes."""

    rule: Rule
    sizes: Sizes

    def stored(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every stored tensor's name and shape."""
        side = self.rule.stored
        return ((name, side.shape(self.sizes)) for name, _ in side.names(self.sizes))


class Piece(NamedTuple):
    """A part of an array, and the part of one tensor that holds the same numbers."""

    name: str  # of the tensor
    ranges: Mapping[str, Range]  # of every axis
    place: tuple[slice, ...]  # where in the box that was asked for lies the region
    region: Mapping[str, Range]  # of the array's axes, of which `ranges` is a part
    box: tuple[Range, ...]  # of the tensor: all of it that must be read
    held: Mapping[str, Range]  # of the axes in that box, of which `ranges` is a part as well


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One direction of a rule at given sizes: from the tensors of `source` to those of `target`."""

    source: Side
    target: Side
    sizes: Sizes

    def pieces(self, index: Index, box: Sequence[Range]) -> Iterator[Piece]:
        """The pieces of source tensors that make up `box` of the target tensor at `index`.

        An axis that only the source's name has is a copy, of which the first is read.
        """
        source, target, sizes = self.source, self.target, self.sizes
        copies = {axis: (0, 1) for axis in source.name_axes if axis not in target.axes}
        fixed = {axis: (position, position + 1) for axis, position in index.items()}
        choices = (
            split_range(low, high, [sizes[axis] for axis in dim])
            for dim, (low, high) in zip(target.dims, box, strict=True)
        )
        for factors in itertools.product(*choices):
            bounds = itertools.chain.from_iterable(factors)
            region = dict(zip(target.array_axes, bounds, strict=True))
            spans = [interval(dim, region, sizes) for dim in target.dims]
            place = tuple(
                slice(start - low, stop - low)
                for (start, stop), (low, _) in zip(spans, box, strict=True)
            )
            ranges = {**copies, **fixed, **region}
            for positions in itertools.product(*(range(*ranges[a]) for a in source.name_axes)):
                at = dict(zip(source.name_axes, positions, strict=True))
                narrowed = {axis: (position, position + 1) for axis, position in at.items()}
                wanted = {**ranges, **narrowed}
                held = dict(bound for dim in source.dims for bound in _hull(dim, wanted, sizes))
                needed = tuple(interval(dim, held, sizes) for dim in source.dims)
                yield Piece(source.spell(at, sizes), wanted, place, region, needed, held)

    def read(
        self,
        index: Index,
        box: Sequence[Range],
        read: Callable[[str, Sequence[Range]], np.ndarray],
        dtype: np.dtype,
    ) -> np.ndarray:
        """`box` of the target tensor at `index`, from the boxes of tensors that `read` returns."""
        out = np.empty([high - low for low, high in box], dtype)
        for piece in self.pieces(index, box):
            self.copy_part(piece, read(piece.name, piece.box), out)
        return out

    def copy(self, piece: Piece, tensor: np.ndarray, out: np.ndarray) -> None:
        """Copies one piece of `tensor` to its place in `out`, the box that was asked for."""
        self.copy_part(piece, tensor[tuple(slice(*bounds) for bounds in piece.box)], out)

    def copy_part(self, piece: Piece, part: np.ndarray, out: np.ndarray) -> None:
        """Copies one piece to its place in `out`; `part` is the piece's box of its tensor."""
        source, target = self.source.array_axes, self.target.array_axes
        shared = [axis for axis in target if axis in source]
        order = [axis for axis in source if axis in shared]
        from_view = part_of(part, source, piece.held, piece.ranges, shared)
        into_view = part_of(out[piece.place], target, piece.region, piece.ranges, shared)
        copy_bits(from_view.transpose([order.index(axis) for axis in shared]), into_view)


def split_range(low: int, high: int, sizes: Sequence[int]) -> list[tuple[Range, ...]]:
    """Covers [low, high) of a merged dimension by boxes over its factors, each one contiguous."""
    if low >= high:
        return []
    if len(sizes) <= 1:
        return [((low, high),)] if sizes else [()]
    inner = math.prod(sizes[1:])
    (first, head), (last, tail) = divmod(low, inner), divmod(high, inner)
    if first == last:
        return [((first, first + 1), *rest) for rest in split_range(head, tail, sizes[1:])]
    boxes: list[tuple[Range, ...]] = []
    if head:
        boxes += [((first, first + 1), *rest) for rest in split_range(head, inner, sizes[1:])]
        first += 1
    if first < last:
        boxes.append(((first, last), *((0, size) for size in sizes[1:])))
    boxes += [((last, last + 1), *rest) for rest in split_range(0, tail, sizes[1:])]
    return boxes


def interval(dim: Sequence[str], region: Mapping[str, Range], sizes: Sizes) -> Range:
    """Where a contiguous box over the factors of a merged dimension starts and stops in it."""
    start = last = 0
    for axis in dim:
        low, high = region[axis]
        start, last = start * sizes[axis] + low, last * sizes[axis] + high - 1
    return start, last + 1


def _hull(
    dim: Sequence[str], region: Mapping[str, Range], sizes: Sizes
) -> Iterator[tuple[str, Range]]:
    """The smallest box over the factors of a merged dimension that holds `region` and no gaps."""
    is_whole = False
    for axis in dim:
        yield axis, (0, sizes[axis]) if is_whole else region[axis]
        is_whole |= region[axis][1] - region[axis][0] > 1


def part_of(
    array: np.ndarray,
    axes: Sequence[str],
    region: Mapping[str, Range],
    ranges: Mapping[str, Range],
    kept: Sequence[str],
) -> np.ndarray:
    """The `ranges` of an array that holds `region`, one dimension for each kept axis."""
    factors = array.reshape([high - low for low, high in (region[axis] for axis in axes)])
    at: list[slice | int] = []
    for axis in axes:
        start, stop = (bound - region[axis][0] for bound in ranges[axis])
        at.append(slice(start, stop) if axis in kept else start)
    return factors[(*at, ...)]
