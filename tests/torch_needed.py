"""Finds the test files that need PyTorch, to skip them without it, as in `make test-newest`."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
# Packages that are PyTorch or import it on import.
NEEDING = ("torch", "transformers", "jaxllm.interop.reference")
IS_INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


@cache
def needs_torch(file: Path) -> bool:
    """Whether a test file imports PyTorch anywhere, directly or through a test helper."""
    names, beside = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            beside.add(file.parent / f"{node.module}.py")
    if any(f"{name}.".startswith(f"{needed}.") for name in names for needed in NEEDING):
        return True
    helpers = (TESTS / f"{name.replace('.', '/')}.py" for name in names)
    packages = (TESTS / name for name in names if (TESTS / name / "__init__.py").is_file())
    inside = (helper for package in packages for helper in package.glob("*.py"))
    return any(
        needs_torch(helper) for helper in [*filter(Path.is_file, [*helpers, *beside]), *inside]
    )
