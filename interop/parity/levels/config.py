"""Config level: compares every field that affects the numbers."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jaxllm.config import Config, StackConfig, flatten, make_config, upgrade_name
from jaxllm.interop.parity.alignment.inputs import output_config
from jaxllm.interop.parity.alignment.parameter_names import read_config
from jaxllm.interop.parity.alignment.references.peft_models import base_name, our_factors
from jaxllm.interop.parity.report.rows import FieldResult
from jaxllm.models import Model

from .level import Stage, both_digests
from .sides import Comparison, JaxSide

# Fields that may differ without a change of the numbers. The RoPE layout is the layout of the JAX
# kernels, which the conversion rules take into account; max_len does not affect shorter sequences.
FREE = {
    "max_len",
    "init.kind",
    "init.std",
    "dropout",
    "rope.layout",
    "numerics.param_dtype",
    "numerics.dtype",
    "numerics.wide_residual",
    "numerics.reduce_dtype",
    "numerics.matmul_dtype",
    "scan_layers",
    "remat",
    "attention.kernel",
    "norms.sequence_parallel",
}

# Fields that early recordings lack, with the value that their references have.
LATER = {"head.kind": "'linear'"}


def compare_config(reference: Any, model: Model) -> list[FieldResult]:
    """Compares every field that affects the numbers in the configs of both sides."""
    return compare_fields(*fields_of(reference, model), model)


def fields_of(reference: Any, model: Model) -> tuple[dict[str, str] | None, list[str]]:
    """Returns the reference's config by dotted JAX field names, and the problems in reading it."""
    theirs, problems = config_of(reference, model)
    return None if theirs is None else _flat(theirs), problems


def compare_fields(
    given: dict[str, str] | None, problems: Sequence[str], model: Model
) -> list[FieldResult]:
    """Compares what `fields_of` returned for the reference with the config of `model`."""
    if given is None:
        return [FieldResult("config", "", problem) for problem in problems]
    rows = _compare_flat(_flat(model.config), given)
    return [*rows, *(FieldResult("config", "", problem) for problem in problems)]


def compare_configs(ours: Config, theirs: Config) -> list[FieldResult]:
    """Compares every field that affects the numbers in two configs."""
    return _compare_flat(_flat(ours), _flat(theirs))


def _compare_flat(ours: dict[str, str], theirs: dict[str, str]) -> list[FieldResult]:
    return [
        FieldResult(f"config.{name}", ours.get(name, "None"), theirs.get(name, "None"))
        for name in {**ours, **theirs}
    ]


def config_of(reference: Any, model: Model) -> tuple[Config | None, list[str]]:
    """Returns the reference's config as a JAX config, and the problems in reading it.

    The config is None if no config can be built from its values.
    """
    values, _, problems = read_config(reference)
    ours = {
        f"numerics.{name}": value for name, value in vars(output_config(model).numerics).items()
    }
    try:
        return make_config(values, ours), problems
    except (ValueError, TypeError) as error:
        return None, problems or [str(error)]


def _flat(config: Config | StackConfig) -> dict[str, str]:
    """Flattens a config into dotted names; the layer pattern becomes a list over all layers."""
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


def check_config(recorded: Sequence[Any], ours: JaxSide) -> list[FieldResult]:
    """Compares the model's config with recorded fields, whose names may be of an older version."""
    fields, problems = recorded
    if fields is not None:
        current = {upgrade_name(name): name for name in fields}
        problems = [
            *problems,
            *(
                f"{new} is given twice ({name}, {current[new]})"
                for name in fields
                if current[new := upgrade_name(name)] != name
            ),
        ]
        fields = {new: fields[name] for new, name in current.items()}
        later = {
            n: LATER[n.removeprefix("decoder.")] for n in _flat(ours.model.config) if _is_later(n)
        }
        fields = {**later, **fields}
    return compare_fields(fields, problems, ours.model)


def _is_later(name: str) -> bool:
    return name.removeprefix("decoder.") in LATER


def compare_scales(comparison: Comparison) -> Iterator[FieldResult]:
    """Yields a row for the scale of each projection with LoRA's factors."""
    ours = our_factors(comparison.unstacked)
    theirs: dict[str, float] = {}
    if comparison.factors is not None:
        state = comparison.reference.state_dict().items()
        found = {name: x.float().cpu().numpy() for name, x in state if base_name(name) is None}
        theirs = comparison.factors.scales(found)
    for name in dict.fromkeys([*ours, *theirs]):
        shown = [f"{side[name]:.7g}" if name in side else "None" for side in (ours, theirs)]
        yield FieldResult(f"{name}.lora.scale", *shown)


CONFIG = Stage(
    name="config",
    compare=lambda comparison: [
        *compare_config(comparison.reference, comparison.model),
        *compare_scales(comparison),
    ],
    record=lambda comparison: fields_of(comparison.reference, comparison.model),
    check=check_config,
    digests=lambda rows: both_digests(
        "config", [(f"{row.path}={row.ours}", f"{row.path}={row.theirs}") for row in rows]
    ),
    computes=False,
)
