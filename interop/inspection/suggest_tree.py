"""Suggests rules for the leaves of any JAX pytree, from the names and shapes of both sides."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.checkpoint import open_checkpoint
from jaxllm.interop.loading.plan import analyze_checkpoint
from jaxllm.interop.pytrees.axis_sizes import model_sides, solve_sizes
from jaxllm.interop.pytrees.leaves import NamedLeaves
from jaxllm.interop.pytrees.load_into import read_tensors
from jaxllm.interop.pytrees.tree_rules import TreeRules, read_tree_rules
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import Rule

from .leaf_matching import GAP, Group, LeafMatcher
from .name_similarity import words
from .shape_layouts import Layout, Shape
from .suggestions import Suggested, Suggestions

CLOSE, WEAK = 0.8, 0.15  # as in `suggest`
IN_ORDER = "fused: assumes the usual order of the parts, which no shape can confirm"
LETTERS = "DFVKQHNABCGMPRSUWXYZ"  # for the sizes of dimensions, the commonest first
OF_NAMES = "LEIJ"  # for the numbers in names, by their counts


def suggest_tree(tensors: Path | Mapping[str, Any], tree: Any, rules: Any = None) -> Suggestions:
    """Suggests rules for the tensors and leaves that have none.

    Args:
        tensors: a file, a folder, or shapes by name, such as a state dict.
        tree: the tree.
        rules: existing rules; their tensors and leaves are left alone.
    """
    leaves = NamedLeaves.of(tree)
    own = TreeRules("rules", ()) if rules is None else read_tree_rules(rules)
    aliases: dict[str, str] = {}
    if isinstance(tensors, Mapping):
        shapes = shapes_of(tensors)
    else:
        shapes, aliases = shapes_of(read_tensors(tensors)), _aliases(tensors)
    used = {n for n in shapes if any(r.stored.find(n) is not None for r in _whole(own.rules))}
    used |= own.tied.keys()
    filled = {
        name
        for name in leaves.arrays
        for rule in own.rules
        if any(side.find(name) is not None for side in model_sides(rule, leaves.stacks))
    }
    left = {name: shape for name, shape in shapes.items() if name not in used}
    free = {
        name: shape
        for name, shape in leaves.shapes.items()
        if name not in filled and not own.keeps(name)
    }
    found = _describe(LeafMatcher(left, free, aliases))
    every = [*own.rules, *(one.rule for one in found.rules)]
    known = solve_sizes(every, own.sizes, leaves.shapes, leaves.stacks, shapes)
    axes = {axis for rule in every for axis in rule.stored.axes}
    unknown = {axis: 0 for axis in sorted(axes) if axis not in known}
    return Suggestions(found.rules, found.tied, unknown, found.unmatched, found.unfilled)


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns the shapes of tensors, or of what already is a shape, by name."""
    return {
        name: tuple(value.shape if hasattr(value, "shape") else value)
        for name, value in tensors.items()
    }


def _aliases(path: Path) -> dict[str, str]:
    """Returns the names that jaxllm's own model has for the tensors of a known family."""
    try:
        analysis = analyze_checkpoint(open_checkpoint(path))
    except CheckpointError:  # it is of no known family
        return {}
    return {
        rule.stored.format_name(index, sizes): rule.model.name
        for rule, sizes in analysis.rules
        for _, index in rule.stored.names(sizes)
    }


def _whole(rules: tuple[Rule, ...]) -> Iterator[Rule]:
    """Yields the rules; those of parts of a fused tensor name it whole."""
    for rule in rules:
        whole = rule.stored.name.partition("#")[0]
        yield Rule(Side(whole, rule.stored.dims), rule.model, " ".join(rule.replicated))


def _describe(matcher: LeafMatcher) -> Suggestions:
    """Turns the likeliest pairs into rules, and lists the doubts about each."""
    single = matcher.pairs()
    fused = matcher.fused(single)
    parts = [part for own in fused.values() for part in own]
    pairs = {**single, **{part.tensor: part.leaf for part in parts}}
    layouts = {stored: matcher.layouts(stored, leaf) for stored, leaf in pairs.items()}
    wants_transposed = _are_transposed(layouts)
    letters = _Letters((stored, pairs[stored], found[0]) for stored, found in layouts.items())
    suggested = []
    for stored, leaf in pairs.items():
        fitting = (one for one in layouts[stored] if one.is_transposed == wants_transposed)
        chosen = next(fitting, layouts[stored][0])
        sizes = " x ".join(map(str, stored.shape))
        others = (letters.sides(stored, leaf, one) for one in layouts[stored] if one != chosen)
        doubts = [
            *(_doubts(matcher, stored, leaf, single) if stored in single else [IN_ORDER]),
            *(
                f"{sizes} does not determine the layout; it could also be "
                f'"{_dims(left)}" and "{_dims(right)}"'
                for left, right in others
            ),
        ]
        rule = Rule(*letters.sides(stored, leaf, chosen))
        likeness = matcher.likeness(stored, leaf)
        suggested.append(Suggested(rule, round(likeness, 3), tuple(doubts)))
    left = [stored for stored in matcher.stored if stored not in {*single, *fused}]
    tied = dict(_tied(pairs, left))
    return Suggestions(
        rules=tuple(sorted(suggested, key=lambda one: -one.likeness)),
        tied=tied,
        sizes={},
        unmatched={_shown(s): s.shape for s in left if s.name not in tied},
        unfilled=tuple(_shown(leaf) for leaf in matcher.leaves if leaf not in pairs.values()),
    )


