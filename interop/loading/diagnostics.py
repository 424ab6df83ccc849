"""What is wrong with a checkpoint's tensors, said so that it can be put right."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from jaxllm.config import Dtype
from jaxllm.interop.families import Table, nearest
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.bijection import fused_parts
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import BoundRule

from .name_folding import fold

Tensors = Mapping[str, StoredTensor]


class Findings(NamedTuple):
    """One line for each tensor that is not as the config says."""

    problems: list[str]
    unexpected: list[str]  # tensors that nothing is known of


def check_tensors(table: Table, rules: Sequence[BoundRule], tensors: Tensors) -> Findings:
    """What is missing, unexpected or mis-shaped, with the name or the axis that was meant."""
    uneven = _check_parts(rules, tensors)
    parts = {part for whole in uneven for part in fused_parts(rules)[whole]}
    expected = {name: bound for bound in rules for name, _ in bound.stored() if name not in parts}
    optional = {*uneven, *table.tied, *(derived.name for derived in table.derived)}
    missing = [name for name in expected if name not in tensors]
    unexpected = [
        name
        for name in tensors
        if name not in expected and name not in optional and not reason_to_ignore(table, name)
    ]
    found = {name: bound for name, bound in expected.items() if name in tensors}
    solved = _solve(found, tensors)
    shapes = {
        name: _shape_problem(bound.rule.stored, tensors[name].shape, bound.sizes, solved)
        for name, bound in found.items()
    }
    readable = get_args(Dtype)
    return Findings(
        [
            *(
                f"{name} is {tensors[name].dtype.name}; readable are {', '.join(readable)}"
                for name in found
                if tensors[name].dtype.name not in readable
            ),
            *_say_folded(missing, "missing", unexpected),
            *(f"{name}: {problem}" for name, problem in shapes.items() if problem),
            *(f"{name}: {problem}" for name, problem in uneven.items()),
        ],
        _say_folded(unexpected, "unexpected", missing),
    )


def _say_folded(names: Sequence[str], what: str, others: Sequence[str]) -> list[str]:
    """A line for each name, or for all that differ in their numbers, with what may be meant."""
    return [
        (f"{name} is {what}" if len(members) == 1 else f"{name} are {what}")
        + nearest(members[0], others)
        for name, members in fold(dict.fromkeys(names))
    ]


def check_arrays(rules: Sequence[BoundRule], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Which of a model's arrays, given by their shapes, the rules do not fill, or fill wrongly."""
    given = {name: bound for bound in rules for name, _ in bound.rule.model.names(bound.sizes)}
    unfilled = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    return [
        *(f"no rule is about {name} of the model{nearest(name, unknown)}" for name in unfilled),
        *(
            f"a rule is about {name}, which the model does not have{nearest(name, unfilled)}"
            for name in unknown
        ),
        *(
            f"the rule of {name} says {dim}, the model has {found}"
            for name, shape in wanted.items()
            if name in given
            for dim, found in _differing(given[name], shape)
        ),
    ]


def _differing(bound: BoundRule, shape: tuple[int, ...]) -> list[tuple[str, object]]:
    """The dimensions of a rule's array that are not the model's, and what the model has."""
    side, sizes = bound.rule.model, bound.sizes
    if len(side.dims) != len(shape):
        return [(f"shape {side.shape(sizes)}", shape)]
    pairs = zip(side.dims, side.shape(sizes), shape, strict=True)
    return [(f"({' '.join(dim)}) is {size}", found) for dim, size, found in pairs if size != found]


def _check_parts(rules: Sequence[BoundRule], tensors: Tensors) -> dict[str, str]:
    """Fused tensors that could not be split, as their parts do not add up, and the sum."""
    bound_of = {name: bound for bound in rules for name, _ in bound.stored()}
    problems = {}
    for whole, parts in fused_parts(rules).items():
        if whole in tensors:
            terms = [_spell_rows(part, bound_of[part]) for part in parts]
            rows = sum(shape[0] for shape in parts.values())
            problems[whole] = (
                f"{' + '.join(terms)} = {rows} rows from the config, "
                f"shape {tensors[whole].shape} in the file"
            )
    return problems


def _spell_rows(part: str, bound: BoundRule) -> str:
    dim = bound.rule.stored.dims[0]
    rows = math.prod(bound.sizes[axis] for axis in dim)
    return f"{part.partition('#')[2]} ({' '.join(dim)}) {rows}"


def reason_to_ignore(table: Table, name: str) -> str | None:
    """Why a stored tensor is left alone; None if the table does not say so."""
    matching = (why for pattern, why in table.ignored.items() if fnmatch.fnmatchcase(name, pattern))
    return next(matching, None)


def _solve(expected: Mapping[str, BoundRule], tensors: Tensors) -> dict[str, int]:
    """The axes whose size in the config is wrong, and their size in the file.

    Only those that by themselves explain every dimension that they are a part of.
    """
    implied: dict[str, set[int | None]] = {}
    sizes: dict[str, int] = {}
    for name, bound in expected.items():
        dims, shape = bound.rule.stored.dims, tensors[name].shape
        if len(dims) != len(shape):
            continue
        for dim, found in zip(dims, shape, strict=True):
            for axis in dim:
                others = math.prod(bound.sizes[a] for a in dim) // bound.sizes[axis]
                value = found // others if found % others == 0 else None
                implied.setdefault(axis, set()).add(value)
                sizes[axis] = bound.sizes[axis]
    return {
        axis: value
        for axis, values in implied.items()
        for value in values
        if len(values) == 1 and value not in (None, sizes[axis])
    }


def _shape_problem(
    side: Side, shape: tuple[int, ...], sizes: Sizes, solved: Mapping[str, int]
) -> str | None:
    expected = side.shape(sizes)
    if shape == expected:
        return None
    if len(shape) != len(expected):
        return f"shape is {expected} from the config, {shape} in the file"
    return "; ".join(
        _size_problem(number, dim, found, sizes, solved)
        for number, (dim, found) in enumerate(zip(side.dims, shape, strict=True))
        if expected[number] != found
    )


def _size_problem(
    number: int, dim: Sequence[str], found: int, sizes: Sizes, solved: Mapping[str, int]
) -> str:
    """What is wrong with one dimension: with one of its axes, if only that one can be meant."""
    wrong = [axis for axis in dim if axis in solved]
    if len(dim) > 1 and len(wrong) == 1:
        (axis,) = wrong
        return (
            f"{axis} is {sizes[axis]} from the config, {solved[axis]} in the file "
            f"(dimension {number}: {found} / {found // solved[axis]})"
        )
    if len(dim) == 1:
        return f"{dim[0]} is {sizes[dim[0]]} from the config, {found} in the file"
    factors = " x ".join(str(sizes[axis]) for axis in dim)
    product = math.prod(sizes[axis] for axis in dim)
    return f"({' '.join(dim)}) is {factors} = {product} from the config, {found} in the file"
