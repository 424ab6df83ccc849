"""Where a model came from, carried with it so that it can go back in the same spelling."""

import dataclasses
from typing import Any

from jaxllm.models.decoder import Decoder

from .families import Layout


@dataclasses.dataclass(frozen=True)
class Origin:
    """The checkpoint that a model was loaded from. Kept as `model.origin`."""

    family: str
    config: str  # the text of its config file, for the fields that do not bear on the numbers
    layout: Layout
    directory: str  # the tokenizer and generation files are here


def origin_of(model: Decoder) -> Origin | None:
    """The model's origin; None if it was initialised here."""
    return getattr(model, "origin", None)


def to_dict(origin: Origin | None) -> dict[str, Any] | None:
    """The origin as plain data, for a native checkpoint."""
    return None if origin is None else dataclasses.asdict(origin)


def from_dict(data: dict[str, Any] | None) -> Origin | None:
    """The origin that `to_dict` wrote."""
    return None if data is None else Origin(**{**data, "layout": Layout(**data["layout"])})
