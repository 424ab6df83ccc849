"""Conversion of configs to and from fields by name; `norms.eps` names a field of a nested part."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from .checks import show
from .models import (
    Config,
    DecoderConfig,
    EncoderDecoderConfig,
    SequenceConfig,
    SequenceToSequenceConfig,
    TwoStackConfig,
)
from .moved import STACKS, check_moved, upgrade_given, upgrade_pattern
from .problems import explain
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

    Raises ValueError with one line for every unknown, missing, repeated or ill-typed field.
    """
    from pydantic import ValidationError

    data = upgraded(data)
    kind: Any = config_class(data)
    try:
        config: Config = _reader(kind).validate_python(data)
    except ValidationError as error:
        raise ValueError("\n".join(problem.text for problem in explain(error, kind))) from None
    return config


def upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a config's plain data from old field names to the current nested ones.

    Raises ValueError if it is not a mapping of fields, or a field is given twice.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"expected a mapping of config fields, found {show(data)}")
    nested = _nested(data, upgrade_given)
    for stack in (nested, *(nested.get(name) for name in STACKS)):
        if isinstance(stack, dict) and "pattern" in stack:
            stack["pattern"] = upgrade_pattern(stack["pattern"])
    return nested


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


def _changed(part: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """Returns a copy of a config or part with fields changed by dotted name."""
    return dataclasses.replace(part, **_filled(changes, vars(part), prefix))


def _filled(
    values: Mapping[str, Any], start: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """Maps plain names to values; dotted names become changed copies of the parts in `start`."""
    filled = _nested(values)
    for name, value in filled.items():
        if isinstance(value, Mapping):
            part, place = start.get(name), f"{prefix}{name}"
            if not dataclasses.is_dataclass(part):
                reason = f": {place} is None" if part is None and name in start else ""
                raise TypeError(f"{place} has no fields {', '.join(value)}{reason}")
            filled[name] = _changed(part, value, f"{place}.")
    return filled


def _nested(
    values: Mapping[str, Any], rename: Callable[[str, Any], str] = lambda name, _: name
) -> dict[str, Any]:
    """Nests dotted names at any depth: `{"norms.eps": 1e-6}` gives `{"norms": {"eps": 1e-6}}`.

    `rename` maps the full name and the value of a field to its name in the result. Raises
    ValueError for a field that is given twice, also as a whole and by its fields.
    """
    tree: dict[str, Any] = {}
    names: dict[str, str] = {}  # of fields and groups in the tree, as they were given
    for name, value in _leaves(values):
        place = rename(name, value)
        *groups, field = place.split(".")
        inner, path = tree, ""
        for group in groups:
            path = f"{path}.{group}".lstrip(".")
            inner = inner.setdefault(group, {})
            if path in names:
                _raise_both(path)
        if place in names:
            both = "" if names[place] == name else f" ({names[place]}, {name})"
            raise ValueError(f"{place} is given twice{both}")
        if field in inner:
            _raise_both(place)
        inner[field], names[place] = value, name
    return tree


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values; an empty group is a value."""
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"{prefix}{show(name)} is not a field name: it must be a string")
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _raise_both(place: str) -> NoReturn:
    raise ValueError(
        f"{place} is given both as a whole and by its fields: give only one of the two"
    )


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
