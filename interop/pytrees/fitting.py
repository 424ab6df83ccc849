"""Fits rules to a tree: binds them to its leaves, and finds leaves and rules without each other."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxllm.errors import did_you_mean, listed
from jaxllm.interop.families import RuleTable
from jaxllm.interop.loading.diagnostics import check_arrays
from jaxllm.interop.rules.binding import bind
from jaxllm.interop.rules.rule import BoundRule, Rule, Stacks

from .axis_sizes import model_sides, solve_sizes
from .leaves import NamedLeaves, Shape
from .tree_rules import TreeRules


@dataclass(frozen=True)
class Fit:
    """Rules that are bound to the leaves of a tree.

    Attributes:
        table: the table of rules.
        rules: those that could be bound.
        problems: what does not fit, one message each.
        unbound: the rules that could not be bound.
    """

    table: RuleTable
    rules: tuple[BoundRule, ...]
    problems: tuple[str, ...]
    unbound: tuple[Rule, ...] = ()


def fit_rules(leaves: NamedLeaves, rules: TreeRules, tensors: Mapping[str, Shape] = {}) -> Fit:
    """Binds rules to the leaves of a tree.

    Args:
        leaves: the leaves of the tree.
        rules: the rules.
        tensors: the shapes of the stored tensors by name, if there are any; they help to find the
            sizes of axes.
    """
    shapes, stacks = leaves.shapes, leaves.stacks
    sizes = solve_sizes(rules.rules, rules.sizes, shapes, stacks, tensors)
    table = rules.table(sizes, tensors)
    unbound = {rule: why for rule in rules.rules if (why := _why_unbound(rule, sizes, leaves))}
    problems = listed(list(unbound), unbound.__getitem__)
    problems += [
        f"{copy} is tied to {original}, which no rule names"
        for copy, original in rules.tied.items()
        if not any(rule.stored.find(original) is not None for rule in rules.rules)
    ]
    bound: tuple[BoundRule, ...] = ()
    try:
        bound = bind([rule for rule in rules.rules if rule not in unbound], sizes, stacks)
    except ValueError as error:
        problems += [f"{rules.name}: {problem}" for problem in str(error).split("; ")]
        return Fit(table, (), tuple(problems), rules.rules)
    named = (name for rule in bound for name, _ in rule.rule.model.names(rule.sizes))
    filled = dict.fromkeys(named)
    wanted = {
        name: shape
        for name, shape in shapes.items()
        if name in filled
        or not (rules.keeps(name) or any(_is_named(name, rule, stacks) for rule in unbound))
    }
    problems += check_arrays(bound, wanted)
    problems += [f"{name} is kept, but a rule fills it" for name in filled if rules.keeps(name)]
    return Fit(table, bound, tuple(problems), tuple(unbound))


def _is_named(leaf: str, rule: Rule, stacks: Stacks) -> bool:
    """Whether a rule names a leaf."""
    return any(side.find(leaf) is not None for side in model_sides(rule, stacks))


def _why_unbound(rule: Rule, sizes: Mapping[str, int], leaves: NamedLeaves) -> str | None:
    """Returns why a rule cannot be bound, or None."""
    missing = [axis for axis in dict.fromkeys(rule.stored.axes) if sizes.get(axis, 0) < 1]
    if not missing:
        return None
    names = leaves.arrays
    if any(_is_named(name, rule, leaves.stacks) for name in names):
        unknown = " and ".join(missing)
        return f"{rule}: {unknown} has no size: give it in sizes"
    name = rule.model.name
    return f"a rule names {name}, which the model does not have{did_you_mean(name, names)}"
