"""Command-line overrides of a run config: parsed, and put into its data before it is validated."""

import dataclasses
import functools
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

from jaxllm.config.problems import find_correction


class Override(NamedTuple):
    """One option and its values, such as `--mesh.fsdp 4`."""

    option: str  # as given, without a value that follows `=`
    values: tuple[str, ...]

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the groups and the field."""
        return tuple(self.option.removeprefix("--").replace("-", "_").split("."))

    @property
    def arguments(self) -> list[str]:
        """The option and its values as separate arguments."""
        return [self.option, *self.values]

    def __str__(self) -> str:
        return " ".join(self.arguments)


class Applied(NamedTuple):
    """The data of a config with overrides put into them."""

    data: Any
    places: dict[tuple[str, ...], Override]  # what each overridden field was set by
    unknown: list[Override]  # those that name no field, or whose values do not fit one

    def origin(self, location: Sequence[int | str], file: str) -> str:
        """Says where the value at a location came from: the file, an override, or both."""
        names = tuple(map(str, location))
        for path, override in self.places.items():
            if names[: len(path)] == path:
                return str(override)
        inside = [str(one) for path, one in self.places.items() if path[: len(names)] == names]
        return f"{file} with {' '.join(inside)}" if inside else file


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Splits arguments into options, each with the values that follow it."""
    found: list[Override] = []
    for text in arguments:
        if text.startswith("--") or not found:
            option, equals, value = text.partition("=")
            found.append(Override(option, (value,) if equals else ()))
        else:
            found[-1] = Override(found[-1].option, (*found[-1].values, text))
    return found


def apply_overrides(
    data: Mapping[str, Any], overrides: Sequence[Override], kind: type, classes: Mapping[str, type]
) -> Applied:
    """Puts overrides into the data of a config, without validating either.

    Args:
        data: as read from a file; not changed.
        overrides: later ones replace earlier ones.
        kind: the class of the config.
        classes: the class of each field of `kind` that may have one of several.
    """
    applied = Applied(dict(data), {}, [])
    for override in overrides:
        path, hint, negated = _find_field(override.path, kind, classes)
        try:
            if not override.option.startswith("--"):
                raise ValueError("no option")
            value = _read_values(hint, override.values, negated)
            changed = _replaced(applied.data, path, value)
        except (TypeError, LookupError, ValueError):
            applied.unknown.append(override)
        else:
            applied.places[path] = override
            applied = applied._replace(data=changed)
    return applied


def correct_names(
    overrides: Sequence[Override], model: type, init_from: str | None = None
) -> Iterator[str]:
    """Yields one line per override of a model field that has an old name or cannot be set.

    Args:
        overrides: the overrides of a run config.
        model: the class of the model's config.
        init_from: the checkpoint that has the model, if the run config has none.
    """
    for override in overrides:
        if not override.option.startswith("--model."):
            continue
        if init_from is not None:
            yield f"{override}: the model is that of init_from={init_from}, so it cannot be changed"
            continue
        _, *groups, field = override.path
        no = "no_" if field.startswith("no_") else ""  # --model.head.no-tied sets it to False
        name = ".".join([*groups, field.removeprefix(no)])
        shown = functools.partial(_option, no)
        if correction := find_correction(model, name, show_name=shown):
            yield f"{override.option} {correction}"


def renamed(
    overrides: Iterable[Override], kind: type, classes: Mapping[str, type]
) -> Iterator[str]:
    """Yields one line per override of a field that has an old name, with the new one.

    Args:
        overrides: the overrides of a config.
        kind: the class of the config.
        classes: the class of each field of `kind` that may have one of several.
    """
    for override in overrides:
        *groups, field = override.path
        hint = _find_hint(groups, kind, classes)
        options = _options(hint) if groups and hint is not None else (kind,)
        for one in options:
            if new := getattr(one, "RENAMED", {}).get(field):
                name, comma, why = new.partition(",")
                yield f"{override.option} is now --{name.replace('_', '-')}{comma}{why}"


def _option(no: str, name: str) -> str:
    """Returns the command-line option of a model's field; `no` is the prefix that negates it."""
    *groups, field = name.replace("_", "-").split(".")
    return f"--model.{'.'.join([*groups, no.replace('_', '-') + field])}"


def _find_field(
    path: tuple[str, ...], kind: type, classes: Mapping[str, type]
) -> tuple[tuple[str, ...], Any, bool]:
    """Returns the path of the field, its type (None if there is none), and if `no-` negates it."""
    if (hint := _find_hint(path, kind, classes)) is not None:
        return path, hint, False
    *groups, field = path
    positive = (*groups, field.removeprefix("no_"))
    hint = _find_hint(positive, kind, classes) if positive != path else None
    return positive, hint, True


def _find_hint(path: Sequence[str], kind: type, classes: Mapping[str, type]) -> Any:
    """Returns the type of the field at a path, None if there is none. Numbers index tuples."""
    hint: Any = kind
    for depth, name in enumerate(path):
        options = [classes[path[0]]] if depth == 1 and path[0] in classes else _options(hint)
        if name.isdecimal():
            hints = [typing.get_args(one)[0] for one in options if typing.get_origin(one) is tuple]
        else:
            hints = [
                typing.get_type_hints(one)[name]
                for one in options
                if dataclasses.is_dataclass(one)
                and name in {field.name for field in dataclasses.fields(one)}
            ]
        if not hints:
            return None
        hint = hints[0]
    return hint


def _options(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the only type."""
    is_union = typing.get_origin(hint) not in (None, tuple, typing.Literal)
    return typing.get_args(hint) if is_union else (hint,)


def _read_values(hint: Any, values: tuple[str, ...], negated: bool) -> Any:
    """Returns the value of a field from its texts; pydantic converts each to the field's type.

    Raises ValueError if the number of texts does not fit the type.
    """
    options = _options(hint)
    if not values and bool in options:
        return not negated
    if values == ("None",) and NoneType in options:
        return None
    lists = [typing.get_args(one)[0] for one in options if typing.get_origin(one) is tuple]
    if hint is None or negated or any(map(dataclasses.is_dataclass, (*options, *lists))):
        raise ValueError("no field of plain values")
    if lists:
        return [*values]
    (value,) = values
    return value


def _replaced(data: Any, path: Sequence[str], value: Any) -> Any:
    """Returns plain data with another value at a path; groups that are missing are added.

    Raises TypeError, LookupError or ValueError if the data have another form.
    """
    if not path:
        return value
    name, *rest = path
    if name.isdecimal():
        index = int(name)
        return [*data[:index], _replaced(data[index], rest, value), *data[index + 1 :]]
    if not isinstance(data, dict | NoneType):
        raise TypeError("not a group of fields")
    group = data or {}
    return {**group, name: _replaced(group.get(name), rest, value)}
