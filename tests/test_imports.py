"""Imports point one way, and PyTorch stays inside functions of interop/."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file for folder in ("jaxllm", "interop", "train") for file in (ROOT / folder).rglob("*.py")
)

# Each layer may import itself and those to its left; interop and train do not know each other.
BELOW = {
    "errors": set(),
    "config": set(),
    "sharding": set(),
    "origin": set(),
    "optimizer_state": set(),
    "closeness": set(),
    "jsonable": set(),
    "saved_step": set(),
    "layers": {"config", "sharding"},
    "presets": {"config", "errors"},
    "models": {"config", "errors", "sharding", "origin", "layers"},
    "params": {"config", "sharding", "origin", "layers", "models"},
    "generation": {"config", "errors", "sharding", "origin", "layers", "models", "params"},
    # Parity compares what both sides generate.
    "interop": {
        *("config", "errors", "sharding", "origin", "optimizer_state", "layers", "models"),
        "params",
        *("generation", "closeness", "jsonable", "saved_step"),
    },
    "train": {
        *("config", "errors", "sharding", "origin", "optimizer_state", "layers", "models"),
        "params",
        *("closeness", "jsonable", "saved_step"),
    },
}
# The commands join everything.
COMMANDS = {"cli", "__main__", "commands"}
# The folders whose functions may run the references; nothing else needs them but tests.
ORACLES = {"reference", "families", "parity"}


def layer_of(file: Path) -> str:
    """The layer that a file belongs to: a folder or a module of jaxllm."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "jaxllm" else parts[0]


def imports(tree: ast.AST) -> set[str]:
    """The absolute names that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(file: Path, source: str) -> list[str]:
    """What a file imports that its layer must not."""
    layer, tree = layer_of(file), ast.parse(source)
    if layer in COMMANDS or layer == "__init__":
        return []
    wrong = []
    for name in imports(tree):
        top, *rest = name.split(".")
        if top == "jaxllm" and rest and rest[0] not in {*BELOW[layer], layer}:
            wrong.append(f"{file.name} of {layer} imports {name}")
        if name.startswith("jaxllm.interop.reference") and file.parent.name not in ORACLES:
            wrong.append(f"{file.name} imports {name}, an oracle")
        if top in ("interop", "train"):
            wrong.append(f"{file.name} imports {name}, which is installed as jaxllm.{name}")
        if top in ("torch", "transformers") and layer != "interop":
            wrong.append(f"{file.name} of {layer} imports {name}")
    outside = ast.Module(
        [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []
    )
    if file.parent.name == "reference":  # which are PyTorch
        return wrong
    late = ("torch", "transformers", "jaxllm.interop.reference")
    wrong += [
        f"{file.name} imports {name} outside a function"
        for name in imports(outside)
        if f"{name}.".startswith(tuple(f"{package}." for package in late))
    ]
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    assert violations(file, file.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        (
            "train/x.py",
            "from jaxllm.interop import load_pretrained",
            "of train imports jaxllm.interop",
        ),
        ("interop/x.py", "import jaxllm.train", "of interop imports jaxllm.train"),
        (
            "jaxllm/layers/x.py",
            "from jaxllm.models import build",
            "of layers imports jaxllm.models",
        ),
        ("jaxllm/models/x.py", "def f():\n    import torch", "of models imports torch"),
        ("interop/x.py", "import torch", "imports torch outside a function"),
        ("interop/x.py", "def f():\n    import jaxllm.interop.reference.llm.model", "an oracle"),
        ("interop/parity/x.py", "import jaxllm.interop.reference.llm.model", "outside a function"),
        ("interop/x.py", "import train.loop", "installed as jaxllm.train.loop"),
    ],
)
def test_a_planted_violation_is_found(file, source, complaint):
    assert any(complaint in found for found in violations(ROOT / file, source))


def test_every_folder_of_code_is_packaged():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT) for file in FILES}
    names = {".".join(folder.parts) for folder in folders}
    installed = {name if name.startswith("jaxllm") else f"jaxllm.{name}" for name in names}
    assert set(listed) == installed
