"""The family and the config of a module in memory, or of a state dict that comes with a config."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.interop.families import FAMILIES, Family, variant_of
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.families.gguf.translate import is_gguf
from jaxllm.interop.formats.pytorch.wrapped_names import WRAPPERS, without_prefix
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import first_shard_prefix
from jaxllm.interop.loading.checkpoint import identify_family
from jaxllm.interop.loading.checkpoint_dir import (
    Checkpoint,
    read_json,
    unknown_model_type,
    with_start_token,
)
from jaxllm.interop.loading.tied_tensors import TIED
from jaxllm.interop.loading.user_family import resolve_family

from .state_dict import STATE_DICT, read_state_dict, without_copies

_WRAPPERS = ("module", *WRAPPERS)  # attributes in which wrappers hold the module
CONFIG_FORMS = (
    "a config of transformers, the fields of its config file, or the path of that file, of its "
    "folder or of a GGUF file"
)


class InMemory(NamedTuple):
    """A model of PyTorch in memory, in the form of a checkpoint.

    Attributes:
        checkpoint: its family, config and tensors; the path is what messages call it.
        module: the module without wrappers; None for a bare state dict.
        folder: where its tokenizer may lie, a folder or a GGUF file; "" if that is not known.
    """

    checkpoint: Checkpoint
    module: Any
    folder: str


def open_in_memory(given: Any, config: Any = None, rules: Any = None) -> InMemory:
    """Finds the family and the config of a module or a state dict, and locates its tensors.

    Args:
        given: the module, wrapped or not, or its state dict.
        config: one of `CONFIG_FORMS`; by default the module's own.
        rules: rules for a model of one's own, see docs/rules.md.

    Raises:
        CheckpointError: the family is not known, or tensors cannot be read.
        UserError: `given` is neither a module nor a state dict, or a config is needed.
    """
    module = None if isinstance(given, Mapping) else unwrap_module(given)
    family, fields, folder = find_config(module, config, rules)
    place = STATE_DICT if module is None else type(module).__name__
    state = given if module is None else given.state_dict()
    if fields.get(TIED) and family.format == "hf":
        state = without_copies(state)  # a family may tell by its tensors whether the head is tied
    tensors = read_state_dict(state, place)
    if prefix := first_shard_prefix(family.format):
        tensors = {
            prefix + name: dataclasses.replace(tensor, name=prefix + name)
            for name, tensor in tensors.items()
        }
    family = variant_of(family, tensors)
    tensors = without_prefix(tensors, family.trainer_prefix(tensors))
    return InMemory(Checkpoint(Path(place), family, fields, tensors), module, folder)


def unwrap_module(module: Any) -> Any:
    """Returns the module inside wrappers such as those of DDP, FSDP and `torch.compile`.

    Raises:
        UserError: it is not a module.
    """
    if not callable(getattr(module, "state_dict", None)):
        raise UserError(
            f"a {type(module).__name__} is neither a PyTorch module nor a state dict, which maps "
            "names to tensors"
        )
    while not hasattr(module, "config") and not hasattr(module, "fields"):
        inner = [part for name, part in module.named_children() if name in _WRAPPERS]
        if len(inner) != 1 or len(list(module.children())) != 1:
            break
        module = inner[0]
    return module


def find_config(module: Any, config: Any, rules: Any) -> tuple[Family, Json, str]:
    """Returns the family, the fields of its config file, and the folder of the config or ""."""
    if isinstance(config, str | Path):
        return _read_path(local_path(config), rules)
    given = config if config is not None else own_config(module)
    family = None if rules is None else resolve_family(rules)
    if family is not None and not family.config_file:
        return family, {}, ""
    if given is None:
        what = "a state dict has" if module is None else f"{type(module).__name__} has"
        raise UserError(f"{what} no config{inner_module(module)}: give config=, {CONFIG_FORMS}")
    fields = config_fields(given)
    if family is None:
        family = family_of(fields, f"the config of {type(given).__name__}")
    if family.format == "hf" and module is not None:
        fields.setdefault("architectures", [type(module).__name__])
    generation = getattr(module, "generation_config", None)
    fields = with_start_token(family, fields, {} if generation is None else vars(generation))
    home = getattr(given, "name_or_path", "") or ""
    return family, fields, str(Path(home).resolve()) if home and Path(home).is_dir() else ""


def inner_module(module: Any) -> str:
    """Returns a clause that names the part of a module that has a config, if there is one."""
    parts = () if module is None else module.named_modules()
    name = next((name for name, part in parts if own_config(part) is not None), None)
    return "" if name is None else f", but its part {name} has one"


def family_of(fields: Json, place: object) -> Family:
    """Returns the family that the fields of a config file name.

    Raises:
        CheckpointError: there is no such family.
    """
    named = fields.get("model_type")
    for family in FAMILIES:
        if family.model_type == named:
            return family
    raise CheckpointError(unknown_model_type(place, named))


def config_fields(config: Any) -> Json:
    """Returns the fields that the config file of a config in memory has.

    Raises:
        UserError: it is none of `CONFIG_FORMS`, nor a dataclass.
    """
    if callable(getattr(config, "to_json_string", None)):
        return json.loads(config.to_json_string())
    if isinstance(config, Mapping):
        return dict(config)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    raise UserError(f"config={config!r:.80} is not {CONFIG_FORMS}")


def own_config(module: Any) -> Any:
    """Returns the fields of a source system's module, another module's config, or None."""
    fields = getattr(module, "fields", None)
    return fields if isinstance(fields, Mapping) else getattr(module, "config", None)


def _read_path(path: Path, rules: Any) -> tuple[Family, Json, str]:
    """Reads a config file, or that of a checkpoint: a folder, or a GGUF file."""
    is_checkpoint = path.is_dir() or is_gguf(path)
    folder = path if is_checkpoint else path.parent
    if is_checkpoint or rules is not None:
        return *identify_family(path, rules), str(folder.resolve())
    fields = read_json(path)
    return family_of(fields, path), fields, str(folder.resolve())
