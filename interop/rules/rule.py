"""Checkpoint rules: one line maps stored tensors to a model array that holds the same numbers.

    Rule("model.layers.{L}.self_attn.q_proj.weight : (N r h) D",
         "layers.{L}.attn.q_proj.kernel : D N (r h)")

Each side is a name and the dimensions of the array under that name. A dimension is one axis, or
several merged axes in parentheses, the first varying slowest. An axis may also be part of the
name: `{L}` stands for its index, `{T:02}` for its index in two digits, `{G=gate|up}` for its label,
and `{K R}` for the joint index of two merged axes. A stored name that ends in `#part` is one part
of a fused tensor, whose parts are concatenated along its first dimension in the order of the rules:

    Rule("h.{L}.qkv.weight#q : (N H) D", "layers.{L}.attn.q_proj.kernel : D N H"),
    Rule("h.{L}.qkv.weight#k : (K H) D", "layers.{L}.attn.k_proj.kernel : D K H"),

Parts that begin with an index, `#{K}q`, go by that index first: all parts of K = 0, then of K = 1.

Both sides must have the same axes. So a rule only relabels indices and is a bijection: the one line
gives both directions, a round trip returns the same bits, and any part of an array can be traced
back to the parts of the tensors that hold it.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from .axis_ranges import Sizes
from .pattern import Side
from .transfer import Transfer

# Path of a list of layers -> label of each array -> the layers that the array holds. The array of a
# single layer is not stacked and its label is the layer's number; the label of a stack is a slice,
# such as "0:32".
Stacks = Mapping[str, Mapping[str, range]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A bijection between stored tensors (left) and model arrays (right) with the same numbers.

    Attributes:
        stored: the side of the checkpoint.
        model: the side of the model.
        replicated: axes that occur only in the stored name. The tensors along such an axis are
            copies of each other. Given to the constructor as one string, separated by spaces.
        layers: the layers `{L}` of the model's name `layers.{L}` that the rule covers; None means
            all of them.

    Raises:
        ValueError: the rule is not a bijection. Names the axes at fault.
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
            problems.append(f"replicated {', '.join(wrong)} must be in the left name only")
        problems += self._misplaced_layers() + self._misplaced_parts()
        if problems:
            raise ValueError(f"not a bijection: {self}: " + "; ".join(problems))

    def _misplaced_layers(self) -> list[str]:
        """Returns what is wrong with `layers` and with the position of the layer axis."""
        problems = []
        if self.layers is not None:
            if self.layered is None:
                problems.append(f"layers={self.layers} without layers.{{L}} in the right name")
            counts = Counter(self.layers)
            if wrong := [i for i in self.layers if i < 0 or counts[i] > 1]:
                listed = ", ".join(map(str, wrong))
                problems.append(f"layers has repeated or negative positions: {listed}")
        if self.layered is not None:
            axis = self.layered[1]
            if any(axis in axes and len(axes) > 1 for axes in self.stored.placeholders):
                problems.append(f"the layer axis {axis} is merged in {self.stored.name!r}")
        return problems

    def _misplaced_parts(self) -> list[str]:
        """Returns what is wrong with the `#part` of a name."""
        problems = []
        if "#" in self.model.name:
            problems.append(f"{self.model.name!r} has a #part, which only the left side may have")
        if self.stored.name.count("#") > 1 or self.stored.name.endswith("#"):
            problems.append(f"{self.stored.name!r} does not name exactly one #part")
        if "#" in self.stored.name and not self.stored.dims:
            problems.append(f"{self.stored.name!r} has no dimension to concatenate parts along")
        return problems

    def __str__(self) -> str:
        return f"{self.stored.name} <-> {self.model.name}"

    @cached_property
    def layered(self) -> tuple[str, str] | None:
        """The path and the axis of the model's layers, such as `layers` and `L`, or None."""
        match = re.match(r"((?:\w+\.)*layers)\.\{(\w+)\}\.", self.model.name)
        return match and (match[1], match[2])

    def with_stored(self, name: str) -> "Rule":
        """Returns the rule of a checkpoint that has another name on the left side."""
        stored = dataclasses.replace(self.stored, name=name)
        return Rule(stored, self.model, " ".join(self.replicated), self.layers)

    def importing(self, sizes: Sizes) -> Transfer:
        """Returns the direction from stored tensors to model arrays."""
        return Transfer(self.stored, self.model, sizes)

    def exporting(self, sizes: Sizes) -> Transfer:
        """Returns the direction from model arrays to stored tensors."""
        return Transfer(self.model, self.stored, sizes)

    def bound(self, sizes: Sizes, stacks: Stacks) -> "Iterator[BoundRule]":
        """Yields the rule bound to sizes, once for each stack of layers that it covers.

        Raises:
            ValueError: the sizes do not fit the rule, or it covers only part of a stack.
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
        """Yields a message for each axis without a size or with another number of labels."""
        for axis in dict.fromkeys(self.stored.axes):
            if sizes.get(axis, 0) < 1:
                yield (
                    f"{axis} has no size"
                    if axis not in sizes
                    else f"{axis} is {sizes[axis]}, a size must be at least 1"
                )
        for side in (self.stored, self.model):
            for placeholder, labels in side.labels.items():
                count = math.prod(sizes.get(axis, 0) for axis in placeholder.split())
                if count and count != len(labels):
                    yield f"{placeholder} is {count}, but has the labels {'|'.join(labels)}"

    def _unfit_stacks(self, sizes: Sizes, stacks: Stacks) -> Iterator[str]:
        """Yields a message for layers that do not exist and stacks that are covered in part."""
        if self.layered is None:
            return
        path, axis = self.layered
        if path not in stacks:
            yield f"{axis}: the model has no {path}"
            return
        count = sum(map(len, stacks[path].values()))
        if axis in sizes and sizes[axis] != count:
            yield f"{axis} is {sizes[axis]}, but the model has {count} layers"
        covered = set(range(count)) if self.layers is None else set(self.layers)
        if beyond := sorted(covered - set(range(count))):
            missing = ", ".join(map(str, beyond))
            yield f"{axis}: layers {missing} do not exist, the model has {count}"
        for label, positions in stacks[path].items():
            own = covered & set(positions)
            if own and own != set(positions):
                yield (
                    f"{axis}: the layers {path}.{label} are one array, "
                    f"but the rule covers only {sorted(own)} of them"
                )
            if own and axis in self.stored.array_axes and len(positions) < count:
                yield (
                    f"{axis} is a dimension of the stored array {self.stored.name!r}, "
                    f"but {path}.{label} has only {len(positions)} of {count} layers"
                )


class BoundRule(NamedTuple):
    """A rule with the sizes of its axes."""

    rule: Rule
    sizes: Sizes

    def stored(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields the name and the shape of every stored tensor."""
        side = self.rule.stored
        return ((name, side.shape(self.sizes)) for name, _ in side.names(self.sizes))

    def replicas(self) -> Iterator[tuple[str, str]]:
        """Yields every stored tensor that is a copy of another, with that other one, the first."""
        rule = self.rule
        for name, index in rule.stored.names(self.sizes):
            if any(index[axis] for axis in rule.replicated):
                first = {**index, **dict.fromkeys(rule.replicated, 0)}
                yield name, rule.stored.format_name(first, self.sizes)
