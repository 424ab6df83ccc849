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
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from .axis_ranges import Sizes
from .pattern import Side
from .transfer import Transfer

# By the path of a list of layers, each array's label and the layers that it holds. One layer's
# array is not stacked and its label is the layer's number; that of others is a slice, as in "0:32".
Stacks = Mapping[str, Mapping[str, range]]


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
            if any(axis in axes and len(axes) > 1 for axes in self.stored.placeholders):
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

    def importing(self, sizes: Sizes) -> Transfer:
        """From the stored tensors to the model's arrays."""
        return Transfer(self.stored, self.model, sizes)

    def exporting(self, sizes: Sizes) -> Transfer:
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
