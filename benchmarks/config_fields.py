"""`python benchmarks/config_fields.py`: lists the config fields that transformers reads.

Writes interop/families/huggingface/config_fields.json from the syntax trees of the installed
transformers: for each model type, every field that its config class, the classes of its model or
shared code of masks, RoPE, caches and quantization reads, with the values that mean the same as no
value; the other names of fields; and the RoPE parameters that each kind of RoPE reads. Any other
field of a config file cannot change a number.
"""

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from jaxllm.interop.families import FAMILIES

ROPE = "modeling_rope_utils.py"
# Shared code that every model runs, and that only models run which import it.
SHARED = ("modeling_utils.py", "cache_utils.py", "quantizers/auto.py")
IMPORTED = (
    *("masking_utils.py", ROPE, "modeling_layers.py"),
    *("integrations/sdpa_attention.py", "integrations/moe.py"),
)
# Fields that choose kernels and devices, or that only initialization, training, text, other heads
# and the library's own bookkeeping depend on.
HARMLESS = re.compile(
    r"_*(attn|experts)_implementation|.*name_or_path|.*dropout(_rate)?|.*_pdrop|.*layerdrop|initializer_.*"
    r"|init_std|gradient_checkpointing|(bos|eos|pad|sep)_token_id|device_.*|dis(k|able)_.*|.*_plan"
    r"|dtype|model_type|num_labels|id2label|label2id|problem_type|classifier_.*|summary_.*"
    r"|token_classification_bias|router_(aux_loss_coef|jitter_noise)|use_cache|output_.*"
    r"|return_dict|(get|to|validate|standardize|sanitize|create|save)_.*|ignore_.*|weights_only"
    r"|sub_configs|compile_config|distributed_config|hf_quantizer|sharded_metadata"
)
# What `PreTrainedConfig.get_text_config` takes for a nested config, and what `generate` asks first.
ALWAYS: dict[str, list[Any]] = {
    **{key: [None] for key in ("decoder", "generator", "text_config", "text_encoder")},
    "is_encoder_decoder": [False],
}
# Model types that are only parts of others, and their classes.
PARTS = {"llama4_vision_model": "Llama4VisionModel"}
TARGET = Path(__file__).parents[1] / "interop/families/huggingface/config_fields.json"
SIDES = ("encoder", "decoder")
UNDECLARED = object()
Found = dict[str, list[list[Any]]]  # for each name that is read, the default of each reading


def fields_read(source: ast.AST, *, in_config: bool = False) -> Iterator[tuple[str, list[Any]]]:
    """Yields the names read from a config, and the values that mean the same as no value.

    Those are the literal defaults of `getattr(config, "name", default)` and of `kwargs.get`.

    Args:
        source: a syntax tree.
        in_config: whether it is of a config class, whose `self` is a config and whose `kwargs` are
            fields.
    """
    for node in ast.walk(source):
        match node:
            case ast.Attribute(value=owner, attr=name, ctx=ast.Load()) if _is_config(
                owner, in_config=in_config
            ):
                default = []
            case ast.Call(
                func=ast.Name("getattr" | "hasattr"), args=[owner, ast.Constant(str(name)), *rest]
            ) if _is_config(owner, in_config=in_config):
                default = [value.value for value in rest if isinstance(value, ast.Constant)]
            case ast.Call(
                func=ast.Attribute(value=ast.Name("kwargs"), attr="get" | "pop"),
                args=[ast.Constant(str(name)), *rest],
            ) if in_config:
                default = [value.value for value in rest if isinstance(value, ast.Constant)]
            case ast.Compare(left=ast.Constant(str(name)), comparators=[ast.Name("kwargs")]) if (
                in_config
            ):
                default = []
            case _:
                continue
        if not HARMLESS.fullmatch(name):
            yield name, default


