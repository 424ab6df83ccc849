"""RoPE fields of Hugging Face configs: base, scaling and the rotated fraction of a head.

Transformers 5 stores everything in `rope_parameters`; version 4 has `rope_theta` and
`rope_scaling`, whose kind is a `rope_type` or, in older files, a `type`.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from jaxllm.config import ROPE_SCALINGS, DecoderConfig, RopeScaling
from jaxllm.layers.attention.rope import attention_factor

from .fields import REQUIRED, Fields, Json

SCALING, PARAMETERS = "rope_scaling", "rope_parameters"  # of versions 4 and 5
NO_ALIASES: Mapping[str, str] = MappingProxyType({})


def read_rope(
    fields: Fields,
    default_theta: float = 10000.0,
    *,
    fraction: float | None = None,
    original: int | None = None,
    aliases: Mapping[str, str] = NO_ALIASES,
) -> Json:
    """Reads the base, the scaling and, for models with partial RoPE, the rotated fraction.

    Args:
        fields: the config file; all of its RoPE fields are taken.
        default_theta: the base if the field is absent.
        fraction: the fraction if the field is absent; None if the model always rotates whole heads.
        original: the value if `original_max_position_embeddings` is absent; None stands for
            `max_position_embeddings`.
        aliases: maps old names of scaling kinds to new ones.
    """
    new, old = fields.take("rope_parameters", dict, {}), fields.take("rope_scaling", dict, {})
    name = SCALING if old else PARAMETERS  # transformers prefers the older one
    return _read_parameters(fields, name, old or new, default_theta, fraction, original, aliases)


def read_rope_by_layer(fields: Fields, default_theta: float, default_local_theta: float) -> Json:
    """As `read_rope`, for models whose sliding layers have their own base and no scaling.

    `rope_parameters` then holds one object for each of the `layer_types`.
    """
    by_layer = Fields(fields.take(PARAMETERS, dict, {}))
    full, name = by_layer.take("full_attention", dict, {}), f"{PARAMETERS}.full_attention"
    local = Fields(by_layer.take("sliding_attention", dict, {}))
    local.reads = fields.reads and fields.reads.of_rope("default")
    if by_layer.data:
        fields.require(SCALING, None)
    else:
        full, name = fields.take(SCALING, dict, {}), SCALING
    # transformers looks for `truncate` one level above, where it never is.
    full = {name: value for name, value in full.items() if name != "truncate"}
    config = _read_parameters(fields, name, full, default_theta)
    local_theta = fields.take("rope_local_base_freq", float, default_local_theta)
    config["rope.local_theta"] = local.take("rope_theta", float, local_theta)
    local.require("rope_type", "default")
    by_layer.join("sliding_attention", local)
    fields.join(PARAMETERS, by_layer)
    return config


def _read_parameters(
    fields: Fields,
    name: str,
    parameters: Json,
    default_theta: float,
    fraction: float | None = None,
    original: int | None = None,
    aliases: Mapping[str, str] = NO_ALIASES,
) -> Json:
    """Reads the RoPE parameters in the field `name`."""
    rope = Fields(parameters)
    theta = fields.take("rope_theta", float, default_theta)
    config: Json = {"rope.theta": rope.take("rope_theta", float, theta)}
    given = fields.take("partial_rotary_factor", float, fraction)
    kind = rope.take("rope_type", str, rope.take("type", str, "default"))
    kind = aliases.get(kind, kind)
    rope.reads = fields.reads and fields.reads.of_rope(kind)
    if fraction is not None:
        config["rope.fraction"] = rope.take("partial_rotary_factor", float, given)
    elif rope.reads and not rope.reads.is_inert("partial_rotary_factor", given or 1.0):
        fields.require("partial_rotary_factor", None, 1.0)
    original = fields.take("original_max_position_embeddings", int, original)
    if kind not in ("default", *ROPE_SCALINGS):
        known = ", ".join(("default", *ROPE_SCALINGS))
        fields.problems.append(f"{name}: rope_type={kind!r} is not supported, only {known}")
        fields.refused[name] = None
    else:
        config["rope.scaling"] = _read_scaling(fields, rope, kind, original)
    fields.join(name, rope)
    return config


def _read_scaling(
    fields: Fields, rope: Fields, kind: str, outer_original: int | None
) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return rope.build(RopeScaling, kind=kind, factor=rope.take("factor", float))
    usual = fields.default("max_position_embeddings") or REQUIRED
    longest = fields.take("max_position_embeddings", int, usual)
    if kind == "dynamic":  # scales from max_position_embeddings on, whatever the original is
        values: Json = {"original_max_len": longest, "factor": rope.take("factor", float)}
    else:  # transformers prefers the number outside of the RoPE fields
        inner = rope.take("original_max_position_embeddings", int, longest)
        original = inner if outer_original is None else outer_original
        values = {"original_max_len": original, **_READERS[kind](rope, original, longest)}
    scaling = rope.build(RopeScaling, kind=kind, **values)
    return None if scaling is None else _without_default_factor(scaling)


def _read_llama3(rope: Fields, original: int, longest: int) -> Json:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    return {name: rope.take(name, float) for name in names}


def _read_yarn(rope: Fields, original: int, longest: int) -> Json:
    factor = rope.take("factor", float, longest / max(original, 1))
    given = rope.take("attention_factor", float, None)
    scales = [rope.take(name, float, None) for name in ("mscale", "mscale_all_dim")]
    if given is None and all(scales):
        above, below = (0.1 * scale * math.log(max(factor, 1.0)) + 1.0 for scale in scales)
        given = above / below
    return {
        "factor": factor,
        "attention_factor": given,
        "beta_fast": rope.take("beta_fast", float, None) or 32.0,
        "beta_slow": rope.take("beta_slow", float, None) or 1.0,
        "truncate": rope.take("truncate", bool, True),
    }


def _read_longrope(rope: Fields, original: int, longest: int) -> Json:
    return {
        "factor": rope.take("factor", float, _ratio(longest, original)),
        "attention_factor": rope.take("attention_factor", float, None),
        "short_factor": _numbers(rope, "short_factor"),
        "long_factor": _numbers(rope, "long_factor"),
    }


_READERS = {
    "llama3": _read_llama3,
    "yarn": _read_yarn,
    "longrope": _read_longrope,
}


def _ratio(longest: int, original: int) -> float:
    """Returns the longest context divided by the pretraining context, but at least 1."""
    return max(longest / max(original, 1), 1.0)


def _numbers(rope: Fields, name: str) -> tuple[float, ...]:
    given = rope.take(name, list)
    if wrong := [number for number in given if type(number) not in (int, float)]:
        rope.problems.append(f"{name} holds {wrong[0]!r}, which is not a number")
        return ()
    return tuple(map(float, given))


def _without_default_factor(scaling: RopeScaling) -> RopeScaling:
    """Drops an attention factor that equals the default."""
    without = dataclasses.replace(scaling, attention_factor=None)
    return without if attention_factor(without) == attention_factor(scaling) else scaling


def write_rope(config: DecoderConfig) -> Json:
    """Writes the fields of `read_rope`, except the fraction, as transformers 4 does.

    Raises ValueError for what the format does not support.
    """
    scaling = config.rope.scaling
    rope: Json = {"rope_theta": config.rope.theta, "rope_scaling": _write_scaling(config)}
    if scaling is not None and scaling.kind == "longrope":
        rope["original_max_position_embeddings"] = scaling.original_max_len
    return rope


def _write_scaling(config: DecoderConfig) -> Json | None:
    scaling = config.rope.scaling
    if scaling is None:
        return None
    if scaling.kind == "longrope":
        return _write_longrope(scaling, config.max_len)
    rope: Json = {"rope_type": scaling.kind, "factor": scaling.factor}
    given = {name: getattr(scaling, name) for name in ROPE_SCALINGS[scaling.kind]}
    original = given.pop("original_max_len", None)
    if scaling.kind == "dynamic" and original != config.max_len:
        raise ValueError(
            "config.json does not support dynamic RoPE scaling with original_max_len="
            f"{original}, only with max_len={config.max_len}"
        )
    if scaling.kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = original
    return rope | {name: value for name, value in given.items() if value is not None}


def _write_longrope(scaling: RopeScaling, max_len: int) -> Json:
    """Writes LongRoPE by its name in transformers 4, whose Phi-3 accepts only these fields.

    Transformers 4 takes the factor to be the ratio of the lengths. If it is not, `factor` is
    written for transformers 5, and `attention_factor`, all that depends on it, for both.
    """
    rope: Json = {
        "type": "longrope",
        "short_factor": list(scaling.short_factor),
        "long_factor": list(scaling.long_factor),
    }
    is_ratio = scaling.factor == _ratio(max_len, scaling.original_max_len)
    if not is_ratio:
        rope["factor"] = scaling.factor
    if not is_ratio or scaling.attention_factor is not None:
        rope["attention_factor"] = attention_factor(scaling)
    return rope
