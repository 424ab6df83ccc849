"""Collects the cases defined in the test files of Hugging Face families."""

import importlib.util
from pathlib import Path
from typing import TypeVar

FOLDER = Path(__file__).parent / "interop" / "families" / "huggingface"

Kind = TypeVar("Kind")


def collect(kind: type[Kind]) -> dict[str, Kind]:
    """Returns all cases of a class by name; the part of a name before a slash is the family."""
    found: dict[str, Kind] = {}
    for file in sorted(FOLDER.rglob("test_*.py")):
        if "\nCASES" not in file.read_text(encoding="utf-8"):
            continue
        spec = importlib.util.spec_from_file_location(f"cases_of_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cases = module.CASES
        found |= {name: case for name, case in cases.items() if isinstance(case, kind)}
    return found