def _is_config(node: ast.expr, *, in_config: bool) -> bool:
    """Whether an expression is a config by its name, such as `self.config` or `text_config`."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name.endswith("config") or (in_config and name == "self")
    return False


def rope_fields_read(source: ast.AST) -> Found:
    """Returns the RoPE parameters that a function reads, with the defaults of `get`."""
    found: Found = {}
    for node in ast.walk(source):
        match node:
            case ast.Subscript(value=owner, slice=ast.Constant(str(name)), ctx=ast.Load()):
                default = []
            case ast.Call(
                func=ast.Attribute(value=owner, attr="get"), args=[ast.Constant(str(name)), *rest]
            ):
                default = [value.value for value in rest if isinstance(value, ast.Constant)]
                default = default or [None]
            case _:
                continue
        if "rope_parameters" in ast.unparse(owner):
            found.setdefault(name, []).append(default)
    return found


def reachable(tree: ast.Module, roots: set[str], config_class: str) -> Iterator[ast.stmt]:
    """Yields the classes, functions and tables of a module that some others use, directly or not.

    Args:
        tree: the module.
        roots: the names to begin with.
        config_class: classes that take a config of another class are left out.
    """
    defined: dict[str, ast.stmt] = {
        n.name: n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)
    }
    tables = [n for n in tree.body if isinstance(n, ast.Assign)]  # such as of attention classes
    defined |= {one.id: n for n in tables for one in n.targets if isinstance(one, ast.Name)}
    left, seen = set(roots), set[str]()
    while left:
        name = left.pop()
        if name in seen or name not in defined or _takes_other(defined[name], config_class):
            continue
        seen.add(name)
        yield defined[name]
        left |= {node.id for node in ast.walk(defined[name]) if isinstance(node, ast.Name)}


def _takes_other(node: ast.stmt, config_class: str) -> bool:
    """Whether a class declares that its config is of another class.

    Classes of a text model may declare the config that has the text model's as a part, unless they
    do read its parts.
    """
    own = {config_class, "PreTrainedConfig"}
    attributes = {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    if not attributes & {"text_config", "vision_config"}:
        own.add(config_class.replace("TextConfig", "Config"))
    for inner in getattr(node, "body", ()):
        match inner:
            case ast.AnnAssign(target=ast.Name("config"), annotation=annotation):
                kinds: list[ast.expr | None] = [annotation]
            case ast.FunctionDef(name="__init__"):
                kinds = [a.annotation for a in inner.args.args if a.arg == "config"]
            case _:
                continue
        for kind in filter(None, kinds):
            named = re.findall(r"\w+Config\b", ast.unparse(kind))
            if named and not own & set(named):
                return True
    return False


def _in_module(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """Yields what any code of a shared module reads; `self` is a config in config classes."""
    tree = ast.parse(path.read_text())
    configs = [n for n in tree.body if isinstance(n, ast.ClassDef) and "Config" in n.name]
    tree.body = [node for node in tree.body if node not in configs]
    yield from fields_read(tree)
    for node in configs:
        yield from fields_read(node, in_config=True)


def _in_config_class(tree: ast.Module, config_class: type) -> Iterator[tuple[str, list[Any]]]:
    """Yields what a config class reads, but for what it computes itself."""
    (node,) = (n for n in tree.body if getattr(n, "name", "") == config_class.__name__)
    declared = {field.name for field in dataclasses.fields(config_class)}
    computed = {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
    }
    for name, default in fields_read(node, in_config=True):
        if name in declared or name not in computed:
            yield name, default


def _by_parent(tree: ast.Module, key: str) -> Iterator[tuple[str, list[Any]]]:
    """Yields what a module reads of a config through another, whose field `key` it is."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Attribute(attr=owner), attr=name) if owner == key:
                yield name, []


def _classes_of(kind: str) -> set[str]:
    """Returns the names of the model classes of a model type."""
    tables = (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        PARTS,
    )
    return {str(table[kind]) for table in tables if kind in table}


