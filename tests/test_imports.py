"""Dependency rules: layered imports in every package, and PyTorch only in functions of interop.

`TABLE` lists what each component of a package (a module or a subfolder) may import from the same
package. Imports inside functions count as well.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("jaxllm", "interop", "train")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

CORE = {
    *("errors", "config", "sharding", "checkpoint_origin", "optimizer_state"),
    *("charts", "hub", "numerics", "strict_json", "checkpointing", "distributed", "differences"),
    *("compatibility", "storage", "tokenization", "untrusted"),
}
READING = {"rules", "formats", "families", "loading"}

TABLE: dict[str, dict[str, set[str]]] = {
    "jaxllm": {
        **{name: set() for name in CORE},
        "config": {"errors"},
        "checkpoint_origin": {"errors", "tokenization"},
        "tokenization": {"config", "errors", "hub", "untrusted"},
        "checkpointing": {"errors", "sharding", "distributed", "storage", "untrusted"},
        "distributed": {"errors", "differences"},
        "charts": {"errors", "storage", "untrusted"},
        "untrusted": {"errors"},
        "hub": {"errors", "storage"},
        "storage": {"errors"},
        "layers": {"config", "errors", "numerics", "sharding"},
        "numerics": {"errors"},
        "lora": {"config", "errors", "layers", "models", "params"},
        "presets": {"config", "errors"},
        "models": {"config", "errors", "sharding", "checkpoint_origin", "layers"},
        "params": {
            *("config", "errors", "sharding", "checkpoint_origin", "checkpointing"),
            *("layers", "models"),
        },
        "generation": {
            "config",
            "errors",
            "sharding",
            "checkpoint_origin",
            "layers",
            "models",
            "params",
        },
        # interop and train do not import each other. Parity needs generation to compare outputs.
        "interop": {*CORE, "layers", "lora", "models", "params", "generation"},
        "train": {*CORE, "layers", "lora", "models", "params"},
        "evaluation": {
            *("errors", "hub", "sharding", "tokenization"),
            *("models", "params", "generation", "interop"),
        },
        # The commands may use everything.
        "commands": {*CORE, "presets", "models", "params", "generation", "interop", "train"},
        "cli": {"commands", "errors", "untrusted"},
        "__main__": {"cli"},
    },
    "jaxllm.layers": {
        **{name: set() for name in ("norm", "hooks", "dropout", "context", "gather", "lookup")},
        "adapters": {"dropout"},
        "linear": {"adapters", "gather", "lookup"},
        "together": {"linear", "hooks"},
        "mlp": {"linear", "together"},
        "stack": {"gather", "linear", "hooks"},
        "attention": {"context", "linear", "norm", "hooks", "together"},
        "experts": {"adapters", "attention", "gather", "linear", "mlp", "hooks"},
        "vision": {"attention", "linear", "mlp", "norm", "stack"},
        "delta": {"attention", "context", "hooks", "linear", "norm", "together"},
        "block": {"attention", "context", "delta", "dropout", "experts", "mlp", "norm"},
    },
    "jaxllm.tokenization": {
        **{name: set() for name in ("tokenizer", "special_tokens")},
        "chat_template": {"special_tokens"},
        "chat": {"chat_template", "gguf_companions", "tokenizer"},
        "file_tokenizer": {"tokenizer", "special_tokens"},
        "text_stream": {"tokenizer"},
        "converted": {"tokenizer", "special_tokens", "file_tokenizer"},
        "gguf_companions": {"special_tokens"},
        "finding": {"tokenizer", "file_tokenizer", "converted", "gguf_companions"},
    },
    "jaxllm.interop": {
        "rules": set(),
        "formats": {"rules"},
        "reference": set(),
        "families": {"rules", "formats", "reference"},
        "loading": {"rules", "formats", "families"},
        "saving": READING,
        "adapters": {*READING, "saving"},
        "optimizer_state": {*READING, "saving", "reference"},
        "inspection": {*READING, "saving", "pytrees"},
        "conversion": {*READING, "adapters", "saving", "optimizer_state"},
        "in_memory": {*READING, "saving", "optimizer_state", "reference"},
        "pytrees": {*READING, "saving", "in_memory"},
        "parity": {*READING, "adapters", "saving", "reference", "pytrees"},
    },
    "jaxllm.interop.formats": {
        **{name: set() for name in ("byte_sizes", "stored_tensor")},
        "source_files": {"stored_tensor"},
        "sharded_tensor": {"stored_tensor"},
        "hf_index": {"stored_tensor"},
        "lazy_tensor": {"stored_tensor", "sharded_tensor"},
        "file_writer": {"byte_sizes", "stored_tensor", "lazy_tensor"},
        "orbax": {"stored_tensor", "lazy_tensor"},
        "orbax_writer": {"stored_tensor", "lazy_tensor", "file_writer", "orbax"},
        "safetensors_file": {"stored_tensor", "hf_index", "lazy_tensor", "file_writer"},
        "pytorch": {"stored_tensor", "sharded_tensor", "hf_index", "lazy_tensor", "file_writer"},
        "gguf": {"stored_tensor"},
        "quantized": {"stored_tensor"},
        "tensor_files": {
            *("stored_tensor", "lazy_tensor", "file_writer", "safetensors_file", "pytorch"),
            "gguf",
        },
        "table": {
            *("stored_tensor", "lazy_tensor", "file_writer", "orbax", "orbax_writer"),
            *("safetensors_file", "pytorch", "tensor_files"),
        },
    },
    "jaxllm.interop.families": {
        "common": set(),
        "huggingface": {"common"},
        "discovery": {"common"},
        "gguf": {"common"},
        "meta": {"common", "huggingface"},
        "source_systems": {"common", "meta"},
    },
    "jaxllm.interop.loading": {
        **{name: set() for name in ("allowances", "name_folding", "checkpoint_dir", "streaming")},
        "generation_config": set(),
        "diagnostics": {"name_folding"},
        "user_family": set(),
        "checkpoint": {"allowances", "checkpoint_dir", "user_family"},
        "plan": {
            *("allowances", "checkpoint", "checkpoint_dir", "diagnostics", "streaming"),
            "user_family",
        },
        "tied_tensors": {"checkpoint_dir", "name_folding", "plan", "streaming"},
        "model_arrays": {"checkpoint", "checkpoint_dir", "plan", "streaming", "tied_tensors"},
        "lazy_model": {"checkpoint", "model_arrays", "plan", "tied_tensors"},
        "load": {
            *("checkpoint", "checkpoint_dir", "model_arrays", "plan", "streaming", "tied_tensors"),
            "user_family",
        },
    },
    "jaxllm.interop.pytrees": {
        **{name: set() for name in ("leaves", "axis_sizes", "tree_rules")},
        "placement": {"leaves"},
        "fitting": {"axis_sizes", "leaves", "tree_rules"},
        "load_into": {"fitting", "leaves", "placement", "tree_rules"},
        "save_from": {"fitting", "leaves", "load_into", "tree_rules"},
    },
    "jaxllm.interop.parity": {
        "numerics": set(),
        "memory": set(),
        "progress": set(),
        "report": set(),
        "alignment": {"memory", "numerics", "report"},
        "diagnosis": {"numerics"},
        "execution": {"alignment", "memory", "numerics", "progress", "report"},
        "recording": {"alignment", "execution", "memory", "numerics", "progress", "report"},
        "levels": {
            *("alignment", "diagnosis", "execution", "memory", "numerics", "progress"),
            *("recording", "report"),
        },
        "render": {"levels", "report"},  # the table of levels has their titles
        "rendered_report": {"render", "report"},
        "comparison": {
            *("alignment", "execution", "levels", "memory", "numerics", "progress"),
            *("rendered_report", "report"),
        },
        "against": {
            *("alignment", "comparison", "execution", "levels", "numerics", "progress"),
            *("rendered_report", "report"),
        },
        "both_sides": {"alignment", "memory", "numerics"},
        "checkpoint": {
            *("alignment", "both_sides", "comparison", "levels", "memory", "numerics"),
            *("progress", "rendered_report"),
        },
        "golden": {
            *("alignment", "both_sides", "checkpoint", "comparison", "execution", "levels"),
            *("memory", "numerics", "progress", "recording", "rendered_report"),
        },
    },
    "jaxllm.train": {
        **{
            name: set()
            for name in (
                "data",
                "optimizers",
                "mesh",
                "loss",
                "checkpoint_arrays",
                "overrides",
                "settings",
                "speed",
            )
        },
        "config": {"data", "loss", "mesh", "optimizers", "overrides", "settings", "speed"},
        "exporting": {"config"},
        "objective": {"loss"},
        "evaluation": {"data", "loss", "objective"},
        "preference": {"config", "data", "loss", "objective"},
        "monitoring": {"config", "optimizers", "restarts", "speed"},
        "cost": {"config", "data", "finetuning", "preference", "speed", "step"},
        "planning": {"config", "cost", "data", "finetuning", "mesh", "setup", "speed", "step"},
        "step": {"config", "data", "objective", "optimizers", "preference"},
        "finetuning": {"config", "data", "step"},
        "checkpoint": {"config", "finetuning", "step"},
        "restarts": {"config"},
        "setup": {
            *("checkpoint", "config", "data", "finetuning", "mesh", "optimizers", "preference"),
            *("restarts", "step"),
        },
        "loop": {
            *(
                "checkpoint",
                "config",
                "data",
                "exporting",
                "monitoring",
                "preference",
                "restarts",
                "setup",
            ),
            *("speed", "step"),
        },
        "cross_framework": {
            *("checkpoint", "config", "finetuning", "optimizers", "setup", "step"),
            "checkpoint_arrays",
        },
        "verify": {
            *("config", "data", "mesh", "monitoring", "optimizers", "setup", "step"),
            "checkpoint_arrays",
        },
    },
    "jaxllm.train.planning": {
        **{name: set() for name in ("collectives", "topology")},
        "step_program": {"topology"},
        "minimum": {"collectives"},
        "analytic": {"collectives", "step_program"},
        "compiled": {"collectives", "step_program", "topology"},
        "plan": {
            *("analytic", "collectives", "compiled", "minimum", "step_program", "topology"),
        },
        "render": {"collectives", "plan"},
        "search": {"minimum", "plan", "step_program", "topology"},
        "report": {"compiled", "plan", "render", "search", "step_program", "topology"},
    },
}
# The maximum number of layers of components.
MAX_LAYERS = {"jaxllm.interop": 9}
# Modules outside interop whose functions may import transformers: for its tokenizers alone.
READ_TOKENIZERS = ("jaxllm.tokenization.converted", "jaxllm.tokenization.gguf_companions")
# Components of interop whose functions may run the reference models.
MAY_RUN_REFERENCES = ("families", "in_memory", "optimizer_state", "parity")
# The only third-party dependency of rules, so that they can be read and tested alone.
RULES_NEED = {"numpy"}


def module_of(file: Path) -> str:
    """Returns the module name under which a file is installed."""
    parts = [*file.relative_to(ROOT).with_suffix("").parts]
    if parts[0] != "jaxllm":
        parts.insert(0, "jaxllm")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imported(module: str, is_package: bool, tree: ast.AST) -> Iterator[str]:
    """Yields the full name of everything that a module imports, anywhere in it."""
    parts = module.split(".")
    package = parts if is_package else parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def component_of(package: str, module: str) -> str | None:
    """Returns the component of a package that contains a module; None if it is outside."""
    inside = module.removeprefix(f"{package}.")
    return None if inside == module else inside.partition(".")[0]


def wrong_components(module: str, names: list[str]) -> Iterator[str]:
    """Yields imports that the table does not allow."""
    for package, allowed in TABLE.items():
        own = component_of(package, module)
        if own is None or own.startswith("__init__"):
            continue
        if own not in allowed:
            yield f"{own} is not in the table of {package}"
            continue
        for name in names:
            other = component_of(package, name)
            if other in allowed and other not in {own, *allowed[own]}:
                yield f"{module}: {own} may not import {other} ({name})"


def wrong_packages(module: str, names: list[str], tree: ast.Module) -> Iterator[str]:
    """Yields imports of other packages and of reference models that are not allowed here."""
    _, part, inner, *_ = *module.split("."), "", ""
    in_interop, is_reference = part == "interop", (part, inner) == ("interop", "reference")
    for name in names:
        top = name.split(".")[0]
        if top in ("interop", "train"):
            yield f"{module} imports {name}, which is installed as jaxllm.{name}"
        is_tokenizer = module in READ_TOKENIZERS and name == "transformers.AutoTokenizer"
        if top in ("torch", "transformers") and not in_interop and not is_tokenizer:
            yield f"{module} imports {name}"
        is_stranger = in_interop and inner not in {"reference", *MAY_RUN_REFERENCES}
        if is_stranger and name.startswith("jaxllm.interop.reference"):
            yield f"{module} imports {name}, a reference model"
        foreign = top not in {"jaxllm", *sys.stdlib_module_names, *RULES_NEED}
        if foreign and module.startswith("jaxllm.interop.rules"):
            yield f"{module} imports {name}; rules need {', '.join(RULES_NEED)} alone"
    if is_reference:  # reference models are written in PyTorch
        return
    top_level = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    lazy = ("torch.", "transformers.", "jaxllm.interop.reference.components.")
    lazy += tuple(f"jaxllm.interop.reference.{system}." for system in ("llm", "nima", "tlama"))
    for name in imported(module, False, top_level):
        if f"{name}.".startswith(lazy):
            yield f"{module} imports {name} outside a function"


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """Returns the forbidden imports of a module."""
    tree = ast.parse(source)
    names = list(imported(module, is_package, tree))
    return [*wrong_components(module, names), *wrong_packages(module, names, tree)]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_no_forbidden_imports(module):
    file = MODULES[module]
    assert violations(module, file.read_text(), file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("train.x", "", "x is not in the table of jaxllm.train"),
        ("train.loss", "from jaxllm.interop import load_pretrained", "may not import interop"),
        ("train.data.x", "from jaxllm.train.step import x", "data may not import step"),
        (
            "train.verify.x",
            "from jaxllm.train.cross_framework import x",
            "may not import cross_framework",
        ),
        ("interop.saving.x", "import jaxllm.train", "interop may not import train"),
        ("interop.rules.x", "from jaxllm.interop.formats import y", "may not import formats"),
        ("interop.rules.x", "import jax", "rules need numpy alone"),
        ("interop.formats.orbax", "from .pytorch import x", "orbax may not import pytorch"),
        ("interop.families.common.x", "from ..meta import llama", "common may not import meta"),
        ("interop.loading.plan", "def f():\n    from . import load", "plan may not import load"),
        ("interop.parity.report.x", "from ..render import html", "report may not import render"),
        ("interop.saving.x", "from jaxllm.interop.conversion import x", "may not import conv"),
        ("layers.attention.x", "from jaxllm.models import build", "layers may not import models"),
        ("layers.mlp", "from .block import Block", "mlp may not import block"),
        ("models.x", "def f():\n    import torch", "models.x imports torch"),
        ("tokenization.converted", "def f():\n    import torch", "converted imports torch"),
        (
            "tokenization.converted",
            "from transformers import AutoTokenizer",
            "AutoTokenizer outside a function",
        ),
        ("interop.saving.x", "import torch", "imports torch outside a function"),
        ("interop.loading.load", "import jaxllm.interop.reference.llm", "a reference model"),
        ("interop.parity.levels.x", "import jaxllm.interop.reference.llm", "outside a function"),
        ("interop.saving.x", "import train.loop", "installed as jaxllm.train.loop"),
    ],
)
def test_a_planted_violation_is_found(module, source, complaint):
    assert any(complaint in found for found in violations(f"jaxllm.{module}", source))


def import_graph(package: str) -> dict[str, set[str]]:
    """Returns the components of a package, each with the components that it imports."""
    found: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        own = component_of(package, module)
        if own is None:
            continue
        others = found.setdefault(own, set())
        tree = ast.parse(file.read_text())
        for name in imported(module, file.name == "__init__.py", tree):
            if (
                other := component_of(package, name)
            ) is not None and f"{package}.{other}" in MODULES:
                others |= {other} - {own}
    return found


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns the components in import cycles, and those between two cycles."""
    left = {name: set(others) for name, others in graph.items()}
    while True:
        used = set().union(*left.values())
        free = [name for name in left if not left[name] & left.keys() or name not in used]
        if not free:
            return sorted(left)
        for name in free:
            del left[name]


def count_layers(graph: Mapping[str, set[str]]) -> int:
    """Returns the length of the longest import chain in a graph without cycles."""
    heights: dict[str, int] = {}
    while len(heights) < len(graph):
        for name, others in graph.items():
            if name not in heights and others <= heights.keys():
                heights[name] = 1 + max((heights[other] for other in others), default=0)
    return max(heights.values())


PACKAGES = [module for module, file in MODULES.items() if file.name == "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_no_import_cycle(package):
    graph = import_graph(package)
    assert find_cycle(graph) == []
    if package in MAX_LAYERS:
        assert count_layers(graph) <= MAX_LAYERS[package]


def test_cycles_and_layers_are_found():
    acyclic = {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a"}}
    assert (find_cycle(acyclic), count_layers(acyclic)) == ([], 3)
    assert find_cycle({**acyclic, "a": {"c"}}) == ["a", "b", "c"]


def test_the_table_has_no_cycle():
    assert [find_cycle(allowed) for allowed in TABLE.values()] == [[]] * len(TABLE)


def test_the_table_lists_only_existing_components():
    for package, allowed in TABLE.items():
        assert sorted(allowed.keys() - import_graph(package).keys()) == []


def test_every_folder_of_code_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(PACKAGES)
