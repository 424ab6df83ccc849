"""Config file fields of a reference model, from the arguments of its constructor."""

import dataclasses
import json
from typing import Any


def as_fields(model_type: str, config: Any = None, **arguments: Any) -> dict[str, Any]:
    """Returns the fields of a config file: `model_type`, the fields of `config`, the arguments.

    `config` is a dataclass instance; all values are converted to JSON types.
    """
    config_fields = {} if config is None else dataclasses.asdict(config)
    given = {"model_type": model_type, **config_fields, **arguments}
    fields: dict[str, Any] = json.loads(json.dumps(given, default=dataclasses.asdict))
    return fields