def describe(kind: str) -> dict[str, Any]:
    """Returns what is read of the configs of a model type."""
    root, config_class = Path(transformers.__file__).parent, CONFIG_MAPPING[kind]
    folder = Path(inspect.getfile(config_class)).parent
    source = (folder / f"modeling_{folder.name}.py").read_text()
    tree = ast.parse(source)
    own = list(reachable(tree, _classes_of(kind), config_class.__name__))
    shared = [*SHARED, *(name for name in IMPORTED if _imports(source, name))]
    configuration = ast.parse((folder / f"configuration_{folder.name}.py").read_text())
    fields: Found = {name: [default] for name, default in ALWAYS.items()}
    reads = [
        *(one for name in shared for one in _in_module(root / name)),
        *(one for node in own for one in fields_read(node)),
        *_in_config_class(configuration, config_class),
        *_by_parent(tree, config_class.base_config_key),
    ]
    for name, default in reads:
        fields.setdefault(name, []).append(default)
    declared = {field.name: field.default for field in dataclasses.fields(config_class)}
    aliases = {a: name for a, name in config_class.attribute_map.items() if a not in declared}
    for alias, name in config_class.attribute_map.items():
        fields.setdefault(name, []).extend(fields.get(alias, []))
    if declared.get("is_encoder_decoder"):
        # Caches read what `get_text_config` returns, which renames the fields of a side.
        of_sides = {f"{side}_{n}" for side in SIDES for n in (*fields, *config_class.attribute_map)}
        fields.update((name, [[]]) for name in of_sides - fields.keys())
    default_rope = [
        inner
        for node in own
        for inner in ast.walk(node)
        if isinstance(inner, ast.FunctionDef) and inner.name == "compute_default_rope_parameters"
    ]
    return {
        "aliases": {a: name for a, name in aliases.items() if not HARMLESS.fullmatch(name)},
        "fields": _with_inert_values(config_class, fields, declared),
        "rope": _rope_fields(*default_rope),
        "unread": sorted({*declared, "model_type", "torch_dtype"} - fields.keys()),
    }


def _imports(source: str, module: str) -> bool:
    """Whether a model's module imports a shared one; the integrations are imported as a whole."""
    return f"from ...{module.split('.', maxsplit=1)[0].split('/', maxsplit=1)[0]} import" in source


def _with_inert_values(config_class: type, fields: Found, declared: dict) -> dict[str, list[Any]]:
    return {
        name: _inert(defaults, declared.get(name, UNDECLARED))
        for name, defaults in sorted(fields.items())
        if defaults and not callable(getattr(config_class, name, None))
    }


def _rope_fields(*functions: ast.AST) -> dict[str, list[Any]]:
    found: Found = {"rope_type": [[]], "type": [[]]}
    for function in functions:
        for name, defaults in rope_fields_read(function).items():
            found.setdefault(name, []).extend(defaults)
    return {name: _inert(defaults, UNDECLARED) for name, defaults in sorted(found.items())}


def rope_kinds() -> dict[str, dict[str, list[Any]]]:
    """Returns the RoPE parameters that each kind of scaling reads."""
    tree = ast.parse((Path(transformers.__file__).parent / ROPE).read_text())
    defined = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    table = next(
        n.value
        for n in tree.body
        if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "ROPE_INIT_FUNCTIONS"
    )
    assert isinstance(table, ast.Dict)
    return {
        ast.literal_eval(kind): _rope_fields(defined[ast.unparse(function)])
        for kind, function in zip(table.keys, table.values, strict=True)
        if kind is not None
    }


def catalogue() -> dict[str, dict[str, Any]]:
    """Returns what transformers reads, by model type, and by kind of RoPE under "rope"."""
    # Of multimodal models the text part alone is read, by a family of its own. A type that
    # transformers has no class for is read by that of another.
    own = (family for family in FAMILIES if family.format == "hf" and not family.is_part)
    kinds = sorted({str(family.model_type) for family in own} & {*CONFIG_MAPPING})
    return {"rope": rope_kinds(), **{kind: describe(kind) for kind in (*kinds, *PARTS)}}


def _inert(defaults: list[list[Any]], declared: Any) -> list[Any]:
    """Returns the value that means the same as no value, in a list, or an empty list."""
    if declared is not UNDECLARED:
        return [declared] if isinstance(declared, bool | int | float | str | None) else []
    given = [default for default in defaults if default]  # others would fail without the field
    return given[0] if given and all(default == given[0] for default in given) else []


def as_text(found: dict[str, dict[str, Any]]) -> str:
    """Returns the catalogue as JSON, one model type on a line."""
    lines = (f" {json.dumps(kind)}: {json.dumps(reads)}" for kind, reads in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    TARGET.write_text(as_text(catalogue()))
    print(f"wrote {TARGET}")
