"""What a model was made of, as the config file of its checkpoint says it."""

import dataclasses
import json
from typing import Any


def as_fields(model_type: str, config: Any = None, **arguments: Any) -> dict[str, Any]:
    """The constructor's arguments, and those of the object that it was given, as JSON has them."""
    whole = {} if config is None else dataclasses.asdict(config)
    said = {"model_type": model_type, **whole, **arguments}
    fields: dict[str, Any] = json.loads(json.dumps(said, default=dataclasses.asdict))
    return fields
