"""What the configs of Meta's code and its descendants say and do not say."""

from jaxllm.config import DecoderConfig, RopeScaling
from jaxllm.interop.families.common.family import Fields, Json
from jaxllm.interop.families.common.unsupported import unsupported_by_head_dim


def mlp_width(
    embed_dim: int,
    multiple_of: int,
    multiplier: float | None,
    *,
    thirds: bool,
    expansion: float = 4.0,
    shares: float = 1.0,
) -> int:
    """`expansion D`, cut to two thirds, multiplied, divided into shares; a multiple above it."""
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
    """`multiple_of` and `ffn_dim_multiplier` that give the config's mlp_dim.

    Unless they are to be exact, without rounding to multiples, those of `base` if they do, else
    256 alone if that does.
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


def read_llama(fields: Fields, *, theta: float, scaling: RopeScaling) -> Json:
    """The fields that all of Meta's Llamas and `LLM` share, but for the vocabulary's size.

    Args:
        fields: of the config.
        theta: the base of RoPE's frequencies where it is not given.
        scaling: of RoPE, where it is used and its constants are not given.
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


def _read_scaling(fields: Fields, default: RopeScaling) -> RopeScaling | None:
    is_used = fields.take("use_scaled_rope", bool, False)
    factor = fields.take("rope_scaling_factor", float, default.factor)
    high = fields.take("rope_high_freq_factor", float, default.high_freq_factor)
    if not is_used:
        return None
    return fields.build(RopeScaling, kind="llama3", factor=factor, high_freq_factor=high)


def write_llama(config: DecoderConfig, base: Json, *, scaling: RopeScaling) -> Json:
    """The fields of `read_llama` and the vocabulary's size, on top of those of `base`."""
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
    constants = {"rope_scaling_factor": "factor", "rope_high_freq_factor": "high_freq_factor"}
    given, used = constants.keys() & base.keys(), config.rope.scaling
    if used is not None and (given or used != scaling):
        json |= {theirs: getattr(used, ours) for theirs, ours in constants.items()}
    return json


def unsupported_by_llama(config: DecoderConfig) -> dict[str, bool]:
    """What these configs cannot say of heads and of RoPE, and whether the config has it."""
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
