"""Fields of Hugging Face configs that transformers reads: all others cannot change a number.

`python benchmarks/config_fields.py` writes the list from the installed transformers.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any


def is_inert(model_type: str, name: str, value: Any) -> bool:
    """Whether a config field with this value cannot change what transformers computes.

    Args:
        model_type: of a Hugging Face family.
        name: the field, of the config file or of a nested part.
        value: its value; that which transformers takes if the field is absent is inert.
    """
    fields = _read_fields()[model_type]
    return name not in fields or value in fields[name]


@cache
def _read_fields() -> dict[str, dict[str, list[Any]]]:
    """Returns the fields that transformers reads and their inert values, by model type."""
    folder = files("jaxllm.interop.families.huggingface")
    return json.loads((folder / "config_fields.json").read_text())