def _in_names(stored: Group, leaf: Group, layout: Layout) -> dict[int, None]:
    """Returns which axes of a layout are numbers in a name, in their order there."""
    heads = (*layout.left[: len(stored.counts)], *layout.right[: len(leaf.counts)])
    return dict.fromkeys(number for (number,) in heads)


def _dims(side: Side) -> str:
    return side.text.partition(" : ")[2]


def _are_transposed(layouts: Mapping[Group, list[Layout]]) -> bool:
    """Whether the tree has matrices transposed, by the majority of those with one layout only."""
    votes = [
        found[0].is_transposed
        for stored, found in layouts.items()
        if len(found) == 1 and len(stored.shape) > 1 and "embed" not in words(stored.name)
    ]
    return 2 * sum(votes) > len(votes)


class _Letters:
    """Letters for axes: one for each size, and further ones where it occurs again in a rule."""

    def __init__(self, matches: Iterator[tuple[Group, Group, Layout]]):
        self._known: dict[tuple[int, int, bool], str] = {}
        sizes = Counter(
            size
            for stored, leaf, layout in matches
            for number, size in enumerate(layout.atoms)
            if number not in _in_names(stored, leaf, layout)
        )
        for size, _ in sizes.most_common():
            self._letter(size, 0, False)

    def sides(self, stored: Group, leaf: Group, layout: Layout) -> tuple[Side, Side]:
        """Returns both sides of the rule for a layout."""
        named = _in_names(stored, leaf, layout)
        seen: Counter[tuple[int, bool]] = Counter()
        axes = {}
        for number in dict.fromkeys((*named, *range(len(layout.atoms)))):
            size, in_name = layout.atoms[number], number in named
            axes[number] = self._letter(size, seen[size, in_name], in_name)
            seen[size, in_name] += 1
        pairs = ((stored, layout.left), (leaf, layout.right))
        left, right = (self._side(group, dims, axes) for group, dims in pairs)
        return left, right

    def _side(self, group: Group, dims: Any, axes: Mapping[int, str]) -> Side:
        name = group.name
        for (number,) in dims[: len(group.counts)]:
            name = name.replace(GAP, f"{{{axes[number]}}}", 1)
        return Side(name, tuple(tuple(axes[i] for i in dim) for dim in dims[len(group.counts) :]))

    def _letter(self, size: int, occurrence: int, in_name: bool) -> str:
        key = size, occurrence, in_name
        if key not in self._known:
            taken, pool = set(self._known.values()), OF_NAMES if in_name else LETTERS
            spare = (f"{pool[0]}{number}" for number in range(1, len(taken) + 2))
            free = (letter for letter in (*pool, *spare) if letter not in taken)
            self._known[key] = next(free)
        return self._known[key]


def _doubts(
    matcher: LeafMatcher, stored: Group, leaf: Group, pairs: Mapping[Group, Group]
) -> Iterator[str]:
    """Yields the reasons to doubt a suggested match."""
    rivals = []
    for rival, other in pairs.items():
        swapped = matcher.fit(stored, other), matcher.fit(rival, leaf)
        matched = matcher.fit(stored, leaf) + matcher.fit(rival, other)
        if rival != stored and min(swapped) > 0 and sum(swapped) > CLOSE * matched:
            rivals.append(_shown(other))
    if rivals:
        yield f"name and shape fit {', '.join(rivals)} about as well"
    elif matcher.fit(stored, leaf) < WEAK:
        yield "matched by shape only"


def _tied(pairs: Mapping[Group, Group], left: list[Group]) -> Iterator[tuple[str, str]]:
    """Yields unmatched tensors that have the shape of an embedding, with the embedding."""
    tables = [stored for stored in pairs if "embed" in words(stored.name)]
    for stored in left:
        for table in tables:
            if (stored.shape, stored.counts, table.counts) == (table.shape, (), ()):
                yield stored.name, table.name


def _shown(group: Group) -> str:
    return group.name.replace(GAP, "{L}")
