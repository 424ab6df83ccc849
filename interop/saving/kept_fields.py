"""Fields of the config that a model came from: an export keeps what the model has not changed."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import Config, Dtype, dtype_fields, make_config
from jaxllm.interop.families import Family
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.loading.checkpoint_dir import with_start_token

DTYPE, NEW_DTYPE = "torch_dtype", "dtype"  # transformers 5 writes the second
# All of RoPE, which transformers 5 writes into one field; and that field.
ROPE = (
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"),
    *("rope_local_base_freq", "rotary_emb_base", "rotary_pct"),
)
ROPE_PARAMETERS = "rope_parameters"


def keep_fields(
    family: Family, written: Json, base: Json, origin: Origin, dtype: str, names: Collection[str]
) -> Json:
    """Returns the config to write: the original one, with the fields that the model has changed.

    Args:
        family: the family of the original and of the export.
        written: the config as the family writes it.
        base: the config that the model came from.
        origin: where that is.
        dtype: the dtype that most of the original tensors were stored in; "" if unknown.
        names: the names of the tensors to write.
    """
    stored: Any = dict.fromkeys(names)
    folder = Path(origin.directory)
    before = _read(family, base, folder, stored, dtype or base.get(NEW_DTYPE) or base.get(DTYPE))
    after = _read(family, written, folder, stored)
    if before is None or after is None:
        return written
    try:
        was = family.write_config(before, base)
    except ValueError:
        return written
    kept = _with_other_names(family, base, _change(base, was, written))
    without_rope = {name: value for name, value in kept.items() if name != ROPE_PARAMETERS}
    respelled = without_rope | {name: written[name] for name in ROPE if name in written}
    for config in (kept, respelled):
        if _read(family, config, folder, stored) == after:
            return config
    return written


def _read(
    family: Family, config: Json, folder: Path, stored: Any, dtype: object = None
) -> Config | None:
    """Reads a config that is complete, in float32 by default; None if it cannot be read."""
    chosen: Dtype = next((known for known in get_args(Dtype) if known == dtype), "float32")
    fields = family.fields(with_start_token(family, config, folder))
    try:
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


def _with_other_names(family: Family, base: Json, changed: Json) -> Json:
    """Gives fields that go by other names in the original their changed values there too."""
    aliases = {} if family.reads is None else family.reads().aliases
    return changed | {
        alias: changed[name]
        for alias, name in aliases.items()
        if alias in base and name in changed and changed[name] != base.get(name)
    }
