"""Axes of a decoder's rules: their sizes, and the order of a rotated head."""

from jaxllm.config import DecoderConfig


def decoder_sizes(config: DecoderConfig) -> dict[str, int]:
    """Returns the axis sizes of a decoder's rules.

    Besides the legend's letters: a head's rotated pairs (r = 2, h = H/2). For experts: E experts,
    G input projections each, X their width, S the width of the shared expert.
    """
    sizes = {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "L": config.num_layers,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "r": 2,
        "h": config.head_dim // 2,
        "F": config.mlp_dim,
        "G": 2,
    }
    if config.experts is not None:
        sizes |= {"E": config.experts.num_experts, "X": config.experts.mlp_dim}
        sizes["S"] = config.experts.shared_mlp_dim or 0
    return sizes


def head_pairs(config: DecoderConfig) -> str:
    """Returns the axes of a rotated head in the model, the slowest-varying first."""
    return {"half": "(r h)", "interleaved": "(h r)"}[config.rope.layout]
