"""Checks of a checkpoint's tensors against its config, with messages that suggest the fix."""

import fnmatch
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, get_args

from jaxllm.config import Dtype
from jaxllm.errors import did_you_mean, listed
from jaxllm.interop.families import RuleTable
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.binding import fused_parts
from jaxllm.interop.rules.rule import BoundRule

from .name_folding import fold

Tensors = Mapping[str, StoredTensor]
MOST_ABSENT = 2000  # missing tensors that are still worth naming


class Findings(NamedTuple):
    """One message for each tensor, or group of similar tensors, that does not fit the config."""

    problems: list[str]
    unexpected: list[str]  # tensors that neither the rules nor the table mention


def check_count(table: RuleTable, tensors: Tensors, *, given_by: str = "the config") -> None:
    """Raises ValueError if the config asks for far more tensors than there are.

    A config of a few bytes may ask for any number, and laying out a model takes time for each.

    Args:
        table: the rules, with the sizes of their axes.
        tensors: the stored tensors.
        given_by: what the sizes of the axes come from, in messages.
    """
    wanted = 0
    for rule in table.rules:
        sizes = dict(table.sizes)
        if rule.layers is not None and rule.layered is not None:
            sizes[rule.layered[1]] = len(rule.layers)
        wanted += math.prod(sizes.get(axis, 1) for axis in rule.stored.name_axes)
    if wanted > MOST_ABSENT + 2 * len(tensors):
        raise ValueError(
            f"{given_by} asks for {wanted:,} tensors, but there are only {len(tensors):,}"
        )


def check_tensors(
    table: RuleTable,
    rules: Sequence[BoundRule],
    tensors: Tensors,
    name_field: Callable[[str, int], str | None] = lambda axis, size: None,
    *,
    given_by: str = "the config",
    supported: Collection[str] = (*get_args(Dtype), "float64"),
) -> Findings:
    """Finds tensors that are missing, unexpected, of the wrong shape or of an unsupported dtype.

    Messages suggest the name that may have been meant, and name the axis whose size is wrong.

    Args:
        table: the family's table for the config.
        rules: the table's rules, bound to the model.
        tensors: the stored tensors, with fused ones split into their parts.
        name_field: returns the field of the config that gives an axis its size, if it is known;
            takes the axis and the size that it has in the file.
        given_by: what the sizes of the axes come from, in messages.
        supported: the names of the dtypes that tensors may have.
    """
    uneven = _check_parts(rules, tensors, given_by)
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
        name: problem
        for name, bound in found.items()
        if (problem := _shape_problem(bound, tensors[name].shape, solved, given_by))
    }
    fields = {axis: name_field(axis, size) for axis, size in solved.items()}
    return Findings(
        [
            *(
                f"{name} is {tensors[name].dtype.name}; supported are {', '.join(supported)}"
                for name in found
                if tensors[name].dtype.name not in supported
            ),
            *_folded_messages(missing, "missing", unexpected),
            *_wrong_shapes(shapes, found, tensors, solved, fields),
            *(f"{name}: {problem}" for name, problem in uneven.items()),
        ],
        _folded_messages(unexpected, "unexpected", missing),
    )


def _folded_messages(names: Sequence[str], what: str, others: Sequence[str]) -> list[str]:
    """Returns one message per group of names that differ only in indices, with a suggestion."""
    return listed(
        fold(dict.fromkeys(names)),
        lambda group: (
            f"{group.name} {'is' if len(group.members) == 1 else 'are'} {what}"
            + did_you_mean(group.members[0], others)
        ),
    )


def _wrong_shapes(
    shapes: Mapping[str, str],
    found: Mapping[str, BoundRule],
    tensors: Tensors,
    solved: Mapping[str, int],
    fields: Mapping[str, str | None],
) -> list[str]:
    """Returns one message for each wrong field of the config, and for each group of other shapes.

    A field is at fault if the size of its axis alone explains a wrong shape.
    """
    by_axis: dict[str, list[str]] = {}
    others: dict[str, str] = {}
    for name, problem in shapes.items():
        side, sizes = found[name].rule.stored, found[name].sizes
        right = side.shape({**sizes, **solved}) == tensors[name].shape
        axes = [axis for axis in side.array_axes if axis in solved]
        if right and len(axes) == 1 and fields.get(axes[0]):
            by_axis.setdefault(axes[0], []).append(name)
        else:
            others[name] = problem
    messages = []
    for axis, names in by_axis.items():
        size = found[names[0]].sizes[axis]
        listed_names = ", ".join(group.name for group in fold(dict.fromkeys(names)))
        messages.append(
            f"{fields[axis]} is {size} in the config, but {solved[axis]} by the shapes of "
            f"{listed_names}"
        )
    groups = fold(others)
    return messages + [f"{group.name}: {others[group.members[0]]}" for group in groups]


