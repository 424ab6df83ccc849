"""Rules for any pytree, as the user gives them: a list, a Python file, or an object."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from jaxllm.interop.families import Derived, RuleTable
from jaxllm.interop.families.common.family import in_order
from jaxllm.interop.loading.user_family import known_masks
from jaxllm.interop.rules.rule import Rule
from jaxllm.interop.rules.rules_file import RulesError, RulesSource, read_rules

# What a rules file may define besides `rules`. A family's config, its fields and the model built
# from them have no meaning here: the tree itself says what it needs.
OPTIONAL = ("sizes", "tied", "ignored", "derived", "kept")


@dataclass(frozen=True)
class TreeRules:
    """Rules between stored tensors and the leaves of a tree.

    Attributes:
        name: what messages call them.
        rules: the rules.
        sizes: sizes of axes that neither the tree nor the tensors determine.
        tied: stored copies, and the tensors that they are tied to. A copy may have a rule of its
            own: its leaf is then filled with the original where the copy is not stored.
        ignored: patterns of stored tensors to skip, with the reason.
        derived: stored tensors that are computed on export, by name.
        kept: patterns of leaves that no tensor fills, with the reason.
        arguments: the arguments of the PyTorch model, from tensors by name; for parity.
        masks: the masks that the PyTorch model takes; for parity.
    """

    name: str
    rules: tuple[Rule, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    arguments: Callable[[Any, Mapping[str, Any]], tuple[Any, ...]] = in_order
    masks: Collection[str] = ()

    def keeps(self, leaf: str) -> bool:
        """Whether no tensor fills a leaf."""
        return any(fnmatchcase(leaf, pattern) for pattern in self.kept)

    @cached_property
    def ruled_copies(self) -> tuple[str, ...]:
        """The tied tensors that fill leaves of their own, as in a model whose head is not tied."""
        return tuple(
            copy
            for copy in self.tied
            if any(rule.stored.find(copy) is not None for rule in self.rules)
        )

    def table(self, sizes: Mapping[str, int], stored: Collection[str]) -> RuleTable:
        """Returns the table of rules.

        Args:
            sizes: the sizes of all axes.
            stored: the names of a checkpoint's tensors; empty if there is none yet.
        """
        return RuleTable(
            self.rules,
            sizes,
            tied=self.tied,
            derived=tuple(Derived(name, compute) for name, compute in self.derived.items()),
            ignored=self.ignored,
            copies=[
                copy
                for copy in self.tied
                if copy not in self.ruled_copies and (not stored or copy in stored)
            ],
        )


def read_tree_rules(rules: Any) -> TreeRules:
    """Returns the rules that a list, a file or an object defines.

    Args:
        rules: a sequence of rules, or the path of a Python file, which is run, or a module or
            object, with the attributes of `TreeRules`. All but `rules` are optional.

    Raises:
        CheckpointError: the file does not exist, or masks are unknown.
        RulesError: the file raises an exception, or an attribute is not of its kind.
    """
    if isinstance(rules, TreeRules):
        return rules
    if isinstance(rules, Sequence) and not isinstance(rules, str):
        return TreeRules("rules", _checked_rules("rules", rules))
    source = read_rules(rules)
    name, given = source.name, source.get("rules", None)
    if not isinstance(given, Sequence):
        raise RulesError(
            f"{name}: rules is {_kind(given)}; rules for a pytree are a list of Rule, since there "
            "is no config that they could depend on"
        )
    arguments = source.get("arguments", in_order)
    if not callable(arguments):
        raise RulesError(f"{name}: arguments is {_kind(arguments)}; it must be a function")
    return TreeRules(
        name,
        _checked_rules(name, given),
        **{attribute: _mapping(source, attribute) for attribute in OPTIONAL},
        arguments=arguments,
        masks=known_masks(name, source.get("masks", ())),
    )


def _checked_rules(name: str, rules: Sequence[Any]) -> tuple[Rule, ...]:
    if wrong := [rule for rule in rules if not isinstance(rule, Rule)]:
        raise RulesError(f"{name}: {wrong[0]!r} is not a Rule")
    return tuple(rules)


def _mapping(source: RulesSource, attribute: str) -> Mapping[str, Any]:
    value = source.get(attribute, {})
    if not isinstance(value, Mapping):
        raise RulesError(f"{source.name}: {attribute} is {_kind(value)}; it must be a dict")
    return value


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
