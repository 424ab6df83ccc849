"""Fields of Hugging Face configs that transformers reads: all others cannot change a number.

`python benchmarks/config_fields.py` writes the list from the installed transformers.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class ReadFields:
    """The fields that transformers reads of a config, or of a part of one.

    Attributes:
        fields: for each field the values that mean the same as its absence.
        aliases: other names of fields. If a config has both, the value of the alias is taken.
        default_rope: as `fields`, for RoPE parameters without scaling.
        unread: the other fields that every config of this kind has, such as token ids.
    """

    fields: Mapping[str, list[Any]]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_rope: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    unread: Collection[str] = ()

    def is_inert(self, name: str, value: Any) -> bool:
        """Whether a field with this value cannot change what transformers computes."""
        return name not in self.fields or value in self.fields[name]

    def default(self, name: str) -> Any:
        """Returns what transformers takes for a field that is absent; None if that is unknown."""
        return next(iter(self.fields.get(name, ())), None)

    def with_names(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a config in which each field that goes by another name also has its own."""
        renamed = {
            name: config[alias]
            for alias, name in self.aliases.items()
            if config.get(alias) is not None
        }
        return {**config, **renamed}

    def of_rope(self, kind: str) -> Self:
        """Returns what is read of the RoPE parameters if their scaling is of this kind."""
        kinds = _read_catalogue()["rope"]
        return type(self)(kinds.get(kind, self.default_rope))


@cache
def fields_read(model_type: str) -> ReadFields:
    """Returns the fields that transformers reads of a config of this model type."""
    found = _read_catalogue()[model_type]
    return ReadFields(found["fields"], found["aliases"], found["rope"], found["unread"])


@cache
def _read_catalogue() -> dict[str, dict[str, Any]]:
    folder = files("jaxllm.interop.families.huggingface")
    return json.loads((folder / "config_fields.json").read_text())