def check_arrays(rules: Sequence[BoundRule], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns a message for each array that rules do not fill, or fill with a wrong shape.

    Args:
        rules: the rules, bound to the model.
        wanted: the shape of each array of the model.
    """
    given = {name: bound for bound in rules for name, _ in bound.rule.model.names(bound.sizes)}
    unfilled = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    return [
        *listed(
            unfilled,
            lambda name: f"no rule covers {name} of the model{did_you_mean(name, unknown)}",
        ),
        *listed(
            unknown,
            lambda name: (
                f"a rule names {name}, which the model does not have{did_you_mean(name, unfilled)}"
            ),
        ),
        *(
            f"the rule for {name} says {dim}, but the model has {found}"
            for name, shape in wanted.items()
            if name in given
            for dim, found in _differing(given[name], shape)
        ),
    ]


def _differing(bound: BoundRule, shape: tuple[int, ...]) -> list[tuple[str, object]]:
    """Returns the dimensions of a rule's array that differ from the model's, and the model's."""
    side, sizes = bound.rule.model, bound.sizes
    if len(side.dims) != len(shape):
        return [(f"shape {side.shape(sizes)}", shape)]
    pairs = zip(side.dims, side.shape(sizes), shape, strict=True)
    return [(f"({' '.join(dim)}) is {size}", found) for dim, size, found in pairs if size != found]


def _check_parts(rules: Sequence[BoundRule], tensors: Tensors, given_by: str) -> dict[str, str]:
    """Returns a message for each fused tensor that is still whole: its parts do not add up."""
    bound_of = {name: bound for bound in rules for name, _ in bound.stored()}
    problems = {}
    for whole, parts in fused_parts(rules).items():
        if whole in tensors:
            terms = [_format_rows(part, bound_of[part]) for part in parts]
            rows = sum(shape[0] for shape in parts.values())
            problems[whole] = (
                f"{' + '.join(terms)} = {rows} rows from {given_by}, "
                f"shape {tensors[whole].shape} in the file"
            )
    return problems


def _format_rows(part: str, bound: BoundRule) -> str:
    """Formats the number of rows of a part, such as `q (N H) 6`."""
    dim = bound.rule.stored.dims[0]
    rows = math.prod(bound.sizes[axis] for axis in dim)
    return f"{part.partition('#')[2]} ({' '.join(dim)}) {rows}"


def reason_to_ignore(table: RuleTable, name: str) -> str | None:
    """Returns the table's reason why a stored tensor is not part of the model, or None."""
    reasons = {**table.ignored, **table.carried}
    matching = (why for pattern, why in reasons.items() if fnmatch.fnmatchcase(name, pattern))
    return next(matching, None)


def carried_names(table: RuleTable, rules: Sequence[BoundRule], names: Iterable[str]) -> list[str]:
    """Returns the stored tensors outside of the model that an export takes along.

    Args:
        table: the family's table for the config.
        rules: the table's rules, bound to the model.
        names: all stored tensors.
    """
    own = {name.partition("#")[0] for bound in rules for name, _ in bound.stored()}
    return [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in table.carried)
        and name not in own
        and name not in table.tied
    ]


def _solve(expected: Mapping[str, BoundRule], tensors: Tensors) -> dict[str, int]:
    """Returns the axes whose size in the config is wrong, with their size in the file.

    An axis is listed only if changing its size alone explains every dimension that it is part of.
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
    bound: BoundRule, shape: tuple[int, ...], solved: Mapping[str, int], given_by: str
) -> str | None:
    side, sizes = bound.rule.stored, bound.sizes
    expected = side.shape(sizes)
    if shape == expected:
        return None
    if len(shape) != len(expected):
        return f"shape is {expected} from {given_by}, {shape} in the file"
    return "; ".join(
        _size_problem(number, dim, found, sizes, solved, given_by)
        for number, (dim, found) in enumerate(zip(side.dims, shape, strict=True))
        if expected[number] != found
    )


def _size_problem(
    number: int,
    dim: Sequence[str],
    found: int,
    sizes: Sizes,
    solved: Mapping[str, int],
    given_by: str,
) -> str:
    """Describes a wrong dimension, by the axis at fault if only one axis can be."""
    wrong = [axis for axis in dim if axis in solved]
    if len(dim) > 1 and len(wrong) == 1:
        (axis,) = wrong
        return (
            f"{axis} is {sizes[axis]} from {given_by}, {solved[axis]} in the file "
            f"(dimension {number}: {found} / {found // solved[axis]})"
        )
    if len(dim) == 1:
        return f"{dim[0]} is {sizes[dim[0]]} from {given_by}, {found} in the file"
    factors = " x ".join(str(sizes[axis]) for axis in dim)
    product = math.prod(sizes[axis] for axis in dim)
    return f"({' '.join(dim)}) is {factors} = {product} from {given_by}, {found} in the file"
