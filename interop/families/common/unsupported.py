"""What several formats do not support, and whether a config has it, as `refuse` takes it."""

from collections.abc import Mapping

from jaxllm.config import StackConfig, flatten


def unsupported_values(config: StackConfig, supported: Mapping[str, object]) -> dict[str, bool]:
    """Whether fields, by dotted names, have other values than the only one that a format supports.

    For example `unsupported_values(config, {"norms.kind": "layer"})`.
    """
    given = flatten(config)
    return {f"{name}={given[name]!r}": given[name] != value for name, value in supported.items()}


def unsupported_by_one_bias(config: StackConfig) -> dict[str, bool]:
    """Where one field, such as `attention_bias`, is about all projections of attention."""
    uneven = config.attention.qkv_bias != config.attention.out_bias
    return {"attention.qkv_bias without attention.out_bias, or the reverse": uneven}


def unsupported_by_head_dim(config: StackConfig) -> dict[str, bool]:
    """Where the heads share the width."""
    is_derived = config.head_dim * config.num_heads == config.embed_dim
    return {f"head_dim={config.head_dim} is not embed_dim / num_heads": not is_derived}


def unsupported_by_equal_heads(config: StackConfig) -> dict[str, bool]:
    """Where, besides, there are as many of keys and values as of queries."""
    given = f"num_kv_heads={config.num_kv_heads} of num_heads={config.num_heads}"
    return {given: config.num_kv_heads != config.num_heads, **unsupported_by_head_dim(config)}
