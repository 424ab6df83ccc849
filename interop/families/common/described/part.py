"""A part of a config file, read and written together, and the parts that most families consist of.

Reading gives fields of a `DecoderConfig` by dotted name; writing gives fields of the file.
"""

from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from jaxllm.config import DecoderConfig, flatten
from jaxllm.interop.families.common.fields import REQUIRED, Fields, Json
from jaxllm.interop.families.common.llama_like import read_activation, write_activation
from jaxllm.interop.families.common.unsupported import unsupported_values


class Part(NamedTuple):
    """Some fields of a config file that belong together.

    Attributes:
        read: returns fields of our config from those of the file.
        write: returns fields of the file from our config and the file that it came from.
        supports: dotted names of our fields that it expresses.
        unsupported: maps descriptions of values of them that it does not express to whether a
            config has them.
    """

    read: Callable[[Fields], Json] = lambda fields: {}
    write: Callable[[DecoderConfig, Json], Json] = lambda config, base: {}
    supports: Collection[str] = ()
    unsupported: Callable[[DecoderConfig], Mapping[str, bool]] = lambda config: {}


def setting(
    theirs: str, ours: str, kind: type, default: Any = REQUIRED, *, is_nullable: bool = False
) -> Part:
    """A field that both sides have.

    Args:
        theirs: its name in the file.
        ours: its dotted name in our config.
        kind: its type.
        default: the value if it is absent.
        is_nullable: whether null is a value of its own rather than the default.
    """

    def read(fields: Fields) -> Json:
        take = fields.take_nullable if is_nullable else fields.take
        return {ours: take(theirs, kind, default)}

    return Part(read, lambda config, base: {theirs: attrgetter(ours)(config)}, (ours,))


def fixed(values: Mapping[str, Any]) -> Part:
    """Fields of our config that have the same value in every model of a family."""
    return Part(
        lambda fields: dict(values),
        supports=(*values,),
        unsupported=lambda config: unsupported_values(config, values),
    )


def required(theirs: str, *allowed: Any) -> Part:
    """A field of the file of which only these values are implemented, the first one by default."""

    def read(fields: Fields) -> Json:
        fields.require(theirs, *allowed)
        return {}

    return Part(read)


def switch(theirs: str, ours: Collection[str], default: bool) -> Part:
    """One field of the file for several of ours, such as all biases, which must be equal."""

    def read(fields: Fields) -> Json:
        return dict.fromkeys(ours, fields.take(theirs, bool, default))

    def unsupported(config: DecoderConfig) -> dict[str, bool]:
        values = [flatten(config)[name] for name in ours]
        return {f"some but not all of {', '.join(ours)}": len(set(values)) > 1}

    first = next(iter(ours))
    return Part(
        read, lambda config, base: {theirs: attrgetter(first)(config)}, tuple(ours), unsupported
    )


def choice(theirs: str, ours: str, values: Mapping[Any, Any], default: Any) -> Part:
    """A field whose values have other names in our config, such as False for "pre".

    Args:
        theirs: its name in the file.
        ours: its dotted name in our config.
        values: maps the values of the file to ours.
        default: the value in the file if it is absent.
    """
    back = {inner: outer for outer, inner in values.items()}

    def read(fields: Fields) -> Json:
        given = fields.take(theirs, type(default), default)
        if given not in values:
            fields.require(theirs, *values)
        return {ours: values.get(given, values[default])}

    def unsupported(config: DecoderConfig) -> dict[str, bool]:
        value = flatten(config)[ours]
        return {f"{ours}={value!r}": value not in back}

    return Part(
        read,
        lambda config, base: {theirs: back[attrgetter(ours)(config)]},
        (ours,),
        unsupported,
    )


def activation(theirs: str, default: str) -> Part:
    """The activation of the MLP, by the names that transformers has for it."""
    return Part(
        lambda fields: {"mlp.activation": read_activation(fields, theirs, default)},
        lambda config, base: write_activation(config, theirs, {theirs: default, **base}),
        ("mlp.activation",),
    )
