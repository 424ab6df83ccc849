"""Griffe extension: shows on the site the comments that describe fields and constants.

A comment describes an assignment if it stands at the end of its last line, or alone on the lines
right above it. Fields are listed in the docstring of their dataclass or named tuple, with their
defaults; a constant or a type of a module gets its comment as its docstring. A `ClassVar` without
brackets, such as `__pydantic_config__`, is not taken for a field.
"""

import functools
import io
import re
import tokenize
from typing import Any

import griffe

DIRECTIVE = re.compile(r"(noqa|type:|pragma:|mypy:|ruff:)")
CODE = re.compile(r"(`[^`]*`)")
SPECIAL = re.compile(r"[\\*_<\[]")


class Comments(griffe.Extension):
    """Turns comments beside and above assignments into text of the API reference."""

    def on_class_members(self, *, cls: griffe.Class, agent: Any, **_: Any) -> None:
        """Adds the section `Attributes` to the docstring of a class of fields."""
        written = cls.docstring.value if cls.docstring else ""
        if not _has_fields(cls) or "\nAttributes:\n" in written:
            return
        lines = [
            f"    {member.name}: {_describe(member, agent.code)}"
            for member in cls.members.values()
            if isinstance(member, griffe.Attribute) and "instance-attribute" in member.labels
        ]
        if lines:
            text = "\n".join([*([written, ""] if written else []), "Attributes:", *lines])
            cls.docstring = griffe.Docstring(text, parent=cls, **_settings(agent))

    def on_attribute_instance(self, *, attr: griffe.Attribute, agent: Any, **_: Any) -> None:
        """Gives a module's constant its comment as its docstring."""
        if str(attr.annotation) in ("ClassVar", "typing.ClassVar"):
            attr.labels.discard("instance-attribute")  # griffe knows only `ClassVar[...]`
        if attr.docstring or attr.parent is None or not attr.parent.is_module:
            return
        if comment := comment_of(attr, agent.code):
            attr.docstring = griffe.Docstring(as_markdown(comment), parent=attr, **_settings(agent))


def comment_of(attr: griffe.Attribute, code: str) -> str:
    """Returns the comment above and at the end of an assignment in `code`, or ""."""
    first, last = attr.lineno or 1, attr.endlineno or 1
    lines, found = code.splitlines(), _comments(code)
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    above: list[str] = []
    for number in range(first - 1, 0, -1):
        column, text = found.get(number, (-1, ""))
        if column != indent or lines[number - 1][:column].strip():
            break
        above.insert(0, text)
    beside = [found[last][1]] if last in found else []
    return " ".join(text for text in (*above, *beside) if text and not DIRECTIVE.match(text))


def as_markdown(text: str) -> str:
    """Escapes what Markdown would not show as it is written, except in backticks."""
    parts = CODE.split(text)
    return "".join(
        part if part.startswith("`") else SPECIAL.sub(lambda found: "\\" + found[0], part)
        for part in parts
    )


@functools.lru_cache(maxsize=1)  # the members of one file are visited one after another
def _comments(code: str) -> dict[int, tuple[int, str]]:
    """Maps line numbers to the column and the text of their comments."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {
        token.start[0]: (token.start[1], token.string.lstrip("# ").rstrip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _has_fields(cls: griffe.Class) -> bool:
    """Whether the class is a dataclass or a named tuple."""
    decorators = (str(decorator.value).partition("(")[0] for decorator in cls.decorators)
    is_dataclass = any(name.rpartition(".")[2] == "dataclass" for name in decorators)
    return is_dataclass or any(str(base).rpartition(".")[2] == "NamedTuple" for base in cls.bases)


def _describe(field: griffe.Attribute, code: str) -> str:
    """Returns a field's comment and its default, as sentences in Markdown."""
    comment = comment_of(field, code)
    sentences = [as_markdown(comment).removesuffix(".")] if comment else []
    default = str(field.value) if field.value is not None else ""
    if factory := re.fullmatch(r"(?:dataclasses\.)?field\(default_factory=(\w+)\)", default):
        default = f"{factory[1]}()"
    sentences.append(f"Default: `{default}`" if default else "Required")
    return ". ".join(sentences) + "."


def _settings(agent: Any) -> dict[str, Any]:
    return {"parser": agent.docstring_parser, "parser_options": agent.docstring_options}
