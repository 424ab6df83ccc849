"""The level of the config: every field that bears on the numbers, read on both sides."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxllm.config import Config, StackConfig, flatten, make_config, upgrade_name
from jaxllm.interop.parity.alignment.inputs import last_stack
from jaxllm.interop.parity.alignment.parameter_names import read_config
from jaxllm.interop.parity.report.rows import FieldResult
from jaxllm.models import Model

from .level import Stage
from .pair import Ours

# What two configs may differ in and still mean the same numbers. The layout of rotated pairs says
# how our kernels lie, which the rules follow; how long sequences were says nothing of the short.
FREE = {
    "max_len",
    "init.kind",
    "init.std",
    "dropout",
    "rope.layout",
    "numerics.param_dtype",
    "numerics.dtype",
    "scan_layers",
    "remat",
}


def compare_config(reference: Any, model: Model) -> list[FieldResult]:
    """Every field that bears on the numbers, read from the reference's config and in ours."""
    return compare_fields(*fields_of(reference, model), model)


def fields_of(reference: Any, model: Model) -> tuple[dict[str, str] | None, list[str]]:
    """The reference's config in our fields, by dotted names, and what is wrong with it."""
    theirs, problems = config_of(reference, model)
    return None if theirs is None else _flat(theirs), problems


def compare_fields(
    given: dict[str, str] | None, problems: Sequence[str], model: Model
) -> list[FieldResult]:
    """What `fields_of` found against the config of `model`."""
    if given is None:
        return [FieldResult("config", "", problem) for problem in problems]
    ours = _flat(model.config)
    rows = [
        FieldResult(f"config.{name}", ours.get(name, "None"), given.get(name, "None"))
        for name in {**ours, **given}
    ]
    return [*rows, *(FieldResult("config", "", problem) for problem in problems)]


def config_of(reference: Any, model: Model) -> tuple[Config | None, list[str]]:
    """The reference's config as ours would be, and what is wrong with it."""
    values, _, problems = read_config(reference)
    try:
        return make_config(values, numerics=last_stack(model).numerics), problems
    except (ValueError, TypeError) as error:
        return None, problems or [str(error)]


def _flat(config: Config | StackConfig) -> dict[str, str]:
    """Fields, those of parts by dotted names; of the pattern, what every layer has."""
    flat: dict[str, str] = {}
    fields = flatten(config) if isinstance(config, StackConfig) else vars(config)
    for name, value in fields.items():
        if name == "pattern":
            every: Sequence[Any] = config.kinds  # type: ignore[union-attr] # it has a pattern
            for part in dataclasses.fields(every[0]):
                kinds = (getattr(kind, part.name) for kind in every)
                flat[f"pattern.{part.name}"] = " ".join(map(str, kinds))
        elif isinstance(value, StackConfig):
            flat |= {f"{name}.{field}": text for field, text in _flat(value).items()}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = dataclasses.asdict(value)
            flat |= {f"{name}.{field}": repr(part) for field, part in parts.items()}
        elif name not in FREE:
            flat[name] = repr(value)
    return flat


def check_config(recorded: Sequence[Any], ours: Ours) -> list[FieldResult]:
    """Our config against recorded fields, whose names may be those of an earlier version."""
    fields, problems = recorded
    if fields is not None:
        fields = {upgrade_name(name): text for name, text in fields.items()}
    return compare_fields(fields, problems, ours.model)


CONFIG = Stage(
    name="config",
    compare=lambda pair: compare_config(pair.reference, pair.model),
    record=lambda pair: fields_of(pair.reference, pair.model),
    check=check_config,
    computes=False,
)
