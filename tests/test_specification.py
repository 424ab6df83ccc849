"""docs/specification.md: every name of the specification documents is listed and resolves.

The documents are beside the repository. Without them, only the page itself is tested.
"""

import argparse
import ast
import importlib
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxllm import cli

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "specification.md"
FOLDER = ROOT.parent / "shared" / "spec"
# The sections of the page, and the documents that each covers.
DOCUMENTS = {
    "tlama-core": ["tlama_core.md"],
    "LLM": ["llm_overview.md", "llm_model_and_layers.md"],
    "Nima": ["nima.md"],
    "Transformer components": ["transformer_components.md"],
}
MISSING = "not here"  # the beginning of the remark of a row without a counterpart
NAME = re.compile(r"[A-Za-z_][\w.]*")
# Names of other libraries and files, which the documents only mention.
FOREIGN = re.compile(r"torch|nn\.|F\.|\w+\.py$|model/|vision/|regression/")
# Sections that contain advice, not names.
ADVICE = ("Overview", "Best Practices", "Further Reading", "Summary")

# A heading, a numbered item, a list item with an explanation, a table row of sizes.
HEADLINES = (
    r"###+ (?:\d+\. )?(.+)",
    r"\d+\. \*\*(.+?)\*\*",
    r"- \*\*(.+?)\*\*: \w+ .*",
    r"\| (\w+) +\| ~",
)


def tables() -> dict[str, list[list[str]]]:
    """Returns the table rows of each section as lists of cells."""
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            rows = found[line.removeprefix("## ")] = []
        elif line.startswith("| ") and not line.startswith("| documented"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


ROWS = [(section, *row) for section, rows in tables().items() for row in rows]


def attribute(owner: Any, name: str) -> Any:
    """Returns a member of `owner`, or None for an annotation, a `self` attribute or a parameter.

    Raises:
        AttributeError: `owner` has no such name.
    """
    if hasattr(owner, name):
        return getattr(owner, name)
    if inspect.isclass(owner):
        for base in owner.__mro__[:-1]:
            if name in vars(base).get("__annotations__", {}) or name in set_on_self(base):
                return None
    if inspect.isroutine(owner) and name in inspect.signature(owner).parameters:
        return None
    raise AttributeError(f"{owner} has no {name}")


def set_on_self(kind: type) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and getattr(node.value, "id", None) == "self"
    }


def resolve(path: str) -> None:
    """Raises ImportError or AttributeError if a dotted path does not resolve."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            owner = attribute(owner, name)
        return
    raise ImportError(path)


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = cli.make_parser()._actions
    return next(a.choices for a in actions if isinstance(a, argparse._SubParsersAction))


def check(place: str) -> None:
    """Checks that a place exists: a command with its options, a file, or a dotted path."""
    if place.startswith("jaxllm "):
        _, command, *options = place.split()
        known = commands()[command]._option_string_actions
        assert set(options) <= set(known), place
    elif "/" in place:
        assert (ROOT / place).exists(), place
    else:
        resolve(place)


def test_an_unresolvable_path_is_detected():
    resolve("jaxllm.config.DecoderConfig.embed_dim")
    resolve("jaxllm.layers.attention.attention.Attention.q_proj")
    resolve("jaxllm.layers.attention.rope.rope_frequencies.theta")
    for path in (
        "jaxllm.config.DecoderConfig.width",
        "jaxllm.layers.attention.attention.Attention.wq",
    ):
        with pytest.raises(AttributeError):
            resolve(path)
    with pytest.raises(ImportError):
        resolve("tlama.models")


@pytest.mark.parametrize("section", tables())
def test_every_place_on_the_page_exists(section):
    wrong = []
    for names, here, remark in tables()[section]:
        places = re.findall(r"`([^`]+)`", here)
        if not places and not (here == "—" and remark.startswith(MISSING)):
            wrong.append(
                f"{names}: {here!r} names no place; use — and a remark that begins {MISSING!r}"
            )
        for place in places:
            try:
                check(place)
            except (ImportError, AttributeError, AssertionError, KeyError) as error:
                wrong.append(f"{names}: {place}: {error}")
    assert not wrong, "\n".join(wrong)


def test_no_name_occurs_twice_in_a_table():
    names = Counter((section, row[0]) for section, row in each_name())
    assert {name: count for name, count in names.items() if count > 1} == {}


def each_name() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the section and every documented name of every row, with the rest of the row."""
    for section, names, *rest in ROWS:
        for name in re.findall(r"`([^`]+)`", names) or [names]:
            yield section, (name, *rest)


def test_the_page_stays_readable():
    assert len(ROWS) <= 400
    assert max(len(remark) for *_, remark in ROWS) <= 160


def documented(text: str) -> tuple[Counter[str], set[str]]:
    """Returns how often a document describes each name, and the names that it only mentions."""
    described: Counter[str] = Counter()
    mentioned: set[str] = set()
    for line in text.splitlines():
        cell = line.split("|")[1] if line.startswith("| `") else ""
        heading = line if line.startswith("#") and "](" not in line else ""
        described.update(quoted(cell + heading))
        for bold in re.findall(r"\*\*(.+?)\*\*", line):
            mentioned.update(quoted(bold))
        if item := re.match(r"\s*[*-] ((?:`[^`]+`(?:, )?)+)", line):
            mentioned.update(quoted(item[1]))
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        mentioned.update(named_in_code(block))
    return described, mentioned


def quoted(text: str) -> list[str]:
    """Returns the last component of every name in backticks."""
    found = [NAME.match(name) for name in re.findall(r"`([^`]+)`", text)]
    return [m[0].split(".")[-1] for m in found if m and not FOREIGN.match(m.string)]


def named_in_code(block: str) -> Iterator[str]:
    """Yields the names that a code block imports, defines or passes as keyword arguments."""
    try:
        tree = ast.parse(block)
    except SyntaxError:  # a formula
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("torch"):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Call):
            method = isinstance(node.func, ast.Attribute)
            if method and getattr(node.func.value, "id", None) != "model":
                continue
            if method:
                yield node.func.attr
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)


def last_component(name: str) -> str:
    """Returns the last part of a name: `eps` for `RMSNorm.eps (argument)`."""
    return name.partition(" (")[0].split(".")[-1]


def headlines(text: str) -> set[str]:
    """Returns the headings, list items and presets of a document without names in backticks."""
    found = set()
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if section in ADVICE:
            continue
        for pattern in HEADLINES:
            if match := re.match(pattern, line):
                found.add(match[1])
    return found


@pytest.mark.parametrize("section", DOCUMENTS if FOLDER.is_dir() else [])
def test_every_documented_name_is_on_the_page(section):
    names = [name for where, (name, *_) in each_name() if where == section]
    last = Counter(map(last_component, names))
    last.update(name for name in names if name != last_component(name))
    missing = {}
    described, mentioned = Counter(), set()
    for document in DOCUMENTS[section]:
        text = (FOLDER / document).read_text()
        found, more = documented(text)
        described, mentioned = described + found, mentioned | more
        if section == "Nima":
            mentioned |= headlines(text)
    assert described or mentioned, "nothing was found in the documents"
    described |= Counter(dict.fromkeys(mentioned, 1))
    for name, count in described.items():
        if last[name] < count:
            missing[name] = f"{count} documented, {last[name]} here"
    assert missing == {}
