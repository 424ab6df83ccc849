"""Values that several formats do not support, mapped to whether a config has them.

The functions return what `family.refuse` takes as `unsupported`.
"""

from collections.abc import Mapping

from jaxllm.config import StackConfig, flatten


def unsupported_values(config: StackConfig, supported: Mapping[str, object]) -> dict[str, bool]:
    """Flags fields, by dotted name, that differ from the only value that a format supports.

    Example: `unsupported_values(config, {"norms.kind": "layer"})`.
    """
    given = flatten(config)
    return {f"{name}={given[name]!r}": given[name] != value for name, value in supported.items()}


def unsupported_by_one_bias(config: StackConfig) -> dict[str, bool]:
    """For formats with one field, such as `attention_bias`, for all projections of attention."""
    uneven = config.attention.qkv_bias != config.attention.out_bias
    return {"attention.qkv_bias without attention.out_bias, or the reverse": uneven}


def unsupported_by_head_dim(config: StackConfig) -> dict[str, bool]:
    """For formats whose head width is always embed_dim / num_heads."""
    is_derived = config.head_dim * config.num_heads == config.embed_dim
    return {f"head_dim={config.head_dim} other than embed_dim / num_heads": not is_derived}


def unsupported_by_equal_heads(config: StackConfig) -> dict[str, bool]:
    """For formats that also have as many key/value heads as query heads."""
    given = f"num_kv_heads={config.num_kv_heads} with num_heads={config.num_heads}"
    return {given: config.num_kv_heads != config.num_heads, **unsupported_by_head_dim(config)}
