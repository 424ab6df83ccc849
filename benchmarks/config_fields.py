"""`python benchmarks/config_fields.py`: lists the config fields that transformers reads.

Writes interop/families/huggingface/config_fields.json from the syntax trees of the installed
transformers: for each model type, every field that its config class, its model or shared code of
masks, RoPE, caches and quantization reads. Any other field of a config file cannot change a number.
"""

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jaxllm.interop.families import FAMILIES

SHARED = (
    *("masking_utils.py", "modeling_rope_utils.py", "modeling_layers.py", "modeling_utils.py"),
    *("cache_utils.py", "integrations/sdpa_attention.py", "integrations/moe.py"),
    "quantizers/auto.py",
)
# Fields that choose kernels and devices, or that only initialization, training, text and the
# library's own bookkeeping depend on.
HARMLESS = re.compile(
    r"_*(attn|experts)_implementation|.*name_or_path|.*dropout|.*_pdrop|initializer_.*|init_std"
    r"|gradient_checkpointing|(bos|eos|pad|sep)_token_id|device_.*|dis(k|able)_.*|.*_plan|dtype"
    r"|model_type|num_labels|classifier_.*|router_(aux_loss_coef|jitter_noise)|use_cache"
    r"|output_.*|return_dict|(get|to|validate|standardize|sanitize|create|save)_.*|ignore_.*"
    r"|weights_only|sub_configs|compile_config|distributed_config|hf_quantizer|sharded_metadata"
)
TARGET = Path(__file__).parents[1] / "interop/families/huggingface/config_fields.json"
# Parts of a library that hold a model type which is not the name of their folder.
UNDECLARED = object()
FOLDERS = {"gemma3_text": "gemma3", "llama4_text": "llama4"}


def fields_read(source: str, *, is_config: bool = False) -> Iterator[tuple[str, list[Any]]]:
    """Yields the names read from a config, and the values that mean the same as no value.

    Those are the literal defaults of `getattr(config, "name", default)`.

    Args:
        source: the text of a module.
        is_config: whether the module defines a config class, whose `self` is a config too.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=owner, attr=name, ctx=ast.Load()):
                default = []
            case ast.Call(func=ast.Name("getattr"), args=[owner, ast.Constant(str(name)), *rest]):
                default = [value.value for value in rest if isinstance(value, ast.Constant)]
            case _:
                continue
        if _is_config(owner, is_config=is_config) and not HARMLESS.fullmatch(name):
            yield name, default


def _is_config(node: ast.expr, *, is_config: bool) -> bool:
    """Whether an expression is a config by its name, such as `self.config` or `text_config`."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name.endswith("config") or (is_config and name == "self")
    return False


def catalogue() -> dict[str, dict[str, list[Any]]]:
    """Returns the fields that transformers reads and their inert values, by model type."""
    root = Path(transformers.__file__).parent
    found = {}
    for kind in sorted(str(family.model_type) for family in FAMILIES if family.format == "hf"):
        folder = root / "models" / FOLDERS.get(kind, kind)
        own = [
            file
            for file in sorted(folder.glob("*.py"))
            if file.stem.startswith(("configuration_", "modeling_"))
        ]
        fields: dict[str, list[list[Any]]] = {}
        for file in [*(root / name for name in SHARED), *own]:
            is_config = file.stem.startswith(("configuration_", "modeling_rope"))
            for name, default in fields_read(file.read_text(), is_config=is_config):
                fields.setdefault(name, []).append(default)
        config_class = CONFIG_MAPPING[kind]
        for name, target in config_class.attribute_map.items():
            fields.setdefault(target, []).extend(fields.get(name, []))
        declared = {field.name: field.default for field in dataclasses.fields(config_class)}
        found[kind] = {
            name: _inert(defaults, declared.get(name, UNDECLARED))
            for name, defaults in sorted(fields.items())
            if defaults and not callable(getattr(config_class, name, None))
        }
    return found


def _inert(defaults: list[list[Any]], declared: Any) -> list[Any]:
    """Returns the value that means the same as no value, in a list, or an empty list."""
    if declared is not UNDECLARED:
        return [declared] if isinstance(declared, bool | int | float | str | None) else []
    given = [default for default in defaults if default]  # others would fail without the field
    return given[0] if given and all(default == given[0] for default in given) else []


def as_text(fields: dict[str, dict[str, list[Any]]]) -> str:
    """Returns the catalogue as JSON, one model type on a line."""
    lines = (f" {json.dumps(kind)}: {json.dumps(found)}" for kind, found in fields.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    TARGET.write_text(as_text(catalogue()))
    print(f"wrote {TARGET}")
