"""Config fields shared by Meta's `params.json` and by formats derived from it."""

from collections.abc import Callable

from jaxllm.config import DecoderConfig, RopeScaling
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.unsupported import unsupported_by_head_dim

FACTOR, HIGH_FREQ_FACTOR = "rope_scaling_factor", "rope_high_freq_factor"
# The constants that a config without them means, from its other fields; None if they are open.
ImpliedScaling = Callable[[Json], RopeScaling | None]


def mlp_width(
    embed_dim: int,
    multiple_of: int,
    multiplier: float | None,
    *,
    thirds: bool,
    expansion: float = 4.0,
    shares: float = 1.0,
) -> int:
    """Computes the MLP width from Meta's arguments.

    The width is `expansion * embed_dim`, times 2/3 if `thirds`, times `multiplier`, divided by
    `shares` (truncated after each step), then rounded up to `multiple_of`.
    """
    width = int(expansion * embed_dim)
    if thirds:
        width = int(2 * width / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    width = int(width / shares)
    return -(-width // multiple_of) * multiple_of


def width_fields(
    config: DecoderConfig, base: Json, *, thirds_with_multiplier: bool, exact: bool = False
) -> Json:
    """Returns `multiple_of` and `ffn_dim_multiplier` that give the config's mlp_dim.

    Prefers the values in `base`, then `multiple_of=256` alone, if they give the right width. With
    `exact`, always returns a multiplier that needs no rounding to multiples.
    """
    D, F = config.embed_dim, config.mlp_dim
    rounded = [(base.get("multiple_of", 256), base.get("ffn_dim_multiplier")), (256, None)]
    candidates = [] if exact else rounded
    for multiple_of, multiplier in candidates:
        thirds = multiplier is None or thirds_with_multiplier
        if mlp_width(D, multiple_of, multiplier, thirds=thirds) == F:
            return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    # Half a unit above F, so that truncation lands on F whatever the rounding of the quotient.
    multiplier = (F + 0.5) / mlp_width(D, 1, None, thirds=thirds_with_multiplier)
    return {"multiple_of": 1, "ffn_dim_multiplier": multiplier}


def read_llama(fields: Fields, *, theta: float, scaling: ImpliedScaling) -> Json:
    """Reads the fields shared by all of Meta's Llamas and `LLM`, except the vocabulary size.

    Args:
        fields: the config file.
        theta: the default base of RoPE's frequencies.
        scaling: the constants of scaled RoPE where the config leaves them out.
    """
    heads, width = fields.take("n_heads", int), fields.take("dim", int)
    fields.require("head_dim", None, width // max(heads, 1))
    multiple_of = fields.take("multiple_of", int, 256)
    multiplier = fields.take("ffn_dim_multiplier", float, None)
    return {
        "embed_dim": width,
        "num_layers": fields.take("n_layers", int),
        "num_heads": heads,
        "num_kv_heads": fields.take("n_kv_heads", int, heads),
        "head_dim": width // max(heads, 1),
        "mlp_dim": mlp_width(width, multiple_of, multiplier, thirds=True),
        "rope.theta": fields.take("rope_theta", float, theta),
        "rope.scaling": _read_scaling(fields, scaling),
    }


def _read_scaling(fields: Fields, implied: ImpliedScaling) -> RopeScaling | None:
    is_used, default = fields.take("use_scaled_rope", bool, False), implied(fields.data)
    factor = fields.take(FACTOR, float, default and default.factor)
    high = fields.take(HIGH_FREQ_FACTOR, float, default.high_freq_factor if default else 4.0)
    if not is_used:
        return None
    if factor is None:
        fields.problems.append(
            f"use_scaled_rope=True leaves the factor open, and the widths are those of no released "
            f"model: add {FACTOR}, which is 8 in Llama 3.1 and 3.3 and 32 in Llama 3.2 1B and 3B"
        )
        fields.is_complete = False
        return None
    return fields.build(RopeScaling, kind="llama3", factor=factor, high_freq_factor=high)


def write_llama(config: DecoderConfig, base: Json, *, scaling: ImpliedScaling) -> Json:
    """Writes the fields of `read_llama` and the vocabulary size over those of `base`."""
    json = {
        **base,
        "dim": config.embed_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        **width_fields(config, base, thirds_with_multiplier=True),
        "norm_eps": config.norms.eps,
        "rope_theta": config.rope.theta,
        "use_scaled_rope": config.rope.scaling is not None,
    }
    constants = {FACTOR: "factor", HIGH_FREQ_FACTOR: "high_freq_factor"}
    given, used = constants.keys() & base.keys(), config.rope.scaling
    if used is not None and (given or used != scaling(json)):
        json |= {theirs: getattr(used, ours) for theirs, ours in constants.items()}
    return json


def unsupported_by_llama(config: DecoderConfig) -> dict[str, bool]:
    """Flags settings of heads and RoPE that these configs do not support."""
    scaling = config.rope.scaling
    is_llama3 = scaling is None or scaling.kind == "llama3"
    return {
        **unsupported_by_head_dim(config),
        f"rope_scaling={scaling!r}": not is_llama3,
        "RoPE low_freq_factor and original_max_len other than 1 and 8192": (
            scaling is not None
            and is_llama3
            and (scaling.low_freq_factor, scaling.original_max_len) != (1.0, 8192)
        ),
    }
