"""Binds rules to axis sizes and checks that together they write no tensor or array twice."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from .axis_ranges import Sizes
from .pattern import Index, Side
from .rule import BoundRule, Rule, Stacks

Fused = TypeVar("Fused", bound=Any)  # anything with a shape


def bind(rules: Sequence[Rule], sizes: Sizes, stacks: Stacks) -> tuple[BoundRule, ...]:
    """Binds rules to axis sizes and to the way a model stacks its layers.

    Args:
        rules: the rules of one checkpoint format.
        sizes: the size of every axis in the rules.
        stacks: the arrays of each list of layers; see `rule.Stacks`.

    Raises:
        ValueError: a rule does not fit the sizes or the stacks, two rules write the same tensor or
            array, or the parts of a fused tensor cannot be concatenated. Lists every problem.
    """
    bound: list[BoundRule] = []
    problems: list[str] = []
    for rule in rules:
        try:
            bound += rule.bound(sizes, stacks)
        except ValueError as error:
            problems.append(str(error))
    if problems := [*problems, *_overlaps(bound), *_uneven_parts(bound)]:
        raise ValueError("; ".join(problems))
    return tuple(bound)


def fused_parts(rules: Sequence[BoundRule]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the parts of each fused tensor: their names and shapes, in order of concatenation.

    That is the order of the rules, but parts whose names begin with an index go by that first.
    """
    fused: dict[str, dict[str, tuple[int, ...]]] = {}
    for bound in rules:
        for name, shape in bound.stored():
            whole, is_part, _ = name.partition("#")
            if is_part:
                fused.setdefault(whole, {})[name] = shape
    return {
        whole: dict(sorted(parts.items(), key=lambda part: leading_index(part[0])))
        for whole, parts in fused.items()
    }


def leading_index(name: str) -> int:
    """Returns the index that the part of a name begins with, or 0."""
    found = re.match(r"\d+", name.partition("#")[2])
    return int(found[0]) if found else 0


def split_fused(
    rules: Sequence[BoundRule],
    tensors: Mapping[str, Fused],
    cut: Callable[[Fused, str, int, int], Fused],
) -> dict[str, Fused]:
    """Replaces each fused tensor by its parts, unless its rows differ from the parts' sum.

    Args:
        rules: the rules that name the parts.
        tensors: tensors or arrays by name.
        cut: returns the part of this name, from its first row and its number of rows.
    """
    split = dict(tensors)
    for fused, parts in fused_parts(rules).items():
        whole = tensors.get(fused)
        num_rows = [shape[0] for shape in parts.values()]
        if whole is None or tuple(whole.shape[:1]) != (sum(num_rows),):
            continue
        del split[fused]
        start = 0
        for part, count in zip(parts, num_rows, strict=True):
            split[part] = cut(whole, part, start, count)
            start += count
    return split


def _overlaps(rules: Sequence[BoundRule]) -> Iterator[str]:
    """Yields a message for each tensor or array that is written twice."""
    tensors: dict[str, tuple[BoundRule, Index]] = {}
    arrays: dict[str, tuple[BoundRule, Index]] = {}
    for bound in rules:
        stored, model = bound.rule.stored, bound.rule.model
        yield from _claim(tensors, bound, stored, model)
        yield from _claim(arrays, bound, model, stored)
    for whole in fused_parts(rules):
        if whole in tensors:
            yield f"{whole} is stored both whole and in parts"


def _claim(
    claimed: dict[str, tuple[BoundRule, Index]], bound: BoundRule, side: Side, other: Side
) -> Iterator[str]:
    """Records the names on one side of a rule; yields a message for each that is already taken."""
    for name, index in side.names(bound.sizes):
        before, position = claimed.setdefault(name, (bound, index))
        if before is not bound:
            one = before.rule.stored if other is bound.rule.stored else before.rule.model
            both = f"for {_first_name(one, before.sizes)} and for {_first_name(other, bound.sizes)}"
            yield f"{name} is written twice, {both}"
        elif position is not index:
            at = f"at {_format_index(position)} and at {_format_index(index)}"
            yield f"{name} is written twice, {at}"


def _uneven_parts(rules: Sequence[BoundRule]) -> Iterator[str]:
    """Yields a message for each part whose shape differs beyond the first dimension."""
    for parts in fused_parts(rules).values():
        (first, expected), *others = parts.items()
        for name, shape in others:
            if shape[1:] != expected[1:]:
                yield (
                    f"{name} has shape {shape}, {first} has shape {expected}: parts of one fused "
                    "tensor may differ only in their first dimension"
                )


def _first_name(side: Side, sizes: Sizes) -> str:
    return next(side.names(sizes))[0]


def _format_index(index: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={position}" for axis, position in index.items())
