"""Conversion of configs to and from fields by name; `norms.eps` names a field of a nested part."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from .models import (
    Config,
    DecoderConfig,
    EncoderDecoderConfig,
    SequenceConfig,
    SequenceToSequenceConfig,
    TwoStackConfig,
)
from .moved import check_moved, upgrade
from .stack import StackConfig

AnyConfig = TypeVar("AnyConfig", bound=StackConfig | TwoStackConfig)
Part = TypeVar("Part")


def config_class(values: Mapping[str, Any]) -> type[Config]:
    """Returns the config class that has fields of these names."""
    if "encoder" in values:
        return SequenceToSequenceConfig if "source_dim" in values else EncoderDecoderConfig
    return SequenceConfig if "input_dim" in values else DecoderConfig


def make_config(
    values: Mapping[str, Any], both: Mapping[str, Any] = {}, /, **fields: Any
) -> Config:
    """Makes a config of one stack, or of an encoder and a decoder, from fields by dotted name.

    Args:
        values: the fields. `encoder` and `decoder`, if given, map fields of those stacks.
        both: further fields of the one stack, or of both stacks.
        fields: the same as `both`, as keyword arguments.

    Returns:
        A config of the class that `config_class` names.

    Raises:
        ValueError: a field has its old name (the message gives the new one), or the fields do not
            describe a valid model.
        TypeError: no field has that name.
    """
    kind, both = config_class(values), {**both, **fields}
    if "encoder" not in values:
        return _make(kind, {**values, **both})
    encoder = _make(StackConfig, {**values["encoder"], **both})
    decoder = _make(config_class(values["decoder"]), {**values["decoder"], **both})
    return kind(**{**values, "encoder": encoder, "decoder": decoder})


def with_fields(config: AnyConfig, changes: Mapping[str, Any] = {}, /, **fields: Any) -> AnyConfig:
    """Returns a copy of a config with fields of its stack, or of both its stacks, changed.

    For example, `with_fields(config, {"norms.eps": 1e-6}, num_layers=2)`.

    Args:
        config: of one stack, or of an encoder and a decoder.
        changes: new values by dotted name.
        fields: new values by name.

    Raises:
        ValueError: a field has its old name (the message gives the new one), or the changed config
            is not a valid model.
        TypeError: no field has that name.
    """
    changes = {**changes, **fields}
    check_moved(changes)
    if isinstance(config, TwoStackConfig):
        return dataclasses.replace(
            config,
            encoder=_changed(config.encoder, changes),
            decoder=_changed(config.decoder, changes),
        )
    return _changed(config, changes)


def flatten(config: StackConfig) -> dict[str, Any]:
    """Maps dotted names to a stack's field values, in the order in which the class has them."""
    return _flat((field, getattr(config, field.name)) for field in dataclasses.fields(config))


def defaults(kind: type[StackConfig]) -> dict[str, Any]:
    """Maps dotted names to the defaults of the fields that have one."""
    fields = dataclasses.fields(kind)
    return _flat((f, f.default) for f in fields if f.default is not dataclasses.MISSING)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as nested dicts of plain values, for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(data: Mapping[str, Any]) -> Config:
    """Reads a config that `to_dict` returned, including data with old field names.

    Raises ValueError that lists every unknown, missing or ill-typed field.
    """
    data = upgraded(data)
    kind: Any = config_class(data)
    config: Config = _reader(kind).validate_python(data)
    return config


def upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a config's plain data from old field names to the current nested ones."""
    return _nested(upgrade(data))


@functools.cache
def _reader(kind: Any) -> Any:
    """Returns the validator of a config class. Cached, since building it takes a moment."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _make(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """Makes a config or part of a class from fields by dotted name; nested parts have defaults."""
    check_moved(values)
    start = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**_filled(values, start))


def _changed(part: Any, changes: Mapping[str, Any]) -> Any:
    """Returns a copy of a config or part with fields changed by dotted name."""
    return dataclasses.replace(part, **_filled(changes, vars(part)))


def _filled(values: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Maps plain names to values; dotted names become changed copies of the parts in `start`."""
    filled = _nested(values)
    for name, value in filled.items():
        if isinstance(value, Mapping):
            part = start.get(name)
            if not dataclasses.is_dataclass(part):
                raise TypeError(f"{name} has no fields {', '.join(value)}")
            filled[name] = _changed(part, value)
    return filled


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nests dotted names at any depth: `{"norms.eps": 1e-6}` gives `{"norms": {"eps": 1e-6}}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        part, dot, field = name.partition(".")
        inner = {field: value} if dot else value
        if part in tree:
            if not (isinstance(inner, Mapping) and isinstance(tree[part], Mapping)):
                raise ValueError(
                    f"{part} is given both as a whole and by its fields: give only one of the two"
                )
            inner = {**tree[part], **inner}
        tree[part] = inner
    return {
        name: _nested(value) if isinstance(value, Mapping) else value
        for name, value in tree.items()
    }


def _flat(fields: Iterable[tuple["dataclasses.Field[Any]", Any]]) -> dict[str, Any]:
    """Flattens (field, value) pairs; a part gives one dotted name for each of its fields.

    A field holds a part if its default is one.
    """
    flat: dict[str, Any] = {}
    for field, value in fields:
        if dataclasses.is_dataclass(field.default):
            flat |= {f"{field.name}.{name}": inner for name, inner in vars(value).items()}
        else:
            flat[field.name] = value
    return flat
