"""Sides of rules, parsed from text: a name pattern such as `layers.{L}.wq`, and dimensions."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Self

from .axis_ranges import Dims, Sizes

Index = Mapping[str, int]  # axis -> position

_PLACEHOLDER = re.compile(r"\{(\w+(?: \w+)*)(?::(\d+))?(?:=([^}]*))?\}")
_DIMENSION = re.compile(r"\(([^()]*)\)|(\w+)")


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a rule: a name pattern with axis placeholders, and the dimensions of an array.

    Attributes:
        name: the pattern, such as `layers.{L}.wq`.
        dims: the axes merged into each dimension of the array under each name.
    """

    name: str
    dims: Dims

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a side written as `name : dims`. Raises ValueError if it has another form."""
        name, colon, pattern = text.partition(" : ")
        if not colon or _DIMENSION.sub("", pattern).strip():
            raise ValueError(f"{text!r} is not of the form 'name : A (B C)'")
        if braces := re.findall(r"\{[^}]*\}?|\}", _PLACEHOLDER.sub("", name)):
            raise ValueError(
                f"{braces[0]!r} in {name!r} is not a placeholder: "
                "write {A}, {A:02}, {A=x|y} or {A B}"
            )
        dims = tuple(
            tuple((merged or single).split()) for merged, single in _DIMENSION.findall(pattern)
        )
        return cls(name.strip(), dims)

    @property
    def text(self) -> str:
        """The side as text that `parse` reads."""
        dims = (dim[0] if len(dim) == 1 else f"({' '.join(dim)})" for dim in self.dims)
        return f"{self.name} : {' '.join(dims)}"

    @cached_property
    def placeholders(self) -> tuple[tuple[str, ...], ...]:
        """The axes of each placeholder in the name; a placeholder may merge several axes."""
        return tuple(tuple(match[1].split()) for match in _PLACEHOLDER.finditer(self.name))

    @cached_property
    def name_axes(self) -> tuple[str, ...]:
        """The axes in the name."""
        return tuple(itertools.chain.from_iterable(self.placeholders))

    @cached_property
    def labels(self) -> dict[str, list[str]]:
        """The labels of each placeholder that has any, by its axes as written (such as `K R`)."""
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
        """The axes of the array, slowest first."""
        return tuple(itertools.chain.from_iterable(self.dims))

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Returns the shape of the array under each name."""
        return tuple(math.prod(sizes[axis] for axis in dim) for dim in self.dims)

    def format_name(self, index: Index, sizes: Sizes) -> str:
        """Returns the name at the given positions of its axes."""

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
        """Yields every name with the positions of its axes."""
        for positions in itertools.product(*(range(sizes[axis]) for axis in self.name_axes)):
            index = dict(zip(self.name_axes, positions, strict=True))
            yield self.format_name(index, sizes), index

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        """Matches the names of this pattern, with a group for each placeholder."""
        text, start = "", 0
        for match in _PLACEHOLDER.finditer(self.name):
            labels = r"\d+" if match[3] is None else "|".join(map(re.escape, match[3].split("|")))
            text += f"{re.escape(self.name[start : match.start()])}({labels})"
            start = match.end()
        return re.compile(text + re.escape(self.name[start:]))

    def find(self, name: str) -> tuple[str, ...] | None:
        """Returns the text at each placeholder of a name; None if it is not of this pattern."""
        match = self._regex.fullmatch(name)
        return match and match.groups()

    def at(self, axis: str, positions: Sequence[int], sizes: Sizes) -> Self:
        """Returns the side with `axis`, a placeholder of the name, restricted to `positions`."""

        def label(match: re.Match[str]) -> str:
            if match[1] != axis:
                return match[0]
            whole = Side(match[0], ())
            labels = "|".join(whole.format_name({axis: i}, sizes) for i in positions)
            return f"{{{axis}={labels}}}"

        return dataclasses.replace(self, name=_PLACEHOLDER.sub(label, self.name))

    def stacked(self, axis: str, label: str) -> Self:
        """Returns the side with `axis` moved from the name to the array's first dimension.

        `label` takes the place of the axis in the name.
        """
        name = re.sub(rf"\{{{axis}(:\d+)?(=[^}}]*)?\}}", label, self.name)
        return dataclasses.replace(self, name=name, dims=((axis,), *self.dims))
