"""Size limits that keep the project readable: files per folder, lines, and config fields."""

import ast
import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest

import jaxllm.config
from jaxllm.train import TrainConfig

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file for folder in ("jaxllm", "interop", "train") for file in (ROOT / folder).rglob("*.py")
)
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES, MOST_FIELDS = 12, 300, 60, 25
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
# Modules without behavior of their own to test.
WITHOUT_TESTS = {"jaxllm/__main__.py"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def crowded(files: list[Path]) -> dict[str, int]:
    """Returns the folders with more source files than allowed, not counting `__init__.py`."""
    counts: dict[str, int] = {}
    for file in files:
        folder = name_of(file.parent)
        counts[folder] = counts.get(folder, 0) + (file.name != "__init__.py")
    return {folder: count for folder, count in counts.items() if count > MOST_FILES}


def long_functions(source: str) -> dict[str, int]:
    """Returns the functions with more lines than allowed, from `def` to their last line."""
    functions = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return {name: lines for name, lines in lengths.items() if lines > MOST_FUNCTION_LINES}


def config_classes() -> dict[str, type]:
    """Returns every config dataclass by name, including those of their fields."""
    found: dict[str, type] = {}
    left: list[Any] = [TrainConfig, *map(vars(jaxllm.config).get, jaxllm.config.__all__)]
    while left:
        kind = left.pop()
        left += typing.get_args(kind)
        if dataclasses.is_dataclass(kind) and kind.__name__ not in found:
            found[kind.__name__] = kind
            left += typing.get_type_hints(kind).values()
    return found


def without_tests(files: list[Path]) -> list[str]:
    """Returns the modules without a test file at the mirrored path in tests/."""
    return [
        name_of(file)
        for file in files
        if file.name != "__init__.py"
        and name_of(file) not in WITHOUT_TESTS
        and not (ROOT / "tests" / file.relative_to(ROOT)).with_name(f"test_{file.name}").is_file()
    ]


def test_folders_have_at_most_a_dozen_files():
    assert crowded(SOURCES) == {}


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_files_and_functions_are_short(file):
    source = file.read_text()
    assert len(source.splitlines()) <= LONG_FILES.get(name_of(file), MOST_LINES)
    found = {f"{name_of(file)}:{name}": lines for name, lines in long_functions(source).items()}
    assert {
        name: lines for name, lines in found.items() if lines > LONG_FUNCTIONS.get(name, 0)
    } == {}


@pytest.mark.parametrize("name", config_classes())
def test_config_classes_have_few_fields(name):
    assert len(dataclasses.fields(config_classes()[name])) <= MOST_FIELDS


def test_every_module_has_a_test_file_of_its_name():
    assert without_tests(SOURCES) == []


def test_every_exception_is_needed():
    """An exception must be removed once the file or function is short enough."""
    for name, lines in LONG_FILES.items():
        assert MOST_LINES < len((ROOT / name).read_text().splitlines()) <= lines
    for place, lines in LONG_FUNCTIONS.items():
        name, function = place.split(":")
        assert MOST_FUNCTION_LINES < long_functions((ROOT / name).read_text())[function] <= lines


def test_planted_violations_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "train"
    folder.mkdir()
    files = [folder / f"m{i}.py" for i in range(MOST_FILES + 1)]
    assert crowded([folder / "__init__.py", *files[1:]]) == {}
    assert crowded([folder / "__init__.py", *files]) == {"train": MOST_FILES + 1}
    assert without_tests(files[:1]) == ["train/m0.py"]
    body = "    x = 1\n" * MOST_FUNCTION_LINES
    assert long_functions(f"def f():\n{body}") == {"f": MOST_FUNCTION_LINES + 1}
    assert {
        "DecoderConfig",
        "ExpertsConfig",
        "TrainConfig",
        "OptimizerConfig",
    } <= config_classes().keys()
