"""Suggested rules with their doubts, and the text of both to paste into a rules file."""

import dataclasses
from collections.abc import Mapping

from jaxllm.interop.rules.rule import Rule

from .layout_search import Shape


@dataclasses.dataclass(frozen=True)
class Suggested:
    """A suggested rule, how similar its names are, and what names and shapes leave undecided."""

    rule: Rule
    likeness: float  # similarity of the stored name to the array's known names; about 0 to 1
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        sides = [f'"{side.text}"' for side in (self.rule.stored, self.rule.model)]
        if self.rule.layers is not None:
            sides.append(f"layers={list(self.rule.layers)}")
        line = f"    Rule({', '.join(sides)}),"
        if len(line) > 100:
            line = "\n".join(["    Rule(", *(f"        {side}," for side in sides), "    ),"])
        return "\n".join([*(f"    # ? {doubt}" for doubt in self.doubts), line])


@dataclasses.dataclass(frozen=True)
class Suggestions:
    """Rules to paste, the most certain first, and the tensors and arrays left without one."""

    rules: tuple[Suggested, ...]
    tied: Mapping[str, str]  # copy: original
    sizes: Mapping[str, int]  # of axes that are not in the legend
    unmatched: Mapping[str, Shape]  # tensors without a rule
    unfilled: tuple[str, ...]  # arrays that no rule fills
    # Sizes as expressions in the config, so that the rules hold for models of other sizes.
    formulas: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        if not (self.rules or self.tied or self.unmatched or self.unfilled):
            return "# every tensor has a rule already"
        imports = ["from jaxllm.interop import Rule", ""] if self.rules else []
        lines = [*imports, "rules = [", *map(str, self.rules), "]"]
        if self.formulas:
            texts = (
                f'"{axis}": {self.formulas.get(axis, size)}' for axis, size in self.sizes.items()
            )
            lines += ["", "", "def sizes(config):", f"    return {{{', '.join(texts)}}}", "", ""]
        elif self.sizes:
            lines.append(f"sizes = {dict(self.sizes)}")
        if self.tied:
            lines += ["# ? if they are copies", f"tied = {dict(self.tied)}"]
        lines += [f"# no rule for {name} {list(shape)}" for name, shape in self.unmatched.items()]
        return "\n".join([*lines, *(f"# no tensor fills {name}" for name in self.unfilled)])
