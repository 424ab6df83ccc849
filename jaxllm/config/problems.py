"""Explains pydantic's errors about config data, one line each, with the right name of a field."""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxllm.errors import MOST_LISTED, did_you_mean

from .checks import show
from .models import Config
from .moved import MOVED, PARTS, STACKS, is_moved, upgrade_given, upgrade_name

Location = Sequence[int | str]


class Problem(NamedTuple):
    """A problem of config data, in one line."""

    location: Location  # the names of the field or group that it is about; () for the whole
    text: str


def explain(error: Any, kind: type, classes: Mapping[str, type] = {}) -> list[Problem]:
    """Returns every problem of a pydantic ValidationError.

    Args:
        error: what was raised for data of the class.
        kind: a config class.
        classes: the class that the data select, for each field whose type is a union of classes.
            Pydantic tries each class and adds its name to the location of each error.
    """
    problems: list[Problem] = []
    found = error.errors()
    for problem in found:
        if len(problems) == MOST_LISTED:
            problems.append(Problem((), f"{len(found)} problems in all; the first are listed"))
            break
        field, *inside = problem["loc"] or ("",)
        if field in classes and inside:
            tried, *inside = inside
            if tried != classes[field].__name__:
                continue
        location = [field, *inside]
        text = _explain(problem, location, kind, classes)
        problems.append(Problem(tuple(name for name in location if name != ""), text))
    return problems


def find_correction(
    kind: type, name: str, value: Any = None, show_name: Callable[[str], str] = str
) -> str | None:
    """Says what to write in place of the old name of a field, or of a field of another stack.

    Args:
        kind: the class of a model's config.
        name: the dotted name of a field, as given.
        value: its value, which tells an old name from a group of fields.
        show_name: formats a dotted name.

    Returns:
        A clause to follow the name; None if the name is current, or nothing like it exists.
    """
    stack, dot, inner = name.partition(".")
    own, inner = (f"{stack}.", inner) if dot and stack in STACKS else ("", name)
    new = upgrade_given(inner, value)
    part, _, field = inner.partition(".")
    if part in PARTS and field.partition(".")[0] in MOVED and not _has_field(kind, own + inner):
        new = upgrade_name(field)
    if _has_field(kind, own + new):
        return None if own + new == name else f"is now {show_name(own + new)}"
    places = [prefix + new for prefix in ("", *(f"{stack}." for stack in STACKS))]
    found = [show_name(place) for place in places if _has_field(kind, place)]
    return f"does not exist: set {' or '.join(found)}" if found else None


def _explain(problem: Any, loc: Location, kind: type, classes: Mapping[str, type]) -> str:
    """Turns a problem into one line; an unknown field comes with the nearest known one."""
    name, last, given = ".".join(map(str, loc)), loc[-1], problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "missing":
            return f"{name} is missing"
        case "invalid_key":
            *groups, _ = map(str, loc)
            return f"{'.'.join([*groups, show(given)])} is not a field name: it must be a string"
        case "unexpected_keyword_argument":
            return _explain_unknown(str(last), given, loc[:-1], kind, classes)
        # A plain value where a group of fields is expected, such as the old `positions: learned`.
        case "dataclass_type" if is_moved(str(last), given):
            return _explain_unknown(str(last), given, loc[:-1], kind, classes)
    given = "" if isinstance(given, dict) else f"={show(given)}"
    message = message[0].lower() + message[1:]
    return f"{name}{given}: {message}" if name else message


def _explain_unknown(
    field: str, value: Any, parents: Location, kind: type, classes: Mapping[str, type]
) -> str:
    """Explains a name that is no field of the group at `parents`."""
    path = [*_follow(kind, parents, classes)]
    name = ".".join([*map(str, parents), field])
    for depth, place in enumerate(path):
        if place in typing.get_args(Config):  # what follows is the name of a field of a model
            prefix = "".join(f"{parent}." for parent in parents[:depth])
            inside = name.removeprefix(prefix)
            correction = find_correction(place, inside, value, lambda new: prefix + new)  # noqa: B023
            if correction:
                return f"{name} {correction}"
    if change := getattr(path[-1], "RENAMED", {}).get(field):
        return f"{name} is now {change}"
    group, dot, inner = field.partition(".")
    if dot and _has_field(path[-1], field):
        return f"unknown field {name!r}; write it nested, as in {{{group}: {{{inner}: ...}}}}"
    known = [known.name for known in dataclasses.fields(path[-1])]
    hint = did_you_mean(field, known) or f"; known fields are {', '.join(known)}"
    return f"unknown field {name!r}{hint}"


def _follow(kind: type, loc: Location, classes: Mapping[str, type]) -> Iterator[Any]:
    """Yields the class at a location, after each of its names: first `kind` itself."""
    yield kind
    for depth, key in enumerate(loc):
        if isinstance(key, str):  # otherwise an index: the class is that of each element
            union = _classes_of(typing.get_type_hints(kind)[key])
            kind = classes.get(key, union[0]) if depth == 0 else union[0]
        yield kind


def _has_field(kind: Any, name: str) -> bool:
    """Whether a config class has the field of this dotted name."""
    first, dot, rest = name.partition(".")
    if first.isdecimal():  # the index of a layer kind: all have the same class
        return not dot or _has_field(kind, rest)
    if first not in {field.name for field in dataclasses.fields(kind)}:
        return False
    parts = _classes_of(typing.get_type_hints(kind)[first])
    return not dot or any(_has_field(part, rest) for part in parts)


def _classes_of(hint: Any) -> list[Any]:
    """Returns the dataclasses in a type hint: the type itself or the members of a union."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [cls for part in typing.get_args(hint) for cls in _classes_of(part)]
