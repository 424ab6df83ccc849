"""Compares the config of a PyTorch module with the model that is to fill it."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxllm.interop.families import Family, Fields
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.formats.stored_tensor import StoredTensor

# Fields that do not change what given weights compute, or that the tensors themselves show.
FREE = ("max_len", "init.std", "init.kind", "dropout", "head.tied")
_ENDINGS = tuple(f".{name}" for name in FREE)


def differing_fields(
    family: Family, ours: Json, theirs: Json, tensors: Mapping[str, StoredTensor]
) -> list[str]:
    """Returns a message for each field that makes a module compute something else than the model.

    Args:
        family: the family of both.
        ours: the fields of the config file that the model would be saved with.
        theirs: the fields of the module's config.
        tensors: the module's tensors by name.
    """
    fields = Fields(theirs)
    try:
        given = dict(_flat(family.read_config(fields, tensors)[0]))
    except ValueError as error:
        return [*fields.problems, str(error)]
    wanted = dict(_flat(family.read_config(Fields(ours), tensors)[0]))
    return [
        *fields.problems,
        *(
            f"{name} is {given.get(name)!r} in the module's config, {wanted.get(name)!r} in the "
            "model's"
            for name in {**wanted, **given}
            if wanted.get(name) != given.get(name) and not f".{name}".endswith(_ENDINGS)
        ),
    ]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values by dotted names, those of encoders and decoders too."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
