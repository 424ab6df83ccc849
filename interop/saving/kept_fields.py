"""Fields of the config that a model came from: an export keeps what the model has not changed."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import Config, Dtype, dtype_fields, make_config
from jaxllm.interop.families import Family
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.loading.checkpoint_dir import with_facts_beside

from .special_tokens import TEXT_PART

DTYPE, NEW_DTYPE = "torch_dtype", "dtype"  # transformers 5 writes the second
# All of RoPE, which transformers 5 writes into one field; and that field.
ROPE = (
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"),
    *("rope_local_base_freq", "rotary_emb_base", "rotary_pct"),
)
ROPE_PARAMETERS = "rope_parameters"
LOCAL = "sliding_attention"


def keep_fields(
    family: Family, written: Json, base: Json, origin: Origin, dtype: str, tensors: Any
) -> Json:
    """Returns the config to write: the original one, with the fields that the model has changed.

    Args:
        family: the family of the original and of the export.
        written: the config as the family writes it.
        base: the config that the model came from.
        origin: where that is.
        dtype: the dtype that most of the original tensors were stored in; "" if unknown.
        tensors: the tensors to write, by name, with dtypes and shapes.
    """
    folder, written = Path(origin.directory), _with_other_names(family, base, written)
    before = _read(family, base, folder, tensors, dtype or base.get(NEW_DTYPE) or base.get(DTYPE))
    after = _read(family, written, folder, tensors)
    if before is None or after is None:
        return written
    try:
        was = family.write_config(before, base)
    except ValueError:
        return written
    kept = _with_other_names(family, base, _change(base, was, written))
    reads_the_same = lambda config: _read(family, config, folder, tensors) == after  # noqa: E731
    if reads_the_same(kept):
        aliases = {} if family.reads is None else family.reads().aliases
        return _without_idle_changes(kept, base, {*aliases.values()}, reads_the_same)
    spellings = (respell(base, kept, written) for respell in (_with_rope_of_5, _with_rope_of_4))
    return next(filter(reads_the_same, spellings), written)


def _with_rope_of_4(base: Json, kept: Json, written: Json) -> Json:
    """Returns the config with RoPE as it is written: in several fields."""
    without_rope = {name: value for name, value in kept.items() if name != ROPE_PARAMETERS}
    return without_rope | {name: written[name] for name in ROPE if name in written}


def _with_rope_of_5(base: Json, kept: Json, written: Json) -> Json:
    """Returns the config with RoPE as it is written, in one field, if the original has it so."""
    if isinstance(text := base.get(TEXT_PART), Mapping):
        return kept | {TEXT_PART: _with_rope_of_5(text, kept[TEXT_PART], written[TEXT_PART])}
    if not (given := base.get(ROPE_PARAMETERS)):
        return kept
    scaling = dict(written.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    theta = written.get("rope_theta", written.get("rotary_emb_base"))
    fraction = written.get("partial_rotary_factor", written.get("rotary_pct"))
    rope = {"rope_theta": theta, "rope_type": kind, **scaling}
    if fraction is not None:
        rope["partial_rotary_factor"] = fraction
    if LOCAL in given:  # the base of sliding layers; an object for each type of layer
        local = {"rope_theta": written["rope_local_base_freq"], "rope_type": "default"}
        rope = {"full_attention": rope, LOCAL: local}
    elif kind == given.get("rope_type"):
        rope = given | rope  # with what is not understood there, such as axes of images
    several = {name: written.get(name, base[name]) for name in ROPE if name in base}
    others = {name: value for name, value in kept.items() if name not in ROPE}
    return others | several | {ROPE_PARAMETERS: rope}


def _read(
    family: Family, config: Json, folder: Path, stored: Any, dtype: object = None
) -> Config | None:
    """Reads a config that is complete, in float32 by default; None if it cannot be read."""
    chosen: Dtype = next((known for known in get_args(Dtype) if known == dtype), "float32")
    try:
        fields = family.fields(with_facts_beside(family, config, folder))
        values, _ = family.read_config(fields, stored)
        return None if fields.finish() else make_config(values, dtype_fields(chosen))
    except (ValueError, ArithmeticError, TypeError):
        return None


def _change(kept: Json, was: Json, now: Json) -> Json:
    """Applies to one config what differs between two others; recursive for nested objects."""
    changed = dict(kept)
    for name in {**was, **now}:
        before, after = was.get(name), now.get(name)
        if name in was and name in now and before == after:
            continue
        if name not in now:
            changed.pop(name, None)
        elif name == DTYPE and NEW_DTYPE in kept:
            changed |= dict.fromkeys({DTYPE, NEW_DTYPE} & kept.keys(), after)
        elif all(isinstance(value, Mapping) for value in (before, after, kept.get(name))):
            changed[name] = _change(kept[name], before, after)
        else:
            changed[name] = after
    return changed


def _without_idle_changes(
    kept: Json, base: Json, fixed: Collection[str], reads_the_same: Callable[[Json], bool]
) -> Json:
    """Undoes each change that makes no difference, such as of a window that is not enabled.

    Args:
        kept: the config.
        base: the original config.
        fixed: fields that stay as they are, besides the dtype and nested objects.
        reads_the_same: whether another config reads as `kept` does.
    """
    for name, value in list(kept.items()):
        if name in (DTYPE, NEW_DTYPE, *fixed) or isinstance(value, Mapping):
            continue
        if name in base and base[name] == value:
            continue
        without = {other: kept[other] for other in kept if other != name}
        undone = {**kept, name: base[name]} if name in base else without
        if reads_the_same(undone):
            kept = undone
    return kept


def _with_other_names(family: Family, base: Json, changed: Json) -> Json:
    """Gives fields that go by other names in the original their changed values there too."""
    aliases = {} if family.reads is None else family.reads().aliases
    return changed | {
        alias: changed[name]
        for alias, name in aliases.items()
        if alias in base and name in changed and changed[name] != base.get(name)
    }
