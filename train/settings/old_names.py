"""Old names of fields in the configs of stored runs, and the groups that they belong to now."""

from collections.abc import Mapping
from typing import Any

# The group of a field and its name there; None: it has no meaning any more.
_RUN: dict[str, tuple[str, str] | None] = {
    "loss_chunk": None,
    "log_every": ("logging", "every"),
    "tensorboard": ("logging", "tensorboard"),
    "wandb": ("logging", "wandb"),
}
_OPTIMIZER: dict[str, tuple[str, str] | None] = {
    "on_bad_step": ("bad_steps", "action"),
    "spike": ("bad_steps", "spike"),
    "milestones": ("multi_step", "milestones"),
    "factors": ("multi_step", "factors"),
}


def with_new_names(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the data of a stored run's config with the fields where they are now."""
    found = _regrouped(run, _RUN)
    if isinstance(optimizer := found.get("optimizer"), dict):
        found["optimizer"] = _regrouped(optimizer, _OPTIMIZER)
    return found


def _regrouped(
    fields: Mapping[str, Any], old: Mapping[str, tuple[str, str] | None]
) -> dict[str, Any]:
    found = {name: value for name, value in fields.items() if name not in old}
    for name, place in old.items():
        if name in fields and place is not None:
            group, field = place
            found[group] = {**(found.get(group) or {}), field: fields[name]}
    return found
