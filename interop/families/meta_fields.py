"""What the configs of Meta's code and its descendants say and do not say."""

from jaxllm.config import DecoderConfig

from .family import Json


def mlp_width(embed_dim: int, multiple_of: int, multiplier: float | None, *, thirds: bool) -> int:
    """`4 D`, cut to two thirds if `thirds`, times the multiplier, rounded up to `multiple_of`."""
    width = 4 * embed_dim
    if thirds:
        width = int(2 * width / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def width_fields(config: DecoderConfig, base: Json, *, thirds_with_multiplier: bool) -> Json:
    """`multiple_of` and `ffn_dim_multiplier` that give the config's mlp_dim.

    Those of `base` if they do, else 256 alone if that does, else an exact multiplier.
    """
    D, F = config.embed_dim, config.mlp_dim
    candidates = [
        (base.get("multiple_of", 256), base.get("ffn_dim_multiplier")),
        (256, None),
    ]
    for multiple_of, multiplier in candidates:
        thirds = multiplier is None or thirds_with_multiplier
        if mlp_width(D, multiple_of, multiplier, thirds=thirds) == F:
            return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    # Half a unit above F, so that truncation lands on F whatever the rounding of the quotient.
    multiplier = (F + 0.5) / mlp_width(D, 1, None, thirds=thirds_with_multiplier)
    return {"multiple_of": 1, "ffn_dim_multiplier": multiplier}


def unsaid_by_meta(config: DecoderConfig) -> dict[str, bool]:
    """What these configs leave to be derived, and whether the config differs from that."""
    is_derived = config.head_dim * config.num_heads == config.embed_dim
    return {f"head_dim={config.head_dim} is not embed_dim / num_heads": not is_derived}
