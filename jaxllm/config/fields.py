"""Configs from fields by name and back; a dotted name, `norms.eps`, is that of a part's field."""

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
    """The class that has fields of these names."""
    if "encoder" in values:
        return SequenceToSequenceConfig if "source_dim" in values else EncoderDecoderConfig
    return SequenceConfig if "input_dim" in values else DecoderConfig


def make_config(
    values: Mapping[str, Any], both: Mapping[str, Any] = {}, /, **fields: Any
) -> Config:
    """Makes a config of one stack, or of an encoder and a decoder, from fields by dotted names.

    Args:
        values: fields; `encoder` and `decoder`, if given, are fields of those stacks.
        both: further fields of the one stack, or of both stacks.
        fields: further fields of `both`.

    Raises:
        ValueError: for an old name, with the new one, and for what is no model.
        TypeError: for a name that no field has.
    """
    kind, both = config_class(values), {**both, **fields}
    if "encoder" not in values:
        return _make(kind, {**values, **both})
    encoder = _make(StackConfig, {**values["encoder"], **both})
    decoder = _make(config_class(values["decoder"]), {**values["decoder"], **both})
    return kind(**{**values, "encoder": encoder, "decoder": decoder})


def with_fields(config: AnyConfig, changes: Mapping[str, Any] = {}, /, **fields: Any) -> AnyConfig:
    """Changes fields of a config's stack, or of both its stacks, by dotted names.

    For example `with_fields(config, {"norms.eps": 1e-6}, num_layers=2)`. Raises ValueError for an
    old name, with the new one, and TypeError for a name that no field has.
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
    """The fields of a stack by dotted names, in the order of the class."""
    return _flat((field, getattr(config, field.name)) for field in dataclasses.fields(config))


def defaults(kind: type[StackConfig]) -> dict[str, Any]:
    """The default of every field that has one, by dotted names."""
    fields = dataclasses.fields(kind)
    return _flat((f, f.default) for f in fields if f.default is not dataclasses.MISSING)


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain data, for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(data: Mapping[str, Any]) -> Config:
    """The config that `to_dict` wrote, now or when fields had their old names.

    Raises ValueError for unknown and ill-typed fields.
    """
    data = upgraded(data)
    reader = _reader(config_class(data))  # type: ignore[arg-type] # a class is hashable
    config: Config = reader.validate_python(data)
    return config


def upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """The plain data of a config with the names and the parts that fields have now."""
    return _nested(upgrade(data))


@functools.cache
def _reader(kind: type[Config]) -> Any:
    """What checks plain data; it takes a moment to build."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _make(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """An object of a class, its parts made of their defaults and of the fields given."""
    check_moved(values)
    start = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**_filled(values, start))


def _changed(part: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a config or of a part of one, with fields of it changed by dotted names."""
    return dataclasses.replace(part, **_filled(changes, vars(part)))


def _filled(values: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Values by plain names; those of a part's fields are put into the part as it is at start."""
    filled = _nested(values)
    for name, value in filled.items():
        if isinstance(value, Mapping):
            part = start.get(name)
            if not dataclasses.is_dataclass(part):
                raise TypeError(f"{name} has no fields {', '.join(value)}")
            filled[name] = _changed(part, value)
    return filled


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"norms.eps": 1e-6}` as `{"norms": {"eps": 1e-6}}`, at any depth."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        part, dot, field = name.partition(".")
        inner = {field: value} if dot else value
        if part in tree:
            if not (isinstance(inner, Mapping) and isinstance(tree[part], Mapping)):
                raise ValueError(f"{part} is given both whole and by its fields")
            inner = {**tree[part], **inner}
        tree[part] = inner
    return {
        name: _nested(value) if isinstance(value, Mapping) else value
        for name, value in tree.items()
    }


def _flat(fields: Iterable[tuple["dataclasses.Field[Any]", Any]]) -> dict[str, Any]:
    """Values by the names of their fields; a part, whose default is one, by those of its own."""
    flat: dict[str, Any] = {}
    for field, value in fields:
        if dataclasses.is_dataclass(field.default):
            flat |= {f"{field.name}.{name}": inner for name, inner in vars(value).items()}
        else:
            flat[field.name] = value
    return flat
