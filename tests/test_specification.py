"""The page of documented names: each leads to something here, and none is missing.

The documents lie beside the repository. Where they are not, only the page itself is tested.
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
# A section of the page, and the documents that it covers.
DOCUMENTS = {
    "tlama-core": ["tlama_core.md"],
    "LLM": ["llm_overview.md", "llm_model_and_layers.md"],
    "Nima": ["nima.md"],
    "Transformer components": ["transformer_components.md"],
}
MISSING = "not here"  # how the remark of such a row starts
NAME = re.compile(r"[A-Za-z_][\w.]*")
# Not the documents' own.
FOREIGN = re.compile(r"torch|nn\.|F\.|\w+\.py$|model/|vision/|regression/")
# Sections of advice.
ADVICE = ("Overview", "Best Practices", "Further Reading", "Summary")

# A heading, a numbered item, an item that is explained, a row of sizes.
HEADLINES = (
    r"###+ (?:\d+\. )?(.+)",
    r"\d+\. \*\*(.+?)\*\*",
    r"- \*\*(.+?)\*\*: \w+ .*",
    r"\| (\w+) +\| ~",
)


def tables() -> dict[str, list[list[str]]]:
    """The rows of each section, cell by cell."""
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
    """A member of a module or a class, what its methods set on `self`, or a parameter."""
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
    """Raises ImportError or AttributeError if a dotted path leads nowhere."""
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
    """A place is a command with its options, a file, or a dotted path."""
    if place.startswith("jaxllm "):
        _, command, *options = place.split()
        known = commands()[command]._option_string_actions
        assert set(options) <= set(known), place
    elif "/" in place:
        assert (ROOT / place).exists(), place
    else:
        resolve(place)


def test_a_path_to_nothing_is_found_out():
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
def test_everything_is_where_the_page_says(section):
    wrong = []
    for names, here, remark in tables()[section]:
        places = re.findall(r"`([^`]+)`", here)
        if not places and not (here == "—" and remark.startswith(MISSING)):
            wrong.append(f"{names}: {here!r} is no place, and the remark does not say so")
        for place in places:
            try:
                check(place)
            except (ImportError, AttributeError, AssertionError, KeyError) as error:
                wrong.append(f"{names}: {place}: {error}")
    assert not wrong, "\n".join(wrong)


def test_no_name_is_twice_in_a_table():
    names = Counter((section, row[0]) for section, row in each_name())
    assert {name: count for name, count in names.items() if count > 1} == {}


def each_name() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every documented name of every row, with the rest of the row."""
    for section, names, *rest in ROWS:
        for name in re.findall(r"`([^`]+)`", names) or [names]:
            yield section, (name, *rest)


def test_the_page_stays_readable():
    assert len(ROWS) <= 400
    assert max(len(remark) for *_, remark in ROWS) <= 160


def documented(text: str) -> tuple[Counter[str], set[str]]:
    """Names with how often the document describes them, and those that it mentions."""
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
    """The last components of the names in backticks."""
    found = [NAME.match(name) for name in re.findall(r"`([^`]+)`", text)]
    return [m[0].split(".")[-1] for m in found if m and not FOREIGN.match(m.string)]


def named_in_code(block: str) -> Iterator[str]:
    """What a block imports or defines of the documents' own, and the options that it gives."""
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
    """`eps` of `RMSNorm.eps (argument)`."""
    return name.partition(" (")[0].split(".")[-1]


def headlines(text: str) -> set[str]:
    """What a document without names in backticks calls its parts: headings, items, presets."""
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
def test_every_documented_name_is_in_the_page(section):
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
