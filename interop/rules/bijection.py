"""Whether rules together are a bijection: every tensor and every array belongs to one of them."""

from collections.abc import Iterator, Mapping, Sequence

from .axis_ranges import Sizes
from .pattern import Index, Side
from .rule import BoundRule, Rule, Stacks


def bind(rules: Sequence[Rule], sizes: Sizes, stacks: Stacks) -> tuple[BoundRule, ...]:
    """The rules, with their sizes, for a model whose layers are stacked so.

    Raises ValueError with all rules that do not fit these sizes, or write the same numbers.
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
    """The name of each fused tensor, and the names and shapes of its parts in their order."""
    fused: dict[str, dict[str, tuple[int, ...]]] = {}
    for bound in rules:
        for name, shape in bound.stored():
            whole, is_part, _ = name.partition("#")
            if is_part:
                fused.setdefault(whole, {})[name] = shape
    return fused


def _overlaps(rules: Sequence[BoundRule]) -> Iterator[str]:
    """Tensors and arrays that are written twice."""
    tensors: dict[str, tuple[BoundRule, Index]] = {}
    arrays: dict[str, tuple[BoundRule, Index]] = {}
    for bound in rules:
        stored, model = bound.rule.stored, bound.rule.model
        yield from _claim(tensors, bound, stored, model)
        yield from _claim(arrays, bound, model, stored)
    for whole in fused_parts(rules):
        if whole in tensors:
            yield f"{whole} is stored whole and in parts"


def _claim(
    claimed: dict[str, tuple[BoundRule, Index]], bound: BoundRule, side: Side, other: Side
) -> Iterator[str]:
    """Claims the names of one side of a rule."""
    for name, index in side.names(bound.sizes):
        before, position = claimed.setdefault(name, (bound, index))
        if before is not bound:
            one = before.rule.stored if other is bound.rule.stored else before.rule.model
            both = f"for {_first(one, before.sizes)} and for {_first(other, bound.sizes)}"
            yield f"{name} is written twice, {both}"
        elif position is not index:
            yield f"{name} is written twice, at {_spell(position)} and at {_spell(index)}"


def _uneven_parts(rules: Sequence[BoundRule]) -> Iterator[str]:
    """Parts that cannot follow each other, as they differ beyond their first dimension."""
    for parts in fused_parts(rules).values():
        (first, expected), *others = parts.items()
        for name, shape in others:
            if shape[1:] != expected[1:]:
                yield f"{name} is {shape}, {first} is {expected}: only their rows may differ"


def _first(side: Side, sizes: Sizes) -> str:
    return next(side.names(sizes))[0]


def _spell(index: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={position}" for axis, position in index.items())
